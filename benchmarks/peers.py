"""finetune against its peers: the plain PyTorch tutorial loop, fastai's vision_learner, timm's training loop.

    python benchmarks/peers.py --data imgs --weights FOLDER [--case head-only ...] [--image-size 160] [--seeds 3]
        [--timm-script train.py]

Same backbone, images, size, epochs, batch size and threads (torch's number); in turns, in one process but for
timm's; ours with an empty cache each time. Prints seconds from the first decoded image to the last val, top1 of the
best epoch on val, and how many times faster ours is, by image. fastai takes part where it is installed. timm's
train.py is no part of its package: it takes part where it is named, with its defaults but for colour jitter and
warm-up, which ours has not either. It leaves an epoch's last batch away where that is not full, and writes a
checkpoint each epoch: https://github.com/huggingface/pytorch-image-models/blob/main/train.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import finetune

PEERS_WORKERS = 2
MIN_CROP = 0.35  # of finetune's default augmentation, for all


@dataclass(frozen=True, slots=True)
class Job:
    """What everybody does."""

    data: Path
    weights: Path
    size: int
    epochs: int
    batch: int
    seed: int
    strategy: str
    script: Path | None

    @property
    def num_train(self) -> int:
        return sum(1 for file in (self.data / "train").rglob("*") if file.is_file())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training took, how good it was, and of how many images an epoch was, where that is not all of them."""

    seconds: float
    top1: float
    waited: float = 0.0  # share of the steps' time
    num_images: int | None = None


def tutorial(job: Job) -> Outcome:
    """Train as the transfer-learning tutorial does: freeze, replace the head, SGD, step schedule."""
    torch.manual_seed(job.seed)
    model = timm.create_model(f"local-dir:{job.weights}", pretrained=True, num_classes=2)
    train, val = _folders(job, model)
    model.reset_classifier(len(train.classes))
    _freeze(model, last=1 if job.strategy == "top-k" else 0)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=7, gamma=0.1)
    best, began = 0.0, time.monotonic()
    for _ in range(job.epochs):
        model.train()
        for images, targets in DataLoader(train, batch_size=job.batch, shuffle=True, num_workers=PEERS_WORKERS):
            optimiser.zero_grad()
            cross_entropy(model(images), targets).backward()
            optimiser.step()
        schedule.step()
        best = max(best, _top1(model, DataLoader(val, batch_size=job.batch, num_workers=PEERS_WORKERS)))
    return Outcome(time.monotonic() - began, best)


def fastai(job: Job) -> Outcome:
    """Train the head of fastai's vision_learner, frozen, with its defaults."""
    from fastai.vision.all import RandomResizedCrop, set_seed

    set_seed(job.seed)
    crop = RandomResizedCrop(job.size, min_scale=MIN_CROP)
    learner = fastai_learner(job.data, job.weights, batch_size=job.batch, item_tfms=crop)
    began = time.monotonic()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(job.epochs)
    return Outcome(time.monotonic() - began, max(float(row[-1]) for row in learner.recorder.values))


def fastai_learner(
    data: Path, weights: Path, *, batch_size: int, item_tfms: Any, batch_tfms: Sequence[Any] = ()
) -> Any:
    """Return fastai's vision_learner on data with train/ and val/: local weights, frozen, under a head of its own."""
    from fastai.vision.all import (  # type: ignore[import-not-found]
        ImageDataLoaders,
        Normalize,
        accuracy,
        vision_learner,
    )

    config = json.loads((weights / "config.json").read_text())
    stats = config["pretrained_cfg"]
    dls = ImageDataLoaders.from_folder(
        data, train="train", valid="val", bs=batch_size, num_workers=PEERS_WORKERS, device=torch.device("cpu"),
        item_tfms=item_tfms, batch_tfms=[*batch_tfms, Normalize.from_stats(stats["mean"], stats["std"])],
    )  # fmt: skip
    arguments = config.get("model_args", {})
    learner = vision_learner(
        dls, config["architecture"], pretrained=False, normalize=False, metrics=accuracy, **arguments
    )
    body, kept = learner.model[0].model, load_file(weights / "model.safetensors")
    found = body.load_state_dict({name: kept[name] for name in body.state_dict() if name in kept}, strict=False)
    assert not found.missing_keys, found.missing_keys
    learner.freeze()
    return learner


def timm_script(job: Job) -> Outcome:
    """Train everything by timm's own train.py, with its defaults but for warm-up and colour jitter."""
    return _by_script(job)


def timm_script_channels_last(job: Job) -> Outcome:
    """Do the same with the channels last in memory, which is an option of it."""
    return _by_script(job, "--channels-last")


def _by_script(job: Job, *more: str) -> Outcome:
    """Train by timm's train.py; time from its first epoch to its last val, by what it prints."""
    assert job.script is not None
    began = ended = top1 = 0.0
    num_batches = 0
    with tempfile.TemporaryDirectory() as place:
        options = ("--scale", str(MIN_CROP), "1", "--color-jitter", "0", *more)
        for now, line in timm_lines(
            job.script, job.data, job.weights, image_size=job.size, batch_size=job.batch, epochs=job.epochs,
            seed=job.seed, out=Path(place), options=options,
        ):  # fmt: skip
            if line.startswith("Scheduled epochs"):
                began = now
            elif line.startswith("Test: ["):
                ended = now
            elif step := re.match(r"Train: \d+ \[ *\d+/(\d+)", line):
                num_batches = int(step[1])  # the last one, where it is smaller, is dropped
            elif best := re.match(r"\*\*\* Best metric: ([\d.]+)", line):
                top1 = float(best[1]) / 100
    assert began and ended, f"{job.script} prints other lines than it did"
    return Outcome(ended - began, top1, num_images=num_batches * job.batch)


def timm_lines(
    script: Path, data: Path, weights: Path, *, image_size: int, batch_size: int, epochs: int, seed: int, out: Path,
    options: Sequence[str],
) -> Iterator[tuple[float, str]]:  # fmt: skip
    """Run timm's train.py, without warm-up, on data with train/ and val/; yield its lines, each with the time it came.

    Raises:
        SystemExit: it failed.
    """
    num_classes = sum(1 for place in (data / "train").iterdir() if place.is_dir())
    command = [
        sys.executable, "-u", str(script), "--data-dir", str(data), "--val-split", "val",
        "--model", f"local-dir:{weights}", "--pretrained", "--num-classes", str(num_classes),
        "--img-size", str(image_size), "--batch-size", str(batch_size), "--epochs", str(epochs),
        "--workers", str(PEERS_WORKERS), "--device", "cpu", "--no-prefetcher", "--seed", str(seed),
        "--warmup-epochs", "0", "--output", str(out), "--experiment", "timm", *options,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    said: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            yield time.monotonic(), line
    if process.returncode:
        raise SystemExit(f"{script} failed: {' '.join(command)}\n{''.join(said)}")


class Watch:
    """Takes the events of a run of finetune, and has the seconds from its first decoded image to its last val."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def __call__(self, event: finetune.Event) -> None:
        """Take an event."""
        if event.facts.get("task") == "scan images":
            self.began = self.began or time.monotonic()
        if event.kind == "epoch":
            self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def ours(job: Job) -> Outcome:
    """Train with finetune, its cache empty; time from the first decoded image to the last val."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as place:
        result = finetune.run(
            job.data, weights=job.weights, image_size=job.size, epochs=job.epochs, seed=job.seed,
            batch_size=job.batch, strategy=job.strategy, out=f"{place}/run", on_event=watch,
            overrides={"train.patience": "none", "cache.folder": place, "augment.min_crop": MIN_CROP,
                       "train.threads": torch.get_num_threads()},
        )  # fmt: skip
        rows = json.loads((result.folder / "timing.json").read_text())["training"][1:]
    waited = sum(row["waited"] for row in rows) / max(sum(row["seconds"] for row in rows), 1e-9)
    return Outcome(watch.seconds, result.metrics["val"]["top1"]["value"], waited)


CASES: dict[str, tuple[int, tuple[Callable[[Job], Outcome], ...]]] = {
    "head-only": (10, (tutorial, fastai, ours)),
    "top-k": (10, (tutorial, ours)),
    "full": (5, (timm_script, timm_script_channels_last, ours)),
}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="a timm folder of a mobilenet")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timm-script", type=Path, help="timm's train.py, for the case full")
    chosen = parser.parse_args()
    print(f"{chosen.data.name}, {chosen.image_size} px, batch 32, {torch.get_num_threads()} threads")
    print("| what | who | seconds (median) | val top1 (mean) | ms an image and epoch | waited | times faster |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for case in chosen.case:
        epochs, people = CASES[case]
        people = tuple(who for who in people if _is_there(who, chosen.timm_script))
        found: dict[str, list[Outcome]] = {who.__name__: [] for who in people}
        for seed in range(chosen.seeds):
            job = Job(chosen.data, chosen.weights, chosen.image_size, epochs, 32, seed, case, chosen.timm_script)
            for who in people:
                found[who.__name__].append(who(job))
        per_image = {name: _per_image(job, rows) for name, rows in found.items()}
        for name, rows in found.items():
            middle = statistics.median(outcome.seconds for outcome in rows)
            waited = f"{statistics.mean(outcome.waited for outcome in rows):.1%}" if name == "ours" else ""
            accuracy = statistics.mean(outcome.top1 for outcome in rows)
            print(
                f"| {case}, {epochs} epochs | {name} | {middle:.1f} | {accuracy:.3f} | {per_image[name]:.1f} | {waited}"
                f" | {per_image[name] / per_image['ours']:.1f} |",
                flush=True,
            )


def _per_image(job: Job, rows: Sequence[Outcome]) -> float:
    """Return the milliseconds that an image and epoch took, in the median of some runs."""
    seconds = statistics.median(outcome.seconds for outcome in rows)
    return 1000 * seconds / job.epochs / (rows[0].num_images or job.num_train)


def _is_there(who: Callable[[Job], Outcome], script: Path | None) -> bool:
    if who in (timm_script, timm_script_channels_last):
        return script is not None
    return who is not fastai or find_spec("fastai") is not None


def _folders(job: Job, model: nn.Module) -> tuple[ImageFolder, ImageFolder]:
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, job.size, job.size)}
    seen = timm.data.create_transform(
        **config, is_training=True, auto_augment=None, color_jitter=None, scale=(MIN_CROP, 1)
    )
    return (
        ImageFolder(str(job.data / "train"), seen),
        ImageFolder(str(job.data / "val"), timm.data.create_transform(**config)),
    )


def _freeze(model: nn.Module, *, last: int) -> None:
    """Freeze all but the head and, for top-1, the last stage."""
    model.requires_grad_(False)
    trained = [model.get_classifier(), *list(model.blocks)[len(model.blocks) - last :]] + [model.conv_head] * (last > 0)
    for module in trained:
        module.requires_grad_(True)


@torch.no_grad()
def _top1(model: nn.Module, batches: DataLoader) -> float:
    model.eval()
    return float(torch.cat([(model(i).argmax(1) == t).float() for i, t in batches]).mean())


if __name__ == "__main__":
    main()
