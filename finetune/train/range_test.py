"""A learning-rate range test: a step at each of rising rates, after which everything is as before.

Source: Smith 2017, arXiv:1506.01186.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.freeze import freezing, reinitialise
from finetune.checkpoint.state import TrainState
from finetune.errors import RecipeError
from finetune.optim.initialisers import initialise
from finetune.optim.range_curve import RangeCurve, curve_of, has_run_away, rising_rates
from finetune.randomness import derive, forked
from finetune.train.fit import Batches, Fit, batch_size, renewed, renewed_parameters
from finetune.train.memory import out_of_memory
from finetune.train.moving import moving, to_unit_variance
from finetune.train.phases import pretrained_weights, solve_phase
from finetune.train.step import Step
from finetune.types import Event, Phase, ignore

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100


def range_test(
    fit: Fit,
    phases: Sequence[Phase],
    *,
    fresh: nn.Module,
    low: float = LOWEST,
    high: float = HIGHEST,
    steps: int = STEPS,
) -> RangeCurve:
    """Return the loss of a step of the first phase by gradient at each of the rates, from the lowest on.

    Phases before it, which are solved, are solved first. It ends early where the loss runs away. The model with its
    buffers and modes, the random states and the scaler are left as they were, to the bit; optimisers are its own.
    `fresh` is the same network as it is when new.

    Raises:
        RecipeError: every phase is solved. ResourceError: memory ran out.
    """
    index = next((place for place, phase in enumerate(phases) if phase.solver == "gradient"), None)
    if index is None:
        raise RecipeError(
            f"no phase of this run takes steps: {phases[0].name} is solved to convergence, without a learning rate",
            hint="Test another strategy, e.g. --strategy head-only.",
        )
    quiet = replace(fit, keeper=NoKeeper(), on_event=ignore, anchors={})
    with _left_as_it_was(fit), forked(derive(fit.settings.seed, "range-test"), devices=(fit.accelerator.device,)):
        if fit.settings.regularise.l2_sp or any(item.trains == "lora" for item in phases[index].plan.groups):
            quiet.anchors = pretrained_weights(quiet, phases)
        for place, phase in enumerate(phases[: index + 1]):
            reinitialise(fit.model, fresh, fit.groups, renewed(phase))
            with forked(derive(fit.settings.seed, "initialise", place)):
                initialise(fit.model, renewed_parameters(quiet, phase), fit.settings.initialiser)
            if phase.solver == "lbfgs":
                solve_phase(quiet, phase, TrainState(phase=place))
        return _steps(quiet, phases[index], index, rising_rates(low, high, steps), fit)


def _steps(fit: Fit, phase: Phase, index: int, rates: Sequence[float], told: Fit) -> RangeCurve:
    """Take a step at each rate, as the phase would take it."""
    losses: list[float] = []
    with freezing(fit.model, phase.plan, fit.groups) as hold:
        work = fit.work_of(phase)
        hold(work.run)
        if fit.settings.initialiser == "lsuv":
            to_unit_variance(fit, phase, work)
        optimiser, averages, adapters = moving(fit, phase, TrainState(phase=index), {})
        run, prepared = fit.accelerator.prepare(work.run, optimiser)
        stepping = prepared if fit.accelerator.scaler is not None else optimiser
        step = Step(fit.model, stepping, fit.settings, fit.accelerator, averages, adapters, fit.anchors, fit.objective)
        at_once = fit.settings.micro_batch or -(-work.train.num_images // max(1, len(work.train)))
        try:
            with out_of_memory(at_once):
                run.train()
                for place, ((inputs, targets), rate) in enumerate(
                    zip(_endless(work.train, index), rates, strict=False)
                ):
                    for group in step.optimiser.param_groups:
                        group["lr"] = group["peak_lr"] * rate / phase.lr
                    own = derive(fit.settings.seed, "range-test", place, *ranks.place())
                    num_images = batch_size(work.train, place % len(work.train))
                    seeded = partial(forked, own, devices=(fit.accelerator.device,))
                    loss, _ = step.take(run, inputs, targets, num_images=num_images, num_steps=place, seeded=seeded)
                    losses.append(float(loss))
                    is_over = has_run_away(losses)
                    told.on_event(Event.progress("range test", len(rates) if is_over else place + 1, len(rates)))
                    told.stop.raise_if_asked()
                    if is_over:
                        break
        finally:
            fit.accelerator.unwrap_model(run, keep_fp32_wrapper=False)
            fit.accelerator.free_memory()
    return curve_of(rates[: len(losses)], losses, is_cut=len(losses) < len(rates))


def _endless(batches: Batches, index: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield batches epoch after epoch."""
    for epoch in count():
        yield from batches.epoch(epoch, phase=index)


@contextmanager
def _left_as_it_was(fit: Fit) -> Iterator[None]:
    """Put back after the block what steps change: weights, buffers, gradients, modes, and the scaler."""
    model, scaler = fit.model, fit.accelerator.scaler
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    needs = [(weight, weight.requires_grad) for weight in model.parameters()]
    scaled = dict(scaler.state_dict()) if scaler is not None else {}
    try:
        yield
    finally:
        model.load_state_dict(kept)
        model.zero_grad(set_to_none=True)
        for module, is_training in modes:
            module.training = is_training
        for weight, is_needed in needs:
            weight.requires_grad_(is_needed)
        if scaler is not None and scaled:
            scaler.load_state_dict(scaled)


class NoKeeper:
    """Writes no checkpoints."""

    def last(self, model: nn.Module, optimiser: dict[str, Tensor], state: TrainState) -> None:
        pass

    def best(self, model: nn.Module, state: TrainState) -> None:
        pass
