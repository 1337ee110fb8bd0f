"""How long a step of full training takes with norms in their convolutions and freed memory kept, against without.

    python benchmarks/training_step.py mobilenetv2_035@160 resnet50@224 --batch-size 32

Random weights, noise, AdamW, statistics that stand still. Milliseconds, the median of some steps, with norms folded
and not in turns: first as malloc does by default, then with freed memory kept, since some of that stays so for good.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.device import in_fast_layout
from finetune.features.folding import folded_run
from finetune.heap import freed_memory_kept
from finetune.strategy.strategies import Choice, phases

USUAL = (
    "mobilenetv2_035@160", "mobilenetv2_100@224", "mobilenetv3_large_100@224", "tf_efficientnet_lite0@224",
    "efficientnet_b0@224", "regnety_002@224", "resnet18@224", "resnet50@224", "convnext_atto@224",
    "deit_tiny_patch16_224@224",
)  # fmt: skip


def milliseconds(network: str, *, batch: int, steps: int) -> list[float]:
    """Return what a step takes: as it is, folded, as it is with memory kept, folded with memory kept."""
    name, size = network.split("@")
    model = in_fast_layout(timm.create_model(name, num_classes=10), torch.device("cpu"))
    groups = layer_groups(model)
    (phase,) = phases(Choice("full", epochs=1, lr=1e-5, layer_decay=1.0), groups)
    with freezing(model, phase.plan, groups) as hold:
        runs: list[nn.Module] = [model, folded_run(model, phase.plan, groups) or model]
        hold(runs[1])
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
        images = torch.randn(batch, 3, int(size), int(size)).to(memory_format=torch.channels_last)
        targets = torch.randint(10, (batch,))
        taken = []
        for kept in (nullcontext(), freed_memory_kept()):
            with kept:
                rounds = [[_step(run, optimiser, images, targets) for run in runs] for _ in range(steps + 1)]
            taken += [1e3 * median(column) for column in zip(*rounds[1:], strict=True)]
        return taken


def _step(run: nn.Module, optimiser: torch.optim.Optimizer, images: torch.Tensor, targets: torch.Tensor) -> float:
    began = time.perf_counter()
    cross_entropy(run.train()(images), targets).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    optimiser.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    """Print one row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=USUAL)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, batches of {asked.batch_size}\n")
    print("| network, pixels | ms a step | folded | memory kept | both |\n| --- | --- | --- | --- | --- |", flush=True)
    for network in asked.networks:
        plain, *others = milliseconds(network, batch=asked.batch_size, steps=asked.steps)
        cells = [f"{taken:,.0f}, {plain / taken:.2f} times faster" for taken in others]
        print(f"| {network.replace('@', ', ')} | {plain:,.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
