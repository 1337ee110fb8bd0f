"""`finetune eval`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli import tables
from finetune.cli.help import examples
from finetune.cli.options import BatchOption, DeviceOption, JsonOption, RunArgument, TtaName, TtaOption, with_interrupt
from finetune.cli.screen import watching

EXAMPLES = examples(
    "eval runs/RUN --split test",
    "eval runs/RUN --data others --tta flip",
    "eval runs/RUN/exports/int8 --split val",
)


class SplitName(StrEnum):
    """The splits that can be measured."""

    train = "train"
    val = "val"
    test = "test"


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
    tta: TtaOption = TtaName.none,
    json_: JsonOption = False,
) -> None:
    """Measure the model of a run or an export on a split, or on other data."""
    from finetune.runs.answering import open_model

    open_model(run)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.evaluate import evaluate as measure

        evaluation = measure(
            run, data=data, split=split.value if split else None, device=device, batch_size=batch_size,
            workers=workers, tta=tta.value, on_event=on_event,
        )  # fmt: skip
    if json_:
        tables.print_json(evaluation.to_json())
    else:
        tables.show_evaluation(evaluation)
