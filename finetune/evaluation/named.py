"""What images are said to show: a record for each, and a list of records as arrays or as a data frame.

Letters: N images, K classes, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from finetune import inline
from finetune.errors import RecipeError
from finetune.evaluation.prediction_rows import AnswerLayout
from finetune.tasks import BETWEEN_LABELS
from finetune.wording import counted

Row = NDArray[np.float32]  # (K,) or (D,)
MOST_SAID = 3  # classes in a line
MOST_ROWS = 20  # images in a notebook
OPTIONAL = ("scores", "features")  # what a record in JSON lacks if it was not asked for


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why it could not be read.

    `unsure` says why the model is unsure of the image ("" if it is not), `scores` has the probability of every class,
    `features` (D,) what reaches the head. Each is there if it was asked for.
    """

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""
    unsure: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    features: Row | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The likeliest class; empty for an image that could not be read."""
        return self.classes[0] if self.classes else ""

    @property
    def likely(self) -> tuple[str, ...]:
        """What the image is said to show, in words: classes with their probabilities."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return tuple(f"{name} {probability:.3f}" for name, probability in pairs) or ("none of them",)

    def __repr__(self) -> str:
        said = self.problem or ", ".join(self.likely[:MOST_SAID])
        return f"<{type(self).__name__} {self.file}: {f'unsure, {self.unsure}: ' * bool(self.unsure)}{said}>"

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as a JSON object."""
        facts = asdict(self)
        if self.features is not None:
            facts["features"] = self.features.tolist()
        return {key: value for key, value in facts.items() if key not in OPTIONAL or value not in (None, {})}


@dataclass(frozen=True, slots=True, repr=False)
class LabelsPrediction(Prediction):
    """The classes that are predicted for one image, any number of them, the likeliest first.

    `scores` has the probability of every class; None for an image that could not be read.
    """

    @property
    def label(self) -> str:
        """The classes, joined by |; empty where the image has none of them, or could not be read."""
        return BETWEEN_LABELS.join(self.classes)


@dataclass(frozen=True, slots=True, repr=False)
class NumberPrediction(Prediction):
    """The number that is predicted for one image."""

    value: float | None = None

    @property
    def label(self) -> str:
        """The number as text; empty for an image that could not be read."""
        return "" if self.value is None else repr(self.value)

    @property
    def likely(self) -> tuple[str, ...]:
        """The number in words."""
        return ("" if self.value is None else f"{self.value:.6g}",)


@dataclass(frozen=True, slots=True)
class Named:
    """A prediction with its source: the probabilities of all classes (K,); none for an unread image."""

    prediction: Prediction
    row: Row | None


class Predictions(Sequence[Prediction]):
    """Predictions in the order of their images, also as arrays and as a table."""

    def __init__(self, layout: AnswerLayout, named: Iterable[Named]) -> None:
        self.classes = layout.classes
        self._layout = layout
        self._named = tuple(named)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> Predictions: ...
    def __getitem__(self, place: int | slice) -> Prediction | Predictions:
        if isinstance(place, slice):
            return Predictions(self._layout, self._named[place])
        return self._named[place].prediction

    def __len__(self) -> int:
        return len(self._named)

    @property
    def labels(self) -> list[str]:
        """The label of every image; empty where it could not be read."""
        return [one.label for one in self]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The probabilities (N, K) of all classes, in their order; NaN where an image could not be read.

        Of numbers, they are the numbers (N, 1).
        """
        return _stacked([one.row for one in self._named], len(self.classes))

    @property
    def features(self) -> NDArray[np.float32]:
        """What reaches the head, (N, D); NaN where an image could not be read.

        Raises:
            RecipeError: it was not asked for.
        """
        if not self._layout.has_features:
            raise RecipeError("features were not asked for", hint="Ask for them: predict(images, features=True).")
        rows = [one.features for one in self]
        return _stacked(rows, next((len(row) for row in rows if row is not None), 0))

    def to_dataframe(self) -> Any:
        """Return a pandas.DataFrame with the columns of `finetune predict --csv`.

        Raises:
            RecipeError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise RecipeError("a data frame needs pandas", hint="pip install pandas") from None
        num_features = self.features.shape[1] if self._layout.has_features else 0
        rows = [self._layout.cells(one, num_features) for one in self]
        return pandas.DataFrame(rows, columns=self._layout.columns(num_features))

    def _repr_html_(self) -> str:
        """Return the first predictions as a notebook shows them."""
        rows = [self._layout.cells(one) for one in self[:MOST_ROWS]]
        rest = f"and {len(self) - MOST_ROWS:,} more" if len(self) > MOST_ROWS else ""
        return inline.html_table(self._layout.columns(), rows) + inline.html_lines(rest)

    def __repr__(self) -> str:
        unread = sum(bool(one.problem) for one in self)
        told = Counter(one.label or "none" for one in self if not one.problem)
        said = [f"{count} {label}" for label, count in told.most_common(MOST_SAID)]
        said += [f"{len(told) - MOST_SAID} more"] * (len(told) > MOST_SAID) + [f"{unread} unread"] * bool(unread)
        return f"<Predictions of {counted(len(self), 'image')}: {', '.join(said)}>"


def _stacked(rows: list[Row | None], width: int) -> NDArray[np.float32]:
    whole = np.full((len(rows), width), np.nan, dtype=np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            whole[place] = row
    return whole
