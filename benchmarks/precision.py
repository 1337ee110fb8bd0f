"""What keeping features in half precision costs in accuracy.

    python benchmarks/precision.py --data imgs [--data more] --weights FOLDER [--weights more] [--image-size 160]

One pass of the frozen backbone; a head is solved on what the cache would hold in float32, bfloat16 and
float16, and judged on val kept in the same precision. Prints val top1, the images whose class changes
against float32, and the largest change of a logit as a share of the largest logit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from finetune.backbone.groups import head_modules
from finetune.features.extract import before_head, extract
from finetune.features.probe import fit_probe
from finetune.features.store import DTYPES
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import read_inputs
from finetune.prepare.passes import plain_batches
from finetune.types import Manifest


def features(data: str, weights: str, size: int) -> tuple[Manifest, dict[str, tuple[Tensor, Tensor]]]:
    """Return the manifest, and features (N, D) with class indices (N,) of train and val."""
    settings = {"data": data, "weights": weights, "image_size": size, "strategy": "linear-probe"}
    recipe = recipe_of(None, settings=settings)
    inputs = read_inputs(recipe)
    manifest, backbone = inputs.manifest, inputs.backbone
    found = {}
    for split in ("train", "val"):
        batches = plain_batches(inputs, manifest.split(split))
        tap = before_head(backbone.model, head_modules(backbone.model)[0])
        (kept,), targets = extract(tap, batches.epoch())
        found[split] = kept, targets
    return manifest, found


def main() -> None:
    """Print one row for each data set, backbone and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--weights", action="append", required=True)
    parser.add_argument("--image-size", type=int, default=160)
    chosen = parser.parse_args()
    print("| data | backbone | precision | val top1 | classes changed | largest change of a logit |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for data in chosen.data:
        for weights in chosen.weights:
            manifest, found = features(data, weights, chosen.image_size)
            exact: Tensor | None = None
            for name, kind in DTYPES.items():
                (train, wanted), (val, truth) = ((kept.to(kind).float(), t) for kept, t in found.values())
                probe = fit_probe(train, wanted, num_classes=len(manifest.classes), seed=0)
                logits = val @ probe.weight.T + probe.bias
                exact = logits if exact is None else exact
                changed = int((logits.argmax(1) != exact.argmax(1)).sum())
                moved = float((logits - exact).abs().max() / exact.abs().max())
                top1 = float((logits.argmax(1) == truth).float().mean())
                row = (
                    Path(data).name,
                    Path(weights).name,
                    name,
                    f"{top1:.4f}",
                    f"{changed} of {len(truth)}",
                    f"{moved:.1e}",
                )
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
