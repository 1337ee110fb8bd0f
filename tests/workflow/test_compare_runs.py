"""Finished runs side by side: recipes, figures, and differences on the images that all were judged on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune import recipe as recipes
from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import CheckpointError, RecipeError
from finetune.evaluation.intervals import paired_over_seeds


@pytest.fixture
def pair(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A finished run, and a copy of it with another rate that names every image of the first class as the second."""
    first, second = tmp_path / "x" / "first", tmp_path / "x" / "second"
    for place in (first, second):
        shutil.copytree(finished, place)
    folder = RunFolder(second)
    recipe = recipes.update(recipes.load(folder.recipe), {"optim.lr": 0.123})
    folder.recipe.write_text(recipes.dump(recipe))
    rows = list(csv.DictReader(folder.predictions.open()))
    names = sorted({row["class"] for row in rows})
    for row in rows:
        row["predicted"] = names[1] if row["class"] == names[0] else row["class"]
    _write(folder.predictions, rows)
    return first, second


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_only_what_differs_is_shown_and_the_difference_is_taken_image_by_image(pair: tuple[Path, Path]) -> None:
    found = finetune.compare_runs(pair)
    assert found.labels == ("first", "second") and found.differences.keys() == {"optim.lr"}
    assert found.differences["optim.lr"][1] == 0.123
    hits = []
    for place in pair:
        rows = [row for row in csv.DictReader((place / "predictions.csv").open()) if row["split"] == found.splits[0]]
        hits.append(np.array([[row["class"] == row["predicted"] for row in rows]]))
    by_label = {one.label: one for one in found.standings}
    best = found.standings[0].label
    ours = hits if best == "first" else hits[::-1]
    other = next(label for label in by_label if label != best)
    assert by_label[other].difference == paired_over_seeds(*ours)
    assert by_label[best].score.value == ours[0].mean() and found.num_images == ours[0].size
    kept = json.loads((pair[0] / "metrics.json").read_text())[found.splits[0]]
    assert found.metrics["top1"][0] == kept["top1"]


def test_images_are_told_by_what_they_hold_and_only_common_ones_count(pair: tuple[Path, Path]) -> None:
    folder = RunFolder(pair[1])
    rows = list(csv.DictReader(folder.predictions.open()))
    judged = [row for row in rows if row["split"] == "test"]
    _write(folder.predictions, [row for row in rows if row not in judged[:1]])
    text = folder.split.read_text()
    for row in judged[1:]:  # the same bytes under another name
        text = text.replace(row["file"], f"moved/{row['file']}")
    folder.split.write_text(text)
    _write(folder.predictions, [{**row, "file": f"moved/{row['file']}"} for row in judged[1:]])
    found = finetune.compare_runs(pair)
    assert found.num_judged == (len(judged), len(judged) - 1) and found.num_images == len(judged) - 1
    assert any("on which all were judged; first on" in line for line in found.said)


def test_what_cannot_be_compared_is_refused_with_the_reason(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = pair
    with pytest.raises(RecipeError, match="one run has nothing"):
        finetune.compare_runs([first])
    with pytest.raises(CheckpointError, match="is named twice"):
        finetune.compare_runs([first, first / ".." / "first"])
    with pytest.raises(CheckpointError, match=r"no run folder|there is no"):
        finetune.compare_runs([first, tmp_path / "nowhere"])
    folder = RunFolder(second)
    rows = list(csv.DictReader(folder.predictions.open()))
    names = sorted({row["class"] for row in rows})
    _write(folder.predictions, [{**row, "class": names[0]} for row in rows])
    with pytest.raises(CheckpointError, match=r"second has other labels than first: of .* images, the first of which"):
        finetune.compare_runs(pair)
    _write(folder.predictions, rows[:3])
    with pytest.raises(CheckpointError, match="images that all these runs were judged on, and 10 are needed"):
        finetune.compare_runs(pair)
