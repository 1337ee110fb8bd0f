"""How images are spread over classes and splits, in words: classes that are not measured or may never be predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from finetune.tasks import AnyTarget, Task
from finetune.types import Manifest, Split
from finetune.wording import counted, listed

IMBALANCE = 10  # times as many images in the largest class as in a small one
ASIDE: tuple[Split, ...] = ("val", "test")


def thin(manifest: Manifest) -> Iterator[str]:
    """Yield which classes have a single image, and which have none in val or test."""
    if manifest.task == "regress":
        return
    totals = manifest.counts()
    single = [name for name, count in totals.items() if count == 1]
    if single:
        yield f"{counted(len(single), 'class has', 'classes have')} a single image: {listed(single)}"
    for split in ASIDE:
        counts = manifest.counts(split)
        lacking = [name for name in manifest.classes if not counts[name]]
        if lacking and any(counts.values()):
            have, them = counted(len(lacking), "class has", "classes have"), "it" if len(lacking) == 1 else "them"
            yield f"{have} no image in {split}, which cannot judge {them}: {listed(lacking)}"


def outweighed(manifest: Manifest) -> Iterator[str]:
    """Yield which classes are so small beside the largest that a model may never predict them."""
    counts = {name: count for name, count in manifest.counts().items() if count}
    largest = max(counts, key=lambda name: counts[name], default="")
    small = sorted((count, name) for name, count in counts.items() if IMBALANCE * count <= counts[largest])
    advice = ": go by macro_f1 rather than top1" if manifest.task == "classify" else ", and may never be predicted"
    if small:
        have = "has" if len(small) == 1 else "have"
        yield (
            f"{listed(f'{name} ({count:,})' for count, name in small)} {have} at most a tenth of the"
            f" {counts[largest]:,} images of {largest}{advice}"
        )


def never_among(classes: Sequence[str], targets: Sequence[AnyTarget], guesses: Sequence[AnyTarget]) -> dict[str, int]:
    """Return the same, from what images show and what a model says; a number is always predicted."""
    there, guessed = ([index for target in side for index in target.classes] for side in (targets, guesses))
    return never_predicted(classes, there, guessed)


def never_predicted(classes: Sequence[str], targets: Sequence[int], guesses: Sequence[int]) -> dict[str, int]:
    """Return the classes among these images that are never predicted, with their number of images."""
    there, guessed = Counter(targets), set(guesses)
    return {name: there[index] for index, name in enumerate(classes) if there[index] and index not in guessed}


def never_predicted_text(
    never: dict[str, int], split: str, *, is_refitted: bool = False, task: Task = "classify"
) -> str:
    """Return one sentence about the classes that a model never predicts on a split; with a refit, the first fit."""
    shown = listed(f"{name} ({counted(count, 'image')})" for name, count in never.items())
    model = f"first fit (the refit, which is delivered, has learned from {split})" if is_refitted else "model"
    hardly = ", top1 hardly does" if task == "classify" else ""
    return f"the {model} never predicts {shown} on {split}: macro_f1 shows what that costs{hardly}"
