"""head-only and top-k against the plain PyTorch loop with the same layers frozen.

    python benchmarks/tutorial.py --data imgs --weights FOLDER [--image-size 160] [--epochs 10] [--seeds 3]

Same backbone, images, size, epochs, batch size and threads, one process, in turns. Ours starts with an
empty cache each time. Prints seconds of training (decoding and cache filling included) and val top1 of
the best epoch, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import finetune


def tutorial(data: Path, weights: str, *, size: int, epochs: int, seed: int, last: int) -> tuple[float, float]:
    """Train as the transfer-learning tutorial does: freeze, replace the head, SGD, step schedule."""
    torch.manual_seed(seed)
    model = timm.create_model(f"local-dir:{weights}", pretrained=True, num_classes=2)
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, size, size)}
    train = ImageFolder(str(data / "train"), timm.data.create_transform(**config, is_training=True, auto_augment=None))
    val = ImageFolder(str(data / "val"), timm.data.create_transform(**config))
    model.reset_classifier(len(train.classes))
    model.requires_grad_(False)
    trained = [model.get_classifier(), *list(model.blocks)[len(model.blocks) - last :]] + [model.conv_head] * (last > 0)
    parameters = [parameter.requires_grad_() for module in trained for parameter in module.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=7, gamma=0.1)
    best, began = 0.0, time.monotonic()
    for _ in range(epochs):
        model.train()
        for images, targets in DataLoader(train, batch_size=32, shuffle=True):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            optimiser.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            hits = [(model(i).argmax(1) == t).float() for i, t in DataLoader(val, batch_size=32)]
        best = max(best, float(torch.cat(hits).mean()))
    return time.monotonic() - began, best


def ours(data: Path, weights: str, *, size: int, epochs: int, seed: int, last: int) -> tuple[float, float]:
    """Train with finetune, its cache empty; time from the first decoded image to the last val."""
    with tempfile.TemporaryDirectory() as place:
        strategy = {"strategy": "top-k", "top_k": last} if last else {"strategy": "head-only"}
        began: list[float] = []
        ended: list[float] = []

        def watch(event: finetune.Event) -> None:
            began.append(time.monotonic()) if event.kind == "phase" else None
            ended.append(time.monotonic()) if event.kind == "epoch" else None

        result = finetune.run(
            data, weights=weights, image_size=size, epochs=epochs, seed=seed, batch_size=32, out=f"{place}/run",
            on_event=watch, overrides={"train.patience": "none", "cache.folder": place}, **strategy,
        )  # fmt: skip
        return ended[-1] - began[0], result.metrics["val"]["top1"]["value"]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="with train/ and val/")
    parser.add_argument("--weights", required=True, help="a timm folder of a mobilenet")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{chosen.data.name}, {chosen.image_size} px, {chosen.epochs} epochs, {torch.get_num_threads()} threads")
    print("| what | who | seconds (median) | val top1 (mean) | times faster |\n| --- | --- | --- | --- | --- |")
    for name, last in (("head-only", 0), ("top-1", 1)):
        rows: dict[str, list[tuple[float, float]]] = {"tutorial loop": [], "finetune": []}
        for seed in range(chosen.seeds):
            numbers = {"size": chosen.image_size, "epochs": chosen.epochs, "seed": seed, "last": last}
            rows["tutorial loop"].append(tutorial(chosen.data, chosen.weights, **numbers))
            rows["finetune"].append(ours(chosen.data, chosen.weights, **numbers))
        slow = statistics.median(seconds for seconds, _ in rows["tutorial loop"])
        for who, found in rows.items():
            middle = statistics.median(seconds for seconds, _ in found)
            accuracy = statistics.mean(top1 for _, top1 in found)
            print(f"| {name} | {who} | {middle:.1f} | {accuracy:.3f} | {slow / middle:.1f} |", flush=True)


if __name__ == "__main__":
    main()
