"""Predictions as rows of a table: the columns and their contents.

`file`, then what the task says (the likeliest classes with their probabilities; the classes that an image has; a
number), then what was asked for on top, then `problem`. CSV, Parquet and data frames have the same columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.tasks import Task

if TYPE_CHECKING:
    from finetune.evaluation.named import Prediction

Cell = str | float | None


@dataclass(frozen=True, slots=True)
class AnswerLayout:
    """What is said of every image."""

    task: Task
    classes: tuple[str, ...]
    top: int = 1
    has_scores: bool = False
    has_features: bool = False
    has_unsure: bool = False

    def columns(self, num_features: int = 0) -> list[str]:
        """Return the names of the columns; each feature is one."""
        places = range(1, min(self.top, len(self.classes)) + 1)
        said = {
            "classify": [f"{what}{place}" for place in places for what in ("class", "probability")],
            "multilabel": ["classes"],
            "regress": ["number"],
        }[self.task]
        if self.has_scores:
            said += [f"probability of {name}" for name in self.classes]
        features = [f"feature{place}" for place in range(1, num_features + 1)]
        return ["file", *said, *features, *["unsure"] * self.has_unsure, "problem"]

    def cells(self, prediction: Prediction, num_features: int = 0) -> list[Cell]:
        """Return the cells of an image; None for empty ones."""
        said: list[Cell]
        if self.task == "classify":
            pairs = zip(prediction.classes, prediction.probabilities, strict=True)
            said = [cell for pair in pairs for cell in pair]
            said += [None] * (2 * min(self.top, len(self.classes)) - len(said))
        elif self.task == "multilabel":
            said = [prediction.label]
        else:
            said = [getattr(prediction, "value", None)]
        if self.has_scores:
            said += [prediction.scores.get(name) for name in self.classes]
        if num_features:
            said += [None] * num_features if prediction.features is None else prediction.features.tolist()
        return [prediction.file, *said, *[prediction.unsure] * self.has_unsure, prediction.problem]

    def has_text(self, column: str) -> bool:
        """Return whether a column holds words rather than numbers."""
        return column in ("file", "classes", "unsure", "problem") or (
            self.task == "classify" and column.removeprefix("class").isdigit()
        )
