"""A freeze plan that no strategy has, trained by a loop of one's own on what the frozen part has computed once.

    python examples/own_loop.py [FOLDER]

The head is trained, and the norms of the last two layer groups. Which part of the network that leaves frozen is
derived from the plan; the rest takes what it yields. Needs no network and no data.
Letters: N images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import finetune
from finetune.backbone.freeze import freezing
from finetune.checkpoint.saved import write_model
from finetune.features.divide import Trunk, divide
from finetune.features.sources import TrunkBatches
from finetune.prepare.inputs import Inputs, read_inputs
from finetune.prepare.passes import plain_batches
from finetune.types import FreezePlan, GroupPlan, LayerGroup, Split

Boundary = tuple[Tensor, ...]  # what crosses from the trunk into the tail, each (N, ...)


def norms_of_the_last_two(groups: tuple[LayerGroup, ...]) -> FreezePlan:
    """Return a plan: the head whole, of the two groups before it the norms, nothing else."""
    trained = {groups[-1].name: "all", groups[-2].name: "norm", groups[-3].name: "norm"}
    return FreezePlan(tuple(GroupPlan(group.name, trains=trained.get(group.name, "none")) for group in groups))


def through(trunk: Trunk, inputs: Inputs, split: Split) -> tuple[Boundary, Tensor]:
    """Return what the trunk yields for the images of a split, and their class indices (N,)."""
    images = plain_batches(inputs, inputs.manifest.split(split))
    rows = list(TrunkBatches(trunk, images, autocast=inputs.compute.autocast).epoch())
    columns = zip(*(boundary for boundary, _ in rows), strict=True)
    return tuple(torch.cat(column) for column in columns), torch.cat([targets for _, targets in rows])


def fit(tail: nn.Module, boundary: Boundary, targets: Tensor, *, epochs: int = 10, lr: float = 3e-3) -> None:
    """Train the tail: a loop as in any tutorial."""
    optimiser = torch.optim.AdamW([weight for weight in tail.parameters() if weight.requires_grad], lr=lr)
    tail.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(targets)).split(16):
            loss = nn.functional.cross_entropy(tail([part[rows] for part in boundary]), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")


def main(place: Path) -> None:
    """Train, measure, save and load in an empty folder."""
    torch.manual_seed(0)
    finetune.write_sample(place / "imgs", per_class=20)
    settings = {"data": {"path": str(place / "imgs")}, "backbone": {"name": "embedded", "image_size": 96}}
    inputs = read_inputs(finetune.Recipe.model_validate(settings))
    model, groups = inputs.backbone.model, inputs.backbone.groups
    plan = norms_of_the_last_two(groups)

    with freezing(model, plan, groups):
        divided = divide(model, plan, groups, image_size=inputs.backbone.preprocessing.image_size)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        print(f"frozen: {', '.join(plan.frozen)}; trained: {trained:,} numbers; kept of an image: {divided.shapes}")
        fit(divided.tail, *through(divided.trunk, inputs, "train"))
        boundary, targets = through(divided.trunk, inputs, "val")
        with torch.no_grad():
            right = divided.tail.eval()(boundary).argmax(1) == targets
        print(f"val top1 {right.float().mean():.2f} of {len(targets)} images")

    write_model(place / "model", inputs.backbone, inputs.manifest.classes)  # a plain timm folder
    new = finetune.write_sample(place / "new", per_class=1, seed=1)
    for prediction in finetune.load(place / "model").predict(new):
        print(f"{Path(prediction.file).name}: {prediction.label}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-own-loop"))
