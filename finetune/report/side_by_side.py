"""Finished runs side by side: where their recipes differ, and which is better on the images that all answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune import inline
from finetune import recipe as recipes
from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.errors import CheckpointError
from finetune.report.standings import Finished, Standing, finished, sentences, standings
from finetune.types import to_json
from finetune.wording import counted

FEWEST = 10  # common images, below which nothing follows from them


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Runs by name: where their recipes differ, each one's own figures, and how they stand on the same images.

    `differences` has every key that is not the same in all recipes, with its value in each, and `metrics` the figures
    of metrics.json on the images that `splits` names, both in the order of `labels`; of seeds they are the first one's.
    `standings` is on the `num_images` that all were judged on, the best first.
    """

    labels: tuple[str, ...]
    folders: tuple[tuple[str, ...], ...]
    splits: tuple[str, ...]
    num_judged: tuple[int, ...]
    differences: dict[str, tuple[Any, ...]]
    metrics: dict[str, tuple[dict[str, float] | None, ...]]
    standings: tuple[Standing, ...]
    num_images: int
    said: tuple[str, ...]

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        rows = ([key, *values] for key, values in self.differences.items())
        return inline.html_table(["", *self.labels], rows) + inline.html_lines(*self.said)

    def to_json(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        rows = [{**to_json(standing), "is_told_apart": standing.is_told_apart} for standing in self.standings]
        return {**to_json(self), "standings": rows}


def side_by_side(runs: Mapping[str, Sequence[RunFolder]]) -> SideBySide:
    """Return finished runs side by side, each under its name; several run folders of a name are its seeds.

    Raises:
        CheckpointError: a folder is damaged, two runs have other tasks or labels of the same image, or there are fewer
            than `FEWEST` images that all were judged on.
    """
    read = {label: [_finished(folder, place) for place, folder in enumerate(own)] for label, own in runs.items()}
    common = _on_common_images(read)
    ranked = standings(common)
    firsts = {label: own[0] for label, own in runs.items()}
    judged = {label: own[0] for label, own in read.items()}
    num_images = len(next(iter(common.values()))[0].files)
    return SideBySide(
        labels=tuple(runs),
        folders=tuple(tuple(str(folder.path) for folder in own) for own in runs.values()),
        splits=tuple(run.split for run in judged.values()),
        num_judged=tuple(len(run.files) for run in judged.values()),
        differences=_differences([*firsts.values()]),
        metrics=_metrics(firsts, judged),
        standings=ranked,
        num_images=num_images,
        said=(*_on_which(judged, num_images), *sentences(ranked, is_pretrained=False)),
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path endings that distinguish folders."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise CheckpointError(f"{folders[0]} is named twice", hint="Name each run once.")


def _finished(folder: RunFolder, seed: int) -> Finished:
    """Return a finished run, with the time from its timing.json, if it has one."""
    run = finished(folder, seed=seed)
    if not run.files:
        raise CheckpointError(
            f"{folder.path} was judged on no image: val is in train and there is no test",
            hint="finetune run --test 0.2 sets a test split aside.",
        )
    timing = read_json(folder.timing) if folder.timing.is_file() else {}
    seconds = timing.get("seconds", {}) if isinstance(timing, dict) else {}
    total = sum(value for value in seconds.values() if isinstance(value, (int, float)))
    return replace(run, curve=(*run.curve[:-1], replace(run.curve[-1], seconds=total)))


def _on_common_images(runs: Mapping[str, Sequence[Finished]]) -> dict[str, list[Finished]]:
    """Return runs reduced to the images that all were judged on, in one order, matched by content."""
    every = [run for own in runs.values() for run in own]
    if len({run.task for run in every}) > 1:
        named = ", ".join(f"{label}: {own[0].task}" for label, own in runs.items())
        raise CheckpointError(f"runs of different tasks cannot be compared: {named}")
    shared = set(every[0].digests).intersection(*(run.digests for run in every[1:]))
    common = [digest for digest in dict.fromkeys(every[0].digests) if digest in shared]
    if len(common) < FEWEST:
        raise CheckpointError(
            f"there {'is' if len(common) == 1 else 'are'} {counted(len(common), 'image')} that all these runs were"
            f" judged on, and {FEWEST} are needed to say which is better",
            hint="Runs on the same data with the same --set split.seed and --test are judged on the same images.",
        )
    found = {label: [_only(run, common) for run in own] for label, own in runs.items()}
    _check_labels(runs, found)
    return found


def _only(run: Finished, digests: Sequence[str]) -> Finished:
    place = {digest: number for number, digest in enumerate(run.digests)}
    places = [place[digest] for digest in digests]
    units = run.units and tuple(run.units[number] for number in places)
    same = tuple(digests)
    return replace(run, files=same, digests=same, said=run.said[places], right=run.right[places], units=units)


def _check_labels(runs: Mapping[str, Sequence[Finished]], found: Mapping[str, Sequence[Finished]]) -> None:
    (first, of_first), *_ = found.items()
    expected = of_first[0].right
    for label, own in found.items():
        for whole, run in zip(runs[label], own, strict=True):
            is_other = np.full(len(run.right), run.right.shape != expected.shape)
            if run.right.shape == expected.shape:
                is_other = (run.right != expected).reshape(len(run.right), -1).any(axis=1)
            if is_other.any():
                file = whole.files[whole.digests.index(run.digests[int(is_other.argmax())])]
                raise CheckpointError(
                    f"{label} has other labels than {first}: of {counted(int(is_other.sum()), 'image')},"
                    f" the first of which is {file}",
                    hint="They were trained on different tables or folders and answer different questions.",
                )


def _differences(folders: Sequence[RunFolder]) -> dict[str, tuple[Any, ...]]:
    read = [recipes.load(folder.recipe) for folder in folders]
    values = {key: tuple(recipes.value(recipe, key) for recipe in read) for key in recipes.fields()}
    return {key: those for key, those in values.items() if any(value != those[0] for value in those[1:])}


def _metrics(
    folders: Mapping[str, RunFolder], judged: Mapping[str, Finished]
) -> dict[str, tuple[dict[str, float] | None, ...]]:
    read = [read_json(folder.metrics)[judged[label].split] for label, folder in folders.items()]
    names = list(dict.fromkeys(name for figures in read for name in figures))
    return {name: tuple(figures.get(name) for figures in read) for name in names}


def _on_which(judged: Mapping[str, Finished], num_images: int) -> list[str]:
    """Return, in words, which images of each run the standing leaves out."""
    more = {label: len(run.files) for label, run in judged.items() if len(run.files) > num_images}
    if not more:
        return []
    named = ", ".join(f"{label} on {count:,}" for label, count in more.items())
    return [f"compared on the {num_images:,} images on which all were judged; {named}"]
