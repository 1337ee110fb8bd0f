"""`finetune runs`: list the run folders, show one, remove some, or open a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.checkpoint.claim import RUNS
from finetune.checkpoint.run_folder import RunFolder
from finetune.cli import tables
from finetune.cli.completion import complete_any_run
from finetune.cli.help import LIST, App, ListGroup, examples
from finetune.cli.options import JsonOption, RunArgument, with_interrupt
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.runs.listed import PARTS, FoundRun, ensembles_of, list_runs, page_of, removable, remove_runs, show_run
from finetune.wording import counted

LIST_EXAMPLES = examples("runs", "runs other/place --json")
app = App(cls=ListGroup, help="List run folders, show, open or remove one.", epilog=LIST_EXAMPLES)


@app.command(LIST, epilog=LIST_EXAMPLES)
@with_interrupt
def list_them(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds them.")] = RUNS,
    json_: JsonOption = False,
) -> None:
    """List run folders, the newest last."""
    runs = list_runs(place) if place != RUNS or place.is_dir() else ()  # before the first run there is none
    if json_:
        tables.print_json([run.to_json() for run in runs])
        return
    console = tables.out()
    if not runs:
        console.print(escape(f"{place} holds no run folder; a run writes one: finetune run DATA"))
        return
    rows = [
        (_name(run), run.kind, run.data, run.strategy, _reached(run), _date(run), _size(run)) for run in runs
    ]  # fmt: skip
    headers = ["run", "kind", "data", "strategy", "reached", "changed", "MB"]
    console.print(tables.table(headers, rows, words=["run", "data", "reached"], drop=["kind", "data"]))
    total = sum(run.num_bytes for run in runs)
    console.print(f"\n{counted(len(runs), 'run folder')}, {total / 1e6:,.1f} MB in {escape(str(place))}")


@app.command(epilog=examples("runs show runs/RUN", "runs show runs/RUN --json"))
@with_interrupt
def show(run: RunArgument, json_: JsonOption = False) -> None:
    """Show what a run folder is, what it reached and what is in it."""
    found = show_run(run)
    if json_:
        tables.print_json(found.to_json())
        return
    console = tables.out()
    facts = {
        "kind": found.kind, "data": found.data, "network": found.network, "strategy": found.strategy,
        "reached": _reached(found), "changed": _date(found), "size": f"{_size(found)} MB",
    }  # fmt: skip
    console.print(f"[bold]{escape(str(found.path))}[/bold]")
    rows = [(f"  {name}", value) for name, value in facts.items() if value]
    console.print(tables.table(["", "value"], rows, words=["value"], has_header=False))
    parts = [(f"  {name}", what) for name, what in PARTS.items() if (found.path / name).exists()]
    if parts:
        console.print()
        console.print(tables.table(["", "what"], parts, words=["what"], has_header=False))
    if not found.is_finished:
        console.print(f"\nresume it: {escape(RunFolder(found.path).resuming)}")


@app.command(epilog=examples("runs rm runs/RUN", "runs rm runs/A runs/B --yes"))
@with_interrupt
def rm(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders.", show_default=False, autocompletion=complete_any_run),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove run folders with all that is in them."""
    found = removable(runs)
    if not yes and not sys.stdin.isatty():
        raise RecipeError("no terminal to ask whether to remove them", hint="Confirm with --yes.")
    console = tables.out()
    for run in found:
        reached = _reached(run)
        console.print(escape(f"{run.path}: {run.kind}, {_size(run)} MB" + (f", {reached}" if reached else "")))
    for ensemble, member in ensembles_of(found):
        console.print(escape(f"{ensemble} is an ensemble that loses its member {member}: its file still works"))
    if not yes:
        typer.confirm("Remove them and all they contain?", abort=True)
    freed = remove_runs([run.path for run in found])
    console.print(f"{counted(len(found), 'run folder')} removed, {freed / 1e6:,.1f} MB freed")


@app.command("open", epilog=examples("runs open runs/RUN", "runs open runs/COMPARISON"))
@with_interrupt
def open_page(run: RunArgument) -> None:
    """Open the page of a run in the browser, and print its path."""
    page = page_of(run)
    tables.out().print(escape(str(page)))
    typer.launch(page.absolute().as_uri())


def _name(run: FoundRun) -> str:
    return run.path.name or run.path.absolute().name  # of "." it is empty


def _reached(run: FoundRun) -> str:
    if not run.is_finished:
        return "not finished"
    return f"{run.measure} {run.score:.3f}" if run.score is not None else ""


def _date(run: FoundRun) -> str:
    return run.changed.strftime("%Y-%m-%d %H:%M")


def _size(run: FoundRun) -> str:
    return f"{run.num_bytes / 1e6:,.1f}"
