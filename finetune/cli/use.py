"""`eval`, `predict` and `export`: what a finished run is for."""

from __future__ import annotations

import csv
import sys
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cells import guarded
from finetune.cli import tables
from finetune.cli.options import BatchOption, DeviceOption, JsonOption, with_interrupt
from finetune.cli.screen import watching
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.types import to_json
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.workflow.predict import Prediction

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]


class SplitName(StrEnum):
    """The splits that can be measured."""

    train = "train"
    val = "val"
    test = "test"


class FormatName(StrEnum):
    """The formats of export."""

    onnx = "onnx"
    timm = "timm"


@with_interrupt
def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option("--data", metavar="PATH", help="Other images than the run's.")] = None,
    split: Annotated[
        SplitName | None,
        typer.Option("--split", metavar="SPLIT", help="train, val or test; else test, if there is one, or val."),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 32,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=0, help="Processes that decode. Default: the run's.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure a run's model on a split, or on other data."""
    from finetune.workflow.evaluate import evaluate as measure

    with watching(is_quiet=json_) as on_event:
        found = measure(
            run, data=data, split=split.value if split else None, device=device, batch_size=batch_size,
            workers=workers, on_event=on_event,
        )  # fmt: skip
    if json_:
        tables.print_json(to_json(found) | {"never_predicted": found.never_predicted})
    else:
        tables.show_evaluation(found)


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
    """Name what pictures show."""
    if json_ and as_csv:
        raise RecipeError("--csv and --json are two forms of one output", hint="Name one of them.")
    from finetune.workflow.predict import load

    with watching(is_quiet=json_ or as_csv) as on_event:
        found = load(run, device=device, batch_size=batch_size).predict(paths, top=top, on_event=on_event)
    if json_:
        tables.print_json([to_json(prediction) for prediction in found])
    elif as_csv:
        _print_csv(found, top)
    else:
        rows = [(p.file, p.problem or "  ".join(_likely(p))) for p in found]
        tables.out().print(tables.table(["file", "class"], rows, words=["class"]))


@with_interrupt
def export(
    run: RunArgument,
    format: Annotated[
        FormatName, typer.Option("--format", metavar="onnx|timm", help="A file, or timm's folder.")
    ] = FormatName.onnx,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Default: RUN/exports/.")] = None,
    json_: JsonOption = False,
) -> None:
    """Export a run's model, and prove the export equal to it."""
    from finetune.workflow.export import export as write

    done = write(run, format=format.value, out=out)
    if json_:
        tables.print_json({"path": str(done.path), "format": done.format, "parity": done.parity})
        return
    console = tables.out()
    console.print(f"[bold]{escape(str(done.path))}[/bold]")
    console.print(
        f"proven on {counted(done.parity['num_images'], 'image')} of the data:"
        f" logits differ by at most {done.parity['largest_difference']:.1e}"
    )


def _likely(prediction: Prediction) -> list[str]:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return [f"{name} {probability:.3f}" for name, probability in pairs]


def _print_csv(found: list[Prediction], top: int) -> None:
    """Print CSV; names that are no UTF-8 keep their bytes, as in the run folder's files."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    writer = csv.writer(sys.stdout)
    places = range(1, top + 1)
    writer.writerow(["file", *(f"{what}{n}" for n in places for what in ("class", "probability")), "problem"])
    for prediction in found:
        cells: list[str] = []
        for place in range(top):
            has_it = place < len(prediction.classes)
            cells += (
                [guarded(prediction.classes[place]), f"{prediction.probabilities[place]:.6f}"] if has_it else ["", ""]
            )
        writer.writerow([guarded(prediction.file), *cells, guarded(prediction.problem)])
