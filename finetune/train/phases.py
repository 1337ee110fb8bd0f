"""The phases of a run, one after the other, each by its solver. Letters: N images, D features, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.freeze import freezing, reinitialise
from finetune.backbone.heads import linear_head
from finetune.backbone.staged import StagedClassifier
from finetune.checkpoint.state import Checkpoint, TrainState, restore_model
from finetune.errors import BackboneError
from finetune.features.extract import before_head, extract
from finetune.features.probe import Probe, fit_probe
from finetune.optim.initialisers import initialise
from finetune.randomness import derive, forked
from finetune.train.fit import Fit, Work, renewed, renewed_parameters
from finetune.train.loop import close_epoch, fit_phase, stoppable
from finetune.types import Event, Phase


def fit_phases(fit: Fit, phases: Sequence[Phase], *, fresh: nn.Module, resumed: Checkpoint | None = None) -> TrainState:
    """Run every phase to its end, from a checkpoint if one is given, and return the final state.

    `fresh` is the same network when new, for what is re-initialised.
    """
    state, optimiser_state = (resumed.state, resumed.optimiser) if resumed else (TrainState(), {})
    is_adapted = any(item.trains == "lora" for phase in phases for item in phase.plan.groups)
    if fit.settings.regularise.l2_sp or is_adapted:
        fit.anchors = pretrained_weights(fit, phases)
    if resumed:
        restore_model(fit.model, resumed.model)
    for index in range(state.phase, len(phases)):
        phase = phases[index]
        _announce(fit, phase, index, len(phases))
        if not state.is_initialised:
            reinitialise(fit.model, fresh, fit.groups, renewed(phase))
            with forked(derive(fit.settings.seed, "initialise", index)):
                initialise(fit.model, renewed_parameters(fit, phase), fit.settings.initialiser)
            state.is_initialised = True
        if phase.solver == "lbfgs":
            solve_phase(fit, phase, state)
        else:
            fit_phase(fit, phase, state, optimiser_state=optimiser_state)
        optimiser_state = {}
        state.enter_phase(index + 1)
        fit.keeper.last(fit.model, {}, state)
        fit.stop.raise_if_asked()
    return state


def pretrained_weights(fit: Fit, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """Return the weights that no phase re-initialises, as they are before any step."""
    new = {name for phase in phases for name in renewed_parameters(fit, phase)}
    return {name: weight.detach().clone() for name, weight in fit.model.named_parameters() if name not in new}


def solve_phase(fit: Fit, phase: Phase, state: TrainState) -> None:
    """Set the head to a regression on its inputs, solved to convergence: logistic, or linear for numbers."""
    head = linear_head(fit.model)
    if head is None:
        raise BackboneError("the head of this network is not one linear layer, so it cannot be solved")
    with freezing(fit.model, phase.plan, fit.groups) as hold:
        work = fit.work_of(phase)
        hold(work.run)
        tap = before_head(work.run, head)
        autocast = fit.accelerator.autocast
        views = [extract(tap, stoppable(fit, work.train.epoch(view)), autocast=autocast) for view in range(work.views)]
    features = torch.cat([columns[0] for columns, _ in views])
    targets = fit.objective.seen(torch.cat([shown for _, shown in views]))
    units = range(work.train.num_images) if fit.units is None else fit.units
    class_weights = fit.settings.class_weights
    widths = fit.model.widths if isinstance(fit.model, StagedClassifier) else None
    is_selective = widths is not None and len(widths) > 1
    probe = ranks.agreed(
        lambda: fit_probe(
            features,
            targets,
            num_classes=head.out_features,
            seed=fit.settings.seed,
            is_selective=is_selective,
            units=[*units] * work.views,
            weights=None if class_weights is None else class_weights.cpu()[targets],
            family=fit.objective.family,
            widths=widths,
            whiten=fit.settings.whiten,
            epsilon=fit.settings.whiten_epsilon,
        )
    )
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    fit.on_event(Event.message(_told(fit, work, probe, is_selective=is_selective)))
    _sum_up(fit, state, features @ probe.weight.T + probe.bias, targets)
    close_epoch(fit, work, phase, state, lr=0.0)


def _told(fit: Fit, work: Work, probe: Probe, *, is_selective: bool) -> str:
    has_one_class = fit.objective.family.has_one_class
    judged = f"cross-validated {f'top1 {probe.top1:.3f}' if has_one_class else f'loss {probe.loss:.4f}'}"
    if not probe.judged:
        judged = "not cross-validated: no class has two independent train images"
    elif probe.judged < 1:
        judged += f" (both on {probe.judged:.0%} of the classes)"
    shown_as = f" in {work.views} views" if work.views > 1 else ""
    kept = f", {probe.share:.0%} of the features kept" if is_selective else ""
    return f"head solved on {work.train.num_images} images{shown_as}, L2 strength {probe.strength:g}, {judged}{kept}"


def _sum_up(fit: Fit, state: TrainState, logits: Tensor, targets: Tensor) -> None:
    """Enter the logits (N, K) of the solved head on train into the sums of the epoch."""
    hits, summed = fit.objective.hits, fit.objective.summed
    state.num_seen, state.num_correct, state.loss_sum = ranks.agreed(
        lambda: (len(targets), int(hits(logits, targets)), summed(logits, targets))
    )


def _announce(fit: Fit, phase: Phase, index: int, total: int) -> None:
    facts = {
        "index": index,
        "total": total,
        "name": phase.name,
        "epochs": phase.epochs,
        "solver": phase.solver,
        "trained": list(phase.plan.trained),
    }
    fit.on_event(Event("phase", facts))
