"""`finetune predict`: the likeliest classes of images, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.checkpoint.run_folder import open_finished
from finetune.cli import tables
from finetune.cli.options import BatchOption, DeviceOption, JsonOption, with_interrupt
from finetune.cli.screen import watching
from finetune.csv_cells import guarded_cell
from finetune.errors import RecipeError
from finetune.types import to_json

if TYPE_CHECKING:
    from finetune.workflow.predict import Prediction
from finetune.cli.options import RunArgument


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
    json_: JsonOption = False,
) -> None:
    """Name what images show."""
    if json_ and as_csv:
        raise RecipeError("--csv and --json are two forms of one output", hint="Name one of them.")
    open_finished(run)
    with watching(is_quiet=json_ or as_csv) as on_event:
        from finetune.workflow.predict import predict_with

        stream = predict_with(run, paths, top=top, device=device, batch_size=batch_size, on_event=on_event)
        if as_csv:
            _print_csv(stream, top)  # a row as soon as it is known, however many there are
            return
        predictions = list(stream)
    if json_:
        tables.print_json([to_json(prediction) for prediction in predictions])
    else:
        what = _columns(predictions[0], 1)[1].rstrip("1")
        rows = [(p.file, p.problem or "  ".join(_likely(p))) for p in predictions]
        tables.out().print(tables.table(["file", what], rows, words=[what]))


def _likely(prediction: Prediction) -> list[str]:
    from finetune.evaluation.predictions import NumberPrediction

    if isinstance(prediction, NumberPrediction):
        return [f"{prediction.value:.6g}"]
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return [f"{name} {probability:.3f}" for name, probability in pairs] or ["none of them"]


def _print_csv(predictions: Iterable[Prediction], top: int) -> None:
    """Print CSV; names that are no UTF-8 keep their bytes, as in the run folder's files."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    writer = csv.writer(sys.stdout)
    for place, prediction in enumerate(predictions):
        if place == 0:
            writer.writerow(_columns(prediction, top))
        writer.writerow([guarded_cell(prediction.file), *_cells(prediction, top), guarded_cell(prediction.problem)])


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
