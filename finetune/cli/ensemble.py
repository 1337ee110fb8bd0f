"""`finetune ensemble` and `finetune soup`: several runs as one, by their answers or by their weights."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.checkpoint.run_folder import check_new, open_finished
from finetune.cli import tables
from finetune.cli.completion import complete_run
from finetune.cli.help import examples
from finetune.cli.options import BatchOption, DeviceOption, JsonOption, with_interrupt
from finetune.cli.screen import watching
from finetune.cli.terminal import escape
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.prepare.members import Joined
    from finetune.types import Interval

ENSEMBLE_EXAMPLES = examples(
    "ensemble runs/A runs/B runs/C",
    "ensemble runs/A runs/B runs/C --greedy --out runs/ABC",
)
SOUP_EXAMPLES = examples(
    "soup runs/A runs/B runs/C",
    "soup runs/A runs/B runs/C --greedy --out runs/SOUP",
)


class AverageName(StrEnum):
    """What is averaged over the members."""

    probabilities = "probabilities"
    logits = "logits"


RunsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN RUN...",
        help="Two or more finished run folders.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=0, help="Processes that decode. Default: the runs'.")
]


@with_interrupt
def ensemble(
    runs: RunsArgument,
    average: Annotated[
        AverageName, typer.Option("--average", metavar="|".join(AverageName), help="What to average over the members.")
    ] = AverageName.probabilities,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Choose on val who takes part, and how often (Caruana 2004).")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="With --greedy: each takes part at most once.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A new folder for one ONNX file of all members, proven equal."),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 32,
    workers: WorkersOption = None,
    json_: JsonOption = False,
) -> None:
    """Average what several runs answer, and measure that against the best of them."""
    _check(runs, out)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.ensemble import ensemble as average_of

        found = average_of(
            runs, average=average.value, greedy=greedy, once=once, out=out, device=device,
            batch_size=batch_size, workers=workers, on_event=on_event,
        )  # fmt: skip
    if json_:
        tables.print_json(found.to_json())
        return
    show_joined(found.joined, "ensemble")
    console = tables.out()
    if found.folder is None or found.proof is None:
        console.print("--out DIR writes it as one ONNX file, for `finetune predict`")
        return
    proven = f"proven on {counted(found.proof['num_images'], 'image')}"
    console.print(f"one ONNX file of {counted(_num_networks(found.joined), 'network')}, {proven}:"
                  f" [bold]{escape(str(found.folder / 'exports' / 'model.onnx'))}[/bold]")  # fmt: skip
    console.print(f"next: finetune predict {escape(shlex.quote(str(found.folder)))} PHOTOS")


@with_interrupt
def soup(
    runs: RunsArgument,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Try runs from the best on val to the worst; keep those that do no harm there."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new run folder with the averaged model.")
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 32,
    workers: WorkersOption = None,
    json_: JsonOption = False,
) -> None:
    """Average the weights of runs that began at one point into one model, and measure it."""
    _check(runs, out)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.soup import soup as average_of

        found = average_of(
            runs, greedy=greedy, out=out, device=device, batch_size=batch_size, workers=workers, on_event=on_event
        )
    if json_:
        tables.print_json(found.to_json())
        return
    show_joined(found.joined, "soup")
    console = tables.out()
    if found.folder is None:
        console.print("--out DIR writes it as a run folder, for `predict`, `eval`, `export` and --weights")
        return
    console.print(f"everything is in [bold]{escape(str(found.folder))}[/bold]")
    console.print(f"next: finetune predict {escape(shlex.quote(str(found.folder)))} PHOTOS")


def show_joined(found: Joined, what: str) -> None:
    """Print what combined runs reach on each split, next to each of them."""
    console = tables.out()
    splits = list(found.metrics)
    score = next(iter(found.metrics[splits[0]]))
    names = _short([member.run for member in found.members])
    rows = [(what, "", *(tables.bracketed(found.metrics[split][score]) for split in splits))]
    for name, member in zip(names, found.members, strict=True):
        of = "-" if not member.count else f"{member.count}x" if _is_weighted(found) else "yes"
        rows.append((name, of, *(tables.bracketed(member.metrics[split][score]) for split in splits)))
    console.print()
    console.print(tables.table(["", "used", *(f"{split} {score}" for split in splits)], rows,
                               drop=["used"]))  # fmt: skip
    console.print()
    best = names[[member.run for member in found.members].index(found.best)]
    if _num_networks(found) == 1:
        console.print(f"on val nothing improves {escape(best)}: the {what} is this run alone")
    for split in splits:
        console.print(escape(_sentence(found.gains[split], split, best, what)))
    if "test" not in splits:
        more = " and the members" if any(not member.count for member in found.members) else ""
        console.print(f"note: val also chose the epochs{more}, so this is optimistic; --test 0.2 sets test aside")


def _sentence(gain: Interval, split: str, best: str, what: str) -> str:
    """Return whether the combination is better than the best of its parts, in words."""
    size = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    sure = "better beyond chance" if gain.low > 0 else "worse beyond chance" if gain.high < 0 else "within chance"
    return f"{split}: the {what} against {best}, the best run: {size}, {sure}"


def _check(runs: Sequence[Path], out: Path | None) -> None:
    """Refuse impossible requests before anything is imported."""
    for run in runs:
        open_finished(run)
    if out is not None:
        check_new(out)


def _num_networks(found: Joined) -> int:
    return sum(member.count > 0 for member in found.members)


def _is_weighted(found: Joined) -> bool:
    return any(member.count > 1 for member in found.members)


def _short(paths: Sequence[Path]) -> list[str]:
    """Return names for folders: their last part, if that distinguishes them."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
