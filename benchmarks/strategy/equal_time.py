"""Accuracy at equal time: `finetune run` by its defaults against fastai and timm's own train.py, on unseen images.

    python benchmarks/strategy/equal_time.py --data imgs more --weights FOLDER --timm-script train.py --seeds 3

For every data set, size (train images of a class, val among them) and seed `finetune run` decides and trains, by its
defaults; the seconds of all of it are what the others get. Each of them is given the same images, backbone, image size
and threads, and as many epochs as it needs to train for at least that long, by what one epoch takes it:

    fastai            fine_tune with its defaults (one frozen epoch, then all layers), images resized
    fastai, book      its book's recipe: presizing and augmentation of batches, frozen, then all layers at lower rates
    timm              train.py with its defaults but for warm-up, which is longer than training here
    timm, fine-tuned  its options for fine-tuning: AdamW, layer-wise decay, a small head, channels last

Their loading, and what the timing of an epoch takes, is not counted. Val is a fifth of the train images for all; top1
is that on test images, the same for all. Rows are appended to a file, so that a stopped bench goes on where it was;
`--table` prints what was measured. Source of train.py:
https://github.com/huggingface/pytorch-image-models/blob/main/train.py
"""

from __future__ import annotations

import argparse
import math
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from measure import keep, lay, options_of, rows_in
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import finetune

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import fastai_learner, timm_lines

VAL_SHARE = 0.2
MOST_EPOCHS = 300
TIMED_EPOCHS = 3
OURS = "finetune"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """What everybody trains on: a folder with train/ and test/, and the same again with a fifth as val/."""

    folder: Path
    divided: Path
    weights: Path
    image_size: int
    seed: int
    place: Path
    script: Path | None

    @property
    def classes(self) -> list[str]:
        return sorted(place.name for place in (self.folder / "train").iterdir())

    @property
    def batch_size(self) -> int:
        """64, as fastai does, or fewer where an epoch would have less than two full batches."""
        num_train = sum(1 for file in (self.divided / "train").rglob("*") if file.is_file())
        return max(4, min(64, 2 ** int(math.log2(max(1, num_train / 2)))))


def ours(job: Job) -> Figures:
    """Train by the defaults."""
    out = job.place / "run"
    shutil.rmtree(out, ignore_errors=True)
    overrides = {"cache.folder": str(job.place / "cache"), "split.seed": job.seed}
    shutil.rmtree(job.place / "cache", ignore_errors=True)
    began = time.monotonic()
    result = finetune.run(
        job.folder, weights=job.weights, image_size=job.image_size, seed=job.seed, out=out, overrides=overrides
    )
    seconds = time.monotonic() - began
    return {"seconds": seconds, **{name: result.metrics["test"][name]["value"] for name in ("top1", "nll", "ece")}}


def fastai(job: Job, seconds: float) -> Figures:
    """Train by fine_tune with its defaults."""
    from fastai.vision.all import Resize

    def train(learner: Any, epochs: int) -> None:
        learner.fine_tune(epochs)

    return _by_fastai(job, seconds, train, item_tfms=Resize(job.image_size))


def fastai_book(job: Job, seconds: float) -> Figures:
    """Train as fastai's book does (chapter 5): a fifth of the epochs frozen, then all layers, with rates by layer."""
    from fastai.vision.all import Resize, aug_transforms

    def train(learner: Any, epochs: int) -> None:
        learner.fit_one_cycle(max(1, epochs // 5), 3e-3)
        learner.unfreeze()
        learner.fit_one_cycle(max(1, epochs - epochs // 5), lr_max=slice(1e-6, 1e-4))

    augmented = aug_transforms(size=job.image_size, min_scale=0.75)
    return _by_fastai(job, seconds, train, item_tfms=Resize(2 * job.image_size), batch_tfms=augmented)


def _by_fastai(job: Job, seconds: float, train: Callable[[Any, int], None], **transforms: Any) -> Figures:
    from fastai.vision.all import set_seed

    timed = _learner(job, transforms)
    epochs = _epochs_for(seconds, _seconds_of(lambda: timed.fine_tune(TIMED_EPOCHS, freeze_epochs=0)) / TIMED_EPOCHS)
    set_seed(job.seed)
    learner = _learner(job, transforms)
    spent = _seconds_of(lambda: train(learner, epochs))
    test = learner.dls.test_dl(sorted((job.folder / "test").rglob("*.*")), with_labels=True)
    probabilities, targets = learner.get_preds(dl=test)
    top1 = float((probabilities.argmax(1) == targets).float().mean())
    return {"seconds": spent, "epochs": epochs, "top1": top1}


def _learner(job: Job, transforms: dict[str, Any]) -> Any:
    """Return fastai's learner, which says nothing."""
    learner = fastai_learner(job.divided, job.weights, batch_size=job.batch_size, **transforms)
    learner.path = job.place
    learner.remove_cb(next(cb for cb in learner.cbs if type(cb).__name__ == "ProgressCallback"))
    learner.logger = lambda _: None
    return learner


def timm_script(job: Job, seconds: float) -> Figures:
    """Train by timm's train.py with its defaults."""
    return _by_script(job, seconds)


def timm_script_fine_tuned(job: Job, seconds: float) -> Figures:
    """Train by its options for fine-tuning; its docs give no recipe for few images."""
    return _by_script(
        job, seconds, "--opt", "adamw", "--lr", "5e-4", "--weight-decay", "0.05", "--layer-decay", "0.75",
        "--head-init-scale", "0.001", "--channels-last",
    )  # fmt: skip


def _by_script(job: Job, seconds: float, *more: str) -> Figures:
    ends, _ = _script(job, TIMED_EPOCHS, *more)
    epoch = (ends[-1] - ends[0]) / (TIMED_EPOCHS - 1)
    epochs = _epochs_for(seconds - (ends[0] - epoch), epoch)  # the first has its workers to start
    ends, checkpoint = _script(job, epochs, *more)
    model = timm.create_model(f"local-dir:{job.weights}", pretrained=True, num_classes=len(job.classes))
    with torch.serialization.safe_globals([argparse.Namespace]):  # the script's arguments are in it too
        model.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"])
    return {"seconds": ends[-1], "epochs": epochs, "top1": _top1(model.eval(), job)}


def _script(job: Job, epochs: int, *more: str) -> tuple[list[float], Path]:
    """Run train.py; return when each epoch's val ended, in seconds from its beginning, and its best model."""
    assert job.script is not None
    out = job.place / "timm"
    shutil.rmtree(out, ignore_errors=True)
    began, ends = 0.0, list[float]()
    for now, line in timm_lines(
        job.script, job.divided, job.weights, image_size=job.image_size, batch_size=job.batch_size, epochs=epochs,
        seed=job.seed, out=out, options=("--checkpoint-hist", "1", *more),
    ):  # fmt: skip
        if line.startswith("Scheduled epochs"):
            began = now
        elif (batch := re.match(r"Test: +\[ *(\d+)/(\d+)\]", line)) and batch[1] == batch[2]:
            ends.append(now - began)
    assert began and len(ends) == epochs, f"{job.script} prints other lines than it did"
    return ends, out / "timm" / "model_best.pth.tar"


@torch.no_grad()
def _top1(model: nn.Module, job: Job) -> float:
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, job.image_size, job.image_size)}
    test = ImageFolder(str(job.folder / "test"), timm.data.create_transform(**config))
    return float(torch.cat([(model(x).argmax(1) == y).float() for x, y in DataLoader(test, batch_size=64)]).mean())


PEERS: dict[str, Callable[[Job, float], Figures]] = {
    "fastai": fastai,
    "fastai, book": fastai_book,
    "timm": timm_script,
    "timm, fine-tuned": timm_script_fine_tuned,
}


def main() -> None:
    """Measure what is missing, or print what was measured."""
    chosen = _options()
    rows = rows_in(chosen.out)
    if chosen.table:
        print("\n".join(table(rows)))
        return
    done = {_key(row): row for row in rows}
    missing = (
        row
        for seed in range(chosen.first_seed, chosen.seeds)
        for size in chosen.sizes
        for data in chosen.data
        for row in _case(chosen, data, size, seed, done)
    )
    keep(missing, chosen, lambda row: (*_key(row), f"{row['top1']:.3f} in {row['seconds']:.1f} s"))


def _case(
    chosen: argparse.Namespace, data: Path, size: int, seed: int, done: dict[tuple[Any, ...], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one data set at one size that are missing: ours first, since the others get its time."""
    folder = chosen.place / f"{data.name}-{size}-{seed}"
    num_train, num_test = lay(data, folder, size=size, seed=seed, most_test=chosen.most_test)
    divided = chosen.place / f"{data.name}-{size}-{seed}-divided"
    divide(folder, divided, seed=seed)
    job = Job(folder, divided, chosen.weights, chosen.image_size, seed, chosen.place, chosen.timm_script)
    case = {"data": data.name, "weights": f"{chosen.weights.name}@{chosen.image_size}", "size": size, "seed": seed}
    facts = {"num_train": num_train, "num_test": num_test, "threads": torch.get_num_threads()}
    first = {**case, "who": OURS}
    if _key(first) not in done:
        done[_key(first)] = {**first, **facts, **ours(job)}
        yield done[_key(first)]
    for who in PEERS if chosen.peers is None else chosen.peers:
        if _key({**case, "who": who}) not in done:
            yield {**case, "who": who, **facts, **PEERS[who](job, done[_key(first)]["seconds"])}


def divide(folder: Path, divided: Path, *, seed: int) -> None:
    """Lay links to folder/train/CLASS as divided/train/CLASS and, of a fifth of each class, as divided/val/CLASS."""
    shutil.rmtree(divided, ignore_errors=True)
    for place in sorted((folder / "train").iterdir()):
        files = random.Random(seed).sample(sorted(place.iterdir()), len(list(place.iterdir())))
        num_val = max(1, round(VAL_SHARE * len(files)))
        for part, chosen in (("val", files[:num_val]), ("train", files[num_val:])):
            (divided / part / place.name).mkdir(parents=True)
            for file in chosen:
                (divided / part / place.name / file.name).symlink_to(file.resolve())


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: mean top1 over the seeds, and how far ours is ahead, in points.

    The interval is that of the mean over the pairs, 1.96 standard errors.
    """
    people = [OURS, *PEERS]
    found = {(row["data"], row["size"], row["seed"], row["who"]): row for row in rows}
    places = sorted({key[:2] for key in found}, key=lambda place: (place[1], place[0]))
    yield f"| images a class | data | seconds | {' | '.join(people)} |"
    yield "| --- | --- | --- |" + " --- |" * len(people)
    for data, size in places:
        cells = []
        for who in people:
            values = [row["top1"] for key, row in found.items() if key[:2] == (data, size) and key[3] == who]
            cells.append(f"{statistics.mean(values):.3f} ({len(values)})" if values else "not run")
        spent = [row["seconds"] for key, row in found.items() if key[:2] == (data, size) and key[3] == OURS]
        yield f"| {size} | {data} | {statistics.mean(spent):.0f} | {' | '.join(cells)} |"
    ahead = [ahead_of(found, who) for who in people[1:]]
    yield f"| | ahead by | | | {' | '.join(ahead)} |"
    ece = [row["ece"] for row in rows if row["who"] == OURS]
    yield f"\nece on test of {OURS}: {statistics.mean(ece):.3f}, mean of {len(ece)} cases, at worst {max(ece):.3f}"


def ahead_of(found: dict[tuple[str, int, int, str], dict[str, Any]], who: str) -> str:
    """Return how many points ours is ahead of somebody on the same images, in the mean of the pairs."""
    pairs = [(row, found.get((*key[:3], OURS))) for key, row in found.items() if key[3] == who]
    gains = [100 * (mine["top1"] - row["top1"]) for row, mine in pairs if mine is not None]
    if len(gains) < 2:
        return ""
    half = 1.96 * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{statistics.mean(gains):+.1f} ± {half:.1f} ({len(gains)})"


def _seconds_of(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _epochs_for(seconds: float, epoch: float) -> int:
    return min(MOST_EPOCHS, max(1, math.ceil(seconds / epoch)))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("data", "weights", "size", "seed", "who"))


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "equal_time", sizes=[10, 30, 100])
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--weights", type=Path, help="a timm folder")
    parser.add_argument("--timm-script", type=Path, help="timm's train.py")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="some of them only, or nobody", metavar="PEER")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
