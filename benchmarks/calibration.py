"""How often the interval of ECE holds the truth: a simulation. Letters: N images, K classes.

A calibrated classifier: labels are drawn from its own probabilities. A miscalibrated one: its logits are then doubled.
The truth is the binned ECE of 200,000 images, 0 where it is calibrated.

    python benchmarks/calibration.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.evaluation.metrics import measure

REPEATS, MANY = 100, 200_000


def drawn(count: int, num_classes: int, sharpen: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) of a classifier and the labels (N,)."""
    logits = 2 * torch.randn(count, num_classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits * sharpen, labels


def main() -> None:
    """Print the table of docs/metrics.md."""
    generator = torch.Generator().manual_seed(0)
    print("| images | classes | classifier | true ECE | mean value | mean width | held |")
    print("|---|---|---|---|---|---|---|")
    for sharpen, what in ((1.0, "calibrated"), (2.0, "overconfident")):
        for num_classes in (2, 10):
            truth = 0.0
            if sharpen != 1:
                truth = measure(*drawn(MANY, num_classes, sharpen, generator))["ece"].value
            for count in (50, 200, 1000):
                found = [measure(*drawn(count, num_classes, sharpen, generator))["ece"] for _ in range(REPEATS)]
                held = sum(one.low <= truth <= one.high for one in found)
                value = sum(one.value for one in found) / REPEATS
                width = sum(one.high - one.low for one in found) / REPEATS
                print(
                    f"| {count} | {num_classes} | {what} | {truth:.3f} | {value:.3f} |"
                    f" {width:.3f} | {held} / {REPEATS} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
