"""`finetune predict`: what images show, as a table, CSV, JSON or Parquet, and sorted into folders."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from finetune.cli.help import examples
from finetune.cli.named import FormName, Shape, Tally, print_json_document, print_tables, shape_of
from finetune.cli.options import (
    BatchOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    TtaName,
    TtaOption,
    with_interrupt,
)
from finetune.cli.screen import watching
from finetune.data.places import check_outside
from finetune.errors import RecipeError
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.workflow.predict import Prediction, Stream

SAID, WRITTEN = "What is said", "Where it goes"
EXAMPLES = examples(
    "predict runs/RUN photos/ --top 3 --csv",
    "predict runs/RUN 'photos/*.jpg' https://example.org/a.jpg",
    "predict runs/RUN table.csv --column image --out answers.parquet",
    "predict runs/RUN photos/ --threshold 0.8 --copy-to sorted",
    "predict model.onnx - --format jsonl < names.txt",
)


class EngineName(StrEnum):
    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"


ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        help="Images, folders, patterns, a CSV, TSV or Parquet file that names images, http addresses; - reads one"
        " image, or names line by line, from standard input.",
        show_default=False,
    ),
]
TopOption = Annotated[
    int, typer.Option("--top", metavar="N", min=1, help="How many classes of each image.", rich_help_panel=SAID)
]
ScoresOption = Annotated[
    bool, typer.Option("--scores", help="Also the probability of every class.", rich_help_panel=SAID)
]
FeaturesOption = Annotated[
    bool, typer.Option("--features", help="Also what reaches the head; computed by the model.", rich_help_panel=SAID)
]
UnsureOption = Annotated[
    bool,
    typer.Option(
        "--unsure",
        help="Say which images the model is unsure of: those unlike what it was trained on, and those"
        " between two classes. Needs a run with 20 val images or more.",
        rich_help_panel=SAID,
    ),
]
CoverageOption = Annotated[
    float | None,
    typer.Option(
        "--coverage",
        metavar="SHARE",
        help="Answer this share of val and be unsure of the rest; implies --unsure.  [default: 0.95]",
        show_default=False,
        rich_help_panel=SAID,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="PROBABILITY",
        help="Be unsure below this probability, whatever val says; works with exports too.",
        show_default=False,
        rich_help_panel=SAID,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write a new file: .csv, .tsv, .jsonl or .parquet.",
        show_default=False,
        rich_help_panel=WRITTEN,
    ),
]
FormatOption = Annotated[
    FormName | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="csv, tsv, jsonl or parquet, for --out of another name or to print.",
        show_default=False,
        rich_help_panel=WRITTEN,
    ),
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.", rich_help_panel=WRITTEN)]
CopyToOption = Annotated[
    Path | None,
    typer.Option(
        "--copy-to",
        metavar="DIR",
        help="Sort the files into a new folder, in a folder of each class; unsure ones in `unsure`.",
        show_default=False,
        rich_help_panel=WRITTEN,
    ),
]
LinkOption = Annotated[
    bool, typer.Option("--link", help="With --copy-to: link instead of copying.", rich_help_panel=WRITTEN)
]
ColumnOption = Annotated[
    str,
    typer.Option("--column", metavar="NAME", help="The column of a table that names images, where that is unclear."),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="auto: the run's ONNX export where it is proven equal to the model (torch is not read then), or the"
        " model on a GPU from 1,000 images on; torch: the model; onnxruntime: the export.",
    ),
]


@with_interrupt
def predict(
    run: ModelArgument,
    paths: ImagesArgument,
    top: TopOption = 1,
    scores: ScoresOption = False,
    features: FeaturesOption = False,
    unsure: UnsureOption = False,
    coverage: CoverageOption = None,
    threshold: ThresholdOption = None,
    out: OutOption = None,
    form: FormatOption = None,
    as_csv: CsvOption = False,
    copy_to: CopyToOption = None,
    link: LinkOption = False,
    column: ColumnOption = "auto",
    tta: TtaOption = TtaName.none,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 32,
    engine: EngineOption = EngineName.auto,
    json_: JsonOption = False,
) -> None:
    """Name what images show."""
    if link and copy_to is None:
        raise RecipeError("--link needs --copy-to", hint="Name the folder with --copy-to DIR.")
    shape = shape_of(out, form.value if form else None, is_csv=as_csv, is_json=json_)
    if features and shape.form == "table":
        raise RecipeError("--features do not fit in a table", hint="Use --json, --format, or --out FILE.")
    _check_model(run)
    for path in paths:
        if copy_to is not None:
            check_outside(copy_to, path, flag="--copy-to")
    with watching(is_quiet=shape.is_quiet) as on_event:
        from finetune.workflow.predict import COVERAGE, Wanted, predict_with

        share = COVERAGE if unsure and coverage is None else coverage
        stream = predict_with(
            run,
            paths,
            wanted=Wanted(top, scores, features, share, threshold, tta.value),
            device=device,
            batch_size=batch_size,
            engine=engine.value,
            column=column,
            stdin=sys.stdin.buffer if sys.stdin else None,
            on_event=on_event,
        )
        tally = _deliver(stream, shape, copy_to, is_linked=link)
    if shape.file is not None:
        typer.echo(f"{shape.file}: {tally.said()}")
    tally.check()


def _deliver(stream: Stream, shape: Shape, copy_to: Path | None, *, is_linked: bool) -> Tally:
    """Write predictions in a shape, sort the images into folders on the way, and return how many there were."""
    tally = Tally()
    with ExitStack() as stack:
        predictions = tally(_sorted(stream, copy_to, is_linked, stack) if copy_to else stream)
        _write(predictions, stream, shape, stack)
    return tally


def _check_model(run: Path) -> None:
    """Refuse, without torch, what cannot name images."""
    from finetune.runs.answering import open_model

    open_model(run)


def _sorted(stream: Stream, place: Path, is_linked: bool, stack: ExitStack) -> Iterator[Prediction]:
    """Return the predictions, sorting each image into the folder of its class on the way.

    Raises:
        RecipeError: what is said of images is not one class. ResourceError: the folder holds something.
    """
    from finetune.data.sorted_copies import UNSURE, check_sortable, sorted_copies

    layout = stream.layout
    if layout.task != "classify":
        raise RecipeError("--copy-to is for models with one class per image", hint="Leave it out.")
    check_sortable(place, layout.classes, has_unsure=layout.has_unsure)
    copies = stack.enter_context(sorted_copies(place, is_linked=is_linked))

    def sorting() -> Iterator[Prediction]:
        for prediction in stream:
            if not prediction.problem:
                copies.add(prediction.file, UNSURE if prediction.unsure else prediction.label)
            yield prediction
        left = f"; {counted(copies.num_left, 'image is', 'images are')} not files here" * bool(copies.num_left)
        what = "linked" if is_linked else "copied"
        typer.echo(f"{counted(copies.num_sorted, 'file')} {what} to {place}{left}", err=True)

    return sorting()


def _write(predictions: Iterable[Prediction], stream: Stream, shape: Shape, stack: ExitStack) -> None:
    """Write predictions in a shape: to a file, which appears when it is whole, or to stdout."""
    if shape.form == "json":
        print_json_document(predictions)
    elif shape.form == "table":
        print_tables(predictions, stream.layout, shape.stdout)
    else:
        from finetune.evaluation.prediction_files import WRITERS

        WRITERS[shape.form](predictions, stream.layout, _place(shape, stack))


def _place(shape: Shape, stack: ExitStack) -> BinaryIO:
    from finetune.whole import whole_file

    if shape.file is None:
        return shape.stdout.buffer
    beside = stack.enter_context(whole_file(shape.file))
    return stack.enter_context(beside.open("wb"))
