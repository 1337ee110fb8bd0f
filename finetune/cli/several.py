"""`finetune run --folds K` and `--seeds N`: the runs of one recipe, and their joint result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.cli import tables
from finetune.cli.options import base_recipe
from finetune.cli.screen import watching
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.tasks import NUM_FIRST

if TYPE_CHECKING:
    from finetune.workflow.several import Several


def run_them(
    *,
    folds: int | None,
    seeds: int | None,
    recipe: str | None,
    out: Path | None,
    resume: Path | None,
    allow: Sequence[str] | None,
    settings: dict[str, Any],
    overrides: Mapping[str, Any],
    json_: bool,
) -> None:
    """Run one recipe on folds or seeds, or resume that, and print the result."""
    if resume is not None and (settings or overrides):
        raise RecipeError("--resume continues several runs unchanged: the only other flag is --allow")
    base = base_recipe(recipe, settings, overrides) if resume is None else None
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.several import resume_several, run_several

        if resume is not None:
            found = resume_several(resume, allow=allow or (), on_event=on_event)
        else:
            found = run_several(
                folds=folds, seeds=seeds, recipe=base, out=out, overrides=overrides, on_event=on_event, **settings
            )
    if json_:
        tables.print_json(found.to_json())
    else:
        show(found)


def show(found: Several) -> None:
    """Print each run's metrics, their mean, and for folds all of them together."""
    console = tables.out()
    columns = [
        (split, name) for split, values in next(iter(found.runs.values())).items() for name in list(values)[:NUM_FIRST]
    ]
    headers = ["", *(f"{split} {name}" for split, name in columns)]
    rows = [(run, *(f"{metrics[split][name].value:.3f}" for split, name in columns))
            for run, metrics in found.runs.items()]  # fmt: skip
    if found.mean:
        rows.append(("mean", *(tables.bracketed(found.mean[split][name]) for split, name in columns)))
    console.print()
    console.print(tables.table(headers, rows, drop=headers[:1:-1]))
    for what, values in (("out of fold", found.out_of_fold), ("ensemble, test", found.ensemble)):
        if values:
            first = list(values.items())[:NUM_FIRST]
            console.print(f"{what}: " + ", ".join(f"{name} {tables.bracketed(value)}" for name, value in first))
    console.print(f"\n{_meaning(found)}", style="dim")
    for name, reason in found.failed.items():
        console.print(f"[red]failed[/red] {escape(f'{name}: {reason}')}")
    console.print(f"\neverything is in [bold]{escape(str(found.folder))}[/bold]")
    console.print("  runs/        a run folder for each")
    if found.out_of_fold:
        console.print("  out_of_fold.csv  every image, judged by the run that has not seen it")
    if found.is_exported:
        console.print("  exports/     model.onnx, all runs as one, proven equal")
        console.print(f"next: finetune predict {escape(shlex.quote(str(found.folder)))} PHOTOS")


def _meaning(found: Several) -> str:
    if found.kind == "seeds":
        return "mean: over the seeds, in brackets 95 % intervals for other images and other seeds"
    return (
        "mean: over the folds, in brackets 95 % intervals (val: folds share train images, which widens them);"
        " out of fold: all images together, each by the run that has not seen it"
    )
