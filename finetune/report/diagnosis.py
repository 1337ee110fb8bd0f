"""What to do next with a run, from its figures: one sentence and one command each, what matters most first.

Pure: numbers in, advice out. For models that give an image one class.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune.report.answered import MOST_CASES, Answered
from finetune.types import EpochLine, Interval
from finetune.wording import counted

GAP = 0.05  # train top1 over that of val, from which on images are learned by heart
RISE = 1.15  # times the least val loss that the last is
UNFIT = 0.85  # train top1 below which the trained layers cannot tell the images apart
WIDE = 0.05  # half of the interval of top1
BEHIND = 0.15  # recall of a class under that of all
FEWEST = 5  # images of a class on which its recall says something
SURE, FEW_SURE = 0.95, 2  # probability of a wrong answer that makes one look at the label, and how many
OFTEN = 3  # images of one class that are taken for another


@dataclass(frozen=True, slots=True)
class Advice:
    """An observation, and the command or setting that may help."""

    seen: str
    command: str


def advice(
    answers: Answered | None,
    history: Sequence[EpochLine],
    metrics: Mapping[str, Mapping[str, float]],
    *,
    data: str,
    is_head_alone: bool,
    level: str,
    image_size: int,
) -> list[Advice]:
    """Return what a run's figures suggest; `metrics` are of the split that was answered, as JSON has them."""
    if answers is None:
        return []
    found = [
        *_by_heart(history, level),
        *_unfit(history, is_head_alone=is_head_alone),
        *_wide(metrics, answers.split),
        *_labels(answers, data),
        *_classes(answers, data),
        *_pairs(answers, image_size),
    ]
    return found[:5]


def _by_heart(history: Sequence[EpochLine], level: str) -> Iterator[Advice]:
    losses = [row.val_loss for row in history if row.val_loss is not None]
    last = history[-1] if history else None
    if last is None or last.train_top1 is None or last.val_top1 is None or len(losses) < 3:
        return
    rises = losses[-1] > RISE * min(losses)
    if last.train_top1 - last.val_top1 < GAP or not rises:
        return
    best = losses.index(min(losses)) + 1
    stronger = level != "heavy"
    yield Advice(
        f"It memorises its images: train top1 {last.train_top1:.2f}, val {last.val_top1:.2f}, and the val loss"
        f" rises from {min(losses):.2f} (epoch {best}) to {losses[-1]:.2f}. More images help most;"
        f" {'stronger augmentation' if stronger else 'mixup'} may.",
        f"--set {'augment.level=heavy' if stronger else 'regularise.mixup=0.2'}",
    )


def _unfit(history: Sequence[EpochLine], *, is_head_alone: bool) -> Iterator[Advice]:
    last = history[-1] if history else None
    if last is None or last.train_top1 is None or last.val_top1 is None or last.train_top1 >= UNFIT:
        return
    if last.train_top1 - last.val_top1 < GAP and is_head_alone:
        yield Advice(
            f"The head alone cannot separate even the train images (top1 {last.train_top1:.2f}): deeper layers may.",
            "--strategy top-k",
        )


def _wide(metrics: Mapping[str, Mapping[str, float]], split: str) -> Iterator[Advice]:
    if "top1" not in metrics:
        return
    top1 = Interval(**metrics["top1"])
    if (half := (top1.high - top1.low) / 2) > WIDE:
        yield Advice(
            f"{split} is small: its top1 may be {100 * half:.0f} points off. Folds measure on every image.",
            "--folds 5",
        )


def _labels(answers: Answered, data: str) -> Iterator[Advice]:
    sure = [case for case in answers.mistakes if case.share >= SURE]
    if len(sure) >= FEW_SURE:
        count = counted(len(sure), f"image of {answers.split} is", f"images of {answers.split} are")
        least = "At least " if len(sure) == MOST_CASES else ""
        yield Advice(
            f"{least}{count} not named as labelled, with probabilities from {SURE:g} on: check the labels.",
            f"finetune check {shlex.quote(data)} --sheet sheet.png",
        )


def _classes(answers: Answered, data: str) -> Iterator[Advice]:
    overall = answers.num_right / max(answers.num_images, 1)
    rows = [row for row in answers.by_class if row.recall is not None and row.num_images >= FEWEST]
    worst = min(rows, key=lambda row: row.recall or 0.0, default=None)
    if worst is None or worst.recall is None or worst.recall > overall - BEHIND:
        return
    taken = f", mostly taken for {worst.taken_for}" if worst.taken_for else ""
    yield Advice(
        f"{worst.name} is recognised in {worst.recall:.0%} of its {worst.num_images} images{taken}; it has"
        f" {counted(worst.num_train, 'train image')}. More of them help most.",
        f"finetune check {shlex.quote(data)}",
    )


def _pairs(answers: Answered, image_size: int) -> Iterator[Advice]:
    if not answers.pairs or (number := answers.pairs[0][2]) < OFTEN or len(answers.by_class) < 3:
        return
    shown, named, _ = answers.pairs[0]
    wrong = answers.num_images - answers.num_right
    if number >= 0.2 * wrong:
        yield Advice(
            f"{shown} is taken for {named} in {counted(number, 'image')}, {number / wrong:.0%} of all mistakes: larger"
            " images may show the difference.",
            f"--image-size {round(1.5 * image_size / 32) * 32}",
        )
