"""`finetune predict`: the likeliest classes of images, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.checkpoint.run_folder import open_answering
from finetune.cli import tables
from finetune.cli.options import BatchOption, DeviceOption, JsonOption, with_interrupt
from finetune.cli.screen import watching
from finetune.csv_cells import guarded_cell
from finetune.errors import DataError, RecipeError
from finetune.types import to_json
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.workflow.predict import Prediction
from finetune.cli.options import RunArgument


class EngineName(StrEnum):
    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"


class _Seen:
    """How many images were named, and the first that was not."""

    def __init__(self) -> None:
        self.num_named = self.num_unread = 0
        self.first: Prediction | None = None

    def __call__(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            self.num_named += not prediction.problem
            self.num_unread += bool(prediction.problem)
            self.first = self.first or (prediction if prediction.problem else None)
            yield prediction

    def check(self) -> None:
        """See that at least one image was named.

        Raises:
            DataError: none could be read.
        """
        if self.first is not None and not self.num_named:
            what = counted(self.num_unread, "image")
            text = f"none of {what} can be read" if self.num_unread > 1 else f"{self.first.file} cannot be read"
            first = f"{self.first.file}: " if self.num_unread > 1 else ""
            raise DataError(text, hint=f"{first}{self.first.problem}")


@with_interrupt
def predict(
    run: RunArgument,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Images and folders of images.", show_default=False)
    ],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many classes of each image.")] = 1,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 32,
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="auto: the run's ONNX export where it is proven equal to the model (torch is not read then), or the"
            " model on a GPU from 1,000 images on; torch: the model; onnxruntime: the export.",
        ),
    ] = EngineName.auto,
    unsure: Annotated[
        bool,
        typer.Option(
            "--unsure",
            help="Say of which images the model had better not be asked: those unlike what it was trained on, and those"
            " between two classes. Needs a run with 20 val images or more.",
        ),
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            "--coverage",
            metavar="SHARE",
            help="Be unsure so seldom that this share of val is answered; implies --unsure.  [default: 0.95]",
            show_default=False,
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Name what images show."""
    if json_ and as_csv:
        raise RecipeError("--csv and --json are two forms of one output", hint="Name one of them.")
    open_answering(run)
    seen = _Seen()
    with watching(is_quiet=json_ or as_csv) as on_event:
        from finetune.workflow.predict import COVERAGE, predict_with

        share = COVERAGE if unsure and coverage is None else coverage
        stream = seen(
            predict_with(
                run,
                paths,
                top=top,
                device=device,
                batch_size=batch_size,
                engine=engine.value,
                coverage=share,
                on_event=on_event,
            )
        )
        if as_csv:
            _print_csv(stream, top, has_unsure=share is not None)  # a row as soon as it is known
            predictions = []
        else:
            predictions = list(stream)
    if json_:
        tables.print_json([to_json(prediction) for prediction in predictions])
    elif not as_csv:
        what = _columns(predictions[0], 1)[1].rstrip("1")
        rows = [(p.file, p.problem or _said(p)) for p in predictions]
        tables.out().print(tables.table(["file", what], rows, words=[what]))
    seen.check()


def _said(prediction: Prediction) -> str:
    likely = "  ".join(_likely(prediction))
    return f"unsure, {prediction.unsure}: {likely}" if prediction.unsure else likely


def _likely(prediction: Prediction) -> list[str]:
    from finetune.evaluation.predictions import NumberPrediction

    if isinstance(prediction, NumberPrediction):
        return [f"{prediction.value:.6g}"]
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return [f"{name} {probability:.3f}" for name, probability in pairs] or ["none of them"]


def _print_csv(predictions: Iterable[Prediction], top: int, *, has_unsure: bool) -> None:
    """Print CSV, with a column of why an image had better not be named where that was asked for.

    Names that are no UTF-8 keep their bytes, as in the run folder's files.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    writer = csv.writer(sys.stdout)
    stream, first = iter(predictions), []
    for prediction in stream:
        first.append(prediction)
        if not prediction.problem:
            top = min(top, max(1, len(prediction.classes)))  # there may be fewer classes than are asked for
            break
    for place, prediction in enumerate(chain(first, stream)):
        if place == 0:
            first_row = _columns(prediction, top)
            writer.writerow([*first_row[:-1], *["unsure"] * has_unsure, first_row[-1]])
        cells = [*_cells(prediction, top), *[prediction.unsure] * has_unsure]
        writer.writerow([guarded_cell(prediction.file), *cells, guarded_cell(prediction.problem)])


def _columns(prediction: Prediction, top: int) -> list[str]:
    """Return the columns of one kind of predictions: the likeliest classes; those said, and all of them; a number."""
    from finetune.evaluation.predictions import LabelsPrediction, NumberPrediction

    if isinstance(prediction, LabelsPrediction):
        answers = ["classes", *(guarded_cell(f"probability of {name}") for name in prediction.scores)]
    elif isinstance(prediction, NumberPrediction):
        answers = ["number"]
    else:
        answers = [f"{what}{place}" for place in range(1, top + 1) for what in ("class", "probability")]
    return ["file", *answers, "problem"]


def _cells(prediction: Prediction, top: int) -> list[str]:
    from finetune.evaluation.predictions import LabelsPrediction, NumberPrediction

    if isinstance(prediction, LabelsPrediction):
        shares = ["" if share is None else f"{share:.6f}" for share in prediction.scores.values()]
        return [guarded_cell(prediction.label), *shares]
    if isinstance(prediction, NumberPrediction):
        return [prediction.label]
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    cells = [cell for name, share in pairs for cell in (guarded_cell(name), f"{share:.6f}")]
    return cells + [""] * (2 * top - len(cells))
