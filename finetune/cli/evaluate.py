"""`finetune eval`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune import recipe as recipes
from finetune.cli import tables
from finetune.cli.help import examples
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
from finetune.errors import RecipeError

EXAMPLES = examples(
    "eval runs/RUN --split test",
    "eval runs/RUN --data others --tta flip",
    "eval runs/RUN --corrupt",
    "eval runs/RUN/exports/int8 --split val",
)


class SplitName(StrEnum):
    """The splits that can be measured."""

    train = "train"
    val = "val"
    test = "test"


@with_interrupt
def evaluate(
    run: ModelArgument,
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
    tta: TtaOption = TtaName.none,
    corrupt: Annotated[
        bool,
        typer.Option("--corrupt", help="Also measure on noisy, blurred and otherwise corrupted images (ImageNet-C)."),
    ] = False,
    severities: Annotated[
        str | None, typer.Option("--severities", metavar="LIST", help="For --corrupt: 1 to 5. Default: 1,2,3.")
    ] = None,
    known_only: Annotated[
        bool,
        typer.Option("--known-only", help="With --data: leave out images of classes that the model does not know."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="data.KEY=VALUE", help="How --data is read, e.g. data.image_column=file; repeatable."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure the model of a run or an export on a split, or on other data."""
    from finetune.runs.answering import open_model

    open_model(run)
    at = severities_of(severities, is_asked=corrupt)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.evaluate import evaluate as measure

        evaluation = measure(
            run, data=data, split=split.value if split else None, device=device, batch_size=batch_size,
            workers=workers, tta=tta.value, corrupt=at, known_only=known_only,
            overrides=dict(map(recipes.parse_set, set_ or [])), on_event=on_event,
        )  # fmt: skip
    if json_:
        tables.print_json(evaluation.to_json())
    else:
        tables.show_evaluation(evaluation)


def severities_of(text: str | None, *, is_asked: bool) -> tuple[int, ...]:
    """Return the severities asked for, none without --corrupt.

    Raises:
        RecipeError: they are not numbers, or --corrupt is missing.
    """
    if text is not None and not is_asked:
        raise RecipeError("--severities needs --corrupt", hint="Give both.")
    named = "1,2,3" if text is None else text
    if not all(part.strip().isdecimal() for part in named.split(",")):
        raise RecipeError(f"--severities {named} is not a list of numbers", hint="For example: --severities 1,2,3.")
    return tuple(int(part) for part in named.split(",")) if is_asked else ()
