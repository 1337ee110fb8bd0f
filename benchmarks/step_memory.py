"""What a training step takes of memory on this machine, against what is counted for it on paper.

    python benchmarks/step_memory.py resnet50 --batch-size 16 --precision float32

One step of `full` (AdamW) with random weights, in this process: on a CPU the peak of what torch allocates (its
profiler sees every block) and of the process (VmHWM); on a GPU the peak of torch's allocator. Without workspaces of
kernels, which torch's CPU allocator doesn't see.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from finetune import recipe as recipes
from finetune.backbone.blank import channels_of
from finetune.backbone.freeze import freezing
from finetune.checkpoint.state import TrainState
from finetune.device import Compute
from finetune.features.folding import folded_run
from finetune.prepare.inputs import Inputs, architecture_of, load_backbone, skeleton_of
from finetune.prepare.prepared import Prepared, planned_run
from finetune.prepare.resolve import folds_norms, resolve_numbers
from finetune.train.fit import Fit
from finetune.train.ledger import step_held
from finetune.train.moving import moving
from finetune.train.phases import pretrained_weights
from finetune.train.settings import FitSettings
from finetune.train.step import Step
from finetune.types import NEVER, Manifest, ignore

NUM_CLASSES = 1000


def planned(network: str, strategy: str, precision: str, device: str) -> Prepared:
    """Return what would be trained, with random weights."""
    keys = {"backbone.name": network, "backbone.pretrained": False, "strategy.name": strategy}
    recipe = recipes.load(overrides={**keys, "train.precision": precision, "train.device": device})
    compute = Compute.of(recipe.train)
    of = architecture_of(recipe)
    backbone = load_backbone(recipe, of, compute, num_classes=NUM_CLASSES)
    recipe = resolve_numbers(recipe, backbone, None, num_train=1000)
    recipe = recipes.update(recipe, {"train.fold_norms": folds_norms(recipe, compute.device)})
    manifest = Manifest("", tuple(map(str, range(NUM_CLASSES))), ())
    return planned_run(Inputs(recipe, manifest, backbone, None, compute), recipe)


def measured(prepared: Prepared, batch: int) -> dict[str, int]:
    """Return the bytes at the peak of the second of two steps, by how they were seen."""
    model, groups, phase = prepared.backbone.model, prepared.backbone.groups, prepared.phases[-1]
    device = prepared.compute.device
    settings = replace(FitSettings.of(prepared.recipe), micro_batch=batch)
    accelerator = prepared.compute.accelerator()
    fit = Fit(model, groups, lambda _: None, settings, accelerator, None, ignore, NEVER)  # type: ignore[arg-type, return-value]
    with freezing(model, phase.plan, groups) as hold:
        folds = prepared.recipe.train.fold_norms is True
        run = (folded_run(model, phase.plan, groups) if folds else None) or model
        hold(run)
        if any(item.trains == "lora" for item in phase.plan.groups):
            fit.anchors = pretrained_weights(fit, [phase])
        optimiser, averages, adapters = moving(fit, phase, TrainState(), {})
        step = Step(model, optimiser, settings, accelerator, averages, adapters)
        images = torch.rand(batch, channels_of(model), *prepared.backbone.preprocessing.image_size, device=device)
        targets = torch.zeros(batch, dtype=torch.long, device=device)
        run.train()
        delivered = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]

        def take() -> None:
            step.take(run, images, targets, num_steps=0, seeded=nullcontext)

        take()
        held = [*model.parameters(), *model.buffers(), *delivered, *fit.anchors.values(), images]
        held += step.trained if adapters else []
        held += [state for part in optimiser.state.values() for state in part.values() if torch.is_tensor(state)]
        before = sum(tensor.numel() * tensor.element_size() for tensor in held)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            take()
            return {"allocator": torch.cuda.max_memory_allocated()}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            take()
        return {"allocator": before + _peak(seen), "process": _high_water()}


def _peak(seen: torch.profiler.profile) -> int:
    """Return the most that was allocated on top of what was there."""
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    blocks = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, size in blocks:
        now += size
        most = max(most, now)
    return most


def _high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--strategy", default="full")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    prepared = planned(asked.network, asked.strategy, asked.precision, asked.device)
    skeleton = skeleton_of(prepared.recipe, num_classes=NUM_CLASSES)
    held = step_held(skeleton, prepared.phases[-1], prepared.recipe, batch=asked.batch_size, precision=asked.precision)
    empty = _high_water()
    print(f"{asked.network} {asked.strategy} {asked.precision}, {asked.batch_size} images", asdict(held))
    for how, most in measured(prepared, asked.batch_size).items():
        most -= empty - held.weights if how == "process" else 0
        print(f"  {how}: {most / 2**20:,.0f} MiB; counted {held.total / 2**20:,.0f}, {held.total / most:.2f} of it")


if __name__ == "__main__":
    main()
