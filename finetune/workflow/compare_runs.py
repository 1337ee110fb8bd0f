"""Comparing finished runs: their recipes, their figures, and which are better beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.arguments import each_of, typed
from finetune.checkpoint.run_folder import RunFolder, open_finished
from finetune.checkpoint.several import open_several
from finetune.errors import CheckpointError, RecipeError
from finetune.report.side_by_side import SideBySide, names_of, side_by_side


@typed
def compare_runs(runs: Sequence[str | Path]) -> SideBySide:
    """Return finished runs side by side: what differs in their recipes, their figures, and paired differences.

        finetune.compare_runs(["runs/A", "runs/B"]).differences

    A folder of several seeds (`finetune run --seeds 3`) is one of them, with as many seeds. The images are those that
    all runs were judged on: test where they have it, else val.

    Raises:
        RecipeError: fewer than two runs.
        CheckpointError: one is no finished run, they have other tasks or labels, or share too few judged images.
    """
    places = [Path(run) for run in each_of(runs)]
    if len(places) < 2:
        raise RecipeError("one run has nothing to compare with", hint="finetune compare runs/A runs/B")
    return side_by_side({label: _runs_of(place) for label, place in zip(names_of(places), places, strict=True)})


def _runs_of(place: Path) -> list[RunFolder]:
    if not RunFolder(place).several.is_file():
        return [open_finished(place)]
    folder, record = open_several(place)
    if record.kind == "folds":
        raise CheckpointError(
            f"{place} holds folds, each judged on images of its own",
            hint=f"Name the runs of one fold: {record.run(folder, record.numbers[0]).path}",
        )
    return [open_finished(record.run(folder, number).path) for number in record.numbers]
