"""How fast each engine runs a frozen trunk on this machine, against torch in the same process.

    python benchmarks/engines.py mobilenetv2_035@160 resnet18@224

Random weights, batches of noise, the batch in which trunks run; images a second, the best of five passes.
"""

from __future__ import annotations

import argparse
import time

import timm
import torch
from torch import nn

from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.device import in_fast_layout
from finetune.errors import BackboneError
from finetune.features.divide import Trunk, divide
from finetune.features.engines import ENGINES, equip
from finetune.features.sources import trunk_batch
from finetune.strategy.strategies import Choice, phases

CPU = torch.device("cpu")
USUAL = (
    "mobilenetv2_035@160", "mobilenetv2_100@224", "efficientnet_b0@224", "resnet18@224", "deit_tiny_patch16_224@224",
)  # fmt: skip


def trunk_of(name: str, size: int) -> Trunk:
    """Return the trunk of a head-only phase."""
    model = in_fast_layout(timm.create_model(name, num_classes=10).eval(), CPU)
    groups = layer_groups(model)
    (phase,) = phases(Choice("head-only", epochs=1, lr=1e-3, layer_decay=1.0), groups)
    with freezing(model, phase.plan, groups):
        return divide(model, phase.plan, groups, image_size=(size, size)).trunk


def speed(trunk: nn.Module, images: torch.Tensor) -> float:
    """Return images a second, the best of five passes after a first."""
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        trunk(images)
        taken.append(time.perf_counter() - began)
    return len(images) / min(taken[1:])


def main() -> None:
    """Print one row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=USUAL)
    print(f"{torch.get_num_threads()} threads, batches of {trunk_batch(CPU)}\n")
    print("| network, pixels | torch | " + " | ".join(f"{name} (seconds to build)" for name in ENGINES) + " |")
    print("| --- |" + " --- |" * (1 + len(ENGINES)), flush=True)
    for network in parser.parse_args().networks:
        name, size = network.split("@")
        trunk = trunk_of(name, int(size))
        images = torch.randn(trunk_batch(CPU), 3, int(size), int(size))
        plain = speed(trunk, images)
        cells = [f"{plain:.0f}"]
        for engine in ENGINES:
            began = time.perf_counter()
            try:
                about = {"network": network}
                chosen, text = equip(trunk, images, asked=engine, num_images=1, precision="float32", about=about)
            except BackboneError:
                chosen, text = "torch", "not installed"
            building = time.perf_counter() - began
            if chosen == "torch":
                cells.append(text)
                continue
            found = speed(trunk, images)
            cells.append(f"{found:.0f}, {found / plain:.1f} times ({building:.1f})")
        print(f"| {name}, {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
