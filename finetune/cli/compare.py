"""`compare`: several strategies on the same images, or finished runs, and which are better beyond chance."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import tables
from finetune.cli.completion import complete_run, complete_strategy, complete_unfinished, in_list
from finetune.cli.help import examples
from finetune.cli.options import FLAGS, JsonOption, RecipeOption, base_recipe, recipe_options, set_once
from finetune.cli.screen import HEIGHTS, watching
from finetune.cli.show_side_by_side import show_side_by_side
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.runs.listed import is_run
from finetune.strategy.entrants import USUAL
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.report.standings import Standing
    from finetune.workflow.compare import Comparison

EXAMPLES = examples(
    "compare imgs",
    "compare imgs --strategies head-only,top-k:3 --seeds 3 --test 0.2",
    "compare --resume runs/COMPARISON",
    "compare runs/A runs/B --md",
)
CURVE = 30  # characters of a curve in the terminal
SHARED = tuple(flag for flag in FLAGS if flag not in ("strategy", "top_k", "probe_at"))


@partial(recipe_options, flags=SHARED)
def compare(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DATA | RUN RUN...]",
            help="Short for --data DATA; or finished runs to compare, instead of new ones.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            metavar="A,B,...",
            help="What to compare, some with a number: top-k:3, lp-ft:3, linear-probe:GROUP."
            f" Default: {', '.join(USUAL)}.",
            autocompletion=in_list(complete_strategy),
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Runs of each. Default: 1.")] = None,
    recipe: RecipeOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new or empty folder for it.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="DIR", help="Resume a stopped comparison.", autocompletion=complete_unfinished
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="data|version", help="With --resume, let this have changed."),
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--md", help="For finished runs: print Markdown.")] = False,
    json_: JsonOption = False,
) -> None:
    """Run several strategies on your data, or take finished runs, and say which are better beyond chance."""
    if runs and len(runs) == 1 and not is_run(runs[0]):
        set_once(settings, "data", str(runs[0]))
    elif runs:
        if settings or overrides or recipe or out or strategies or seeds or resume or allow:
            raise RecipeError(
                "finished runs are compared unchanged: RUN RUN... takes only --md or --json",
                hint="To compare strategies, name data with a flag: finetune compare --data DIR.",
            )
        _of_runs(runs, as_markdown=as_markdown, as_json=json_)
        return
    if as_markdown:
        raise RecipeError("--md is for finished runs: finetune compare runs/A runs/B --md")
    if resume is not None and (settings or overrides or recipe or out or strategies or seeds):
        raise RecipeError("--resume continues a comparison unchanged: the only other flag is --allow")
    if allow and resume is None:
        raise RecipeError("--allow needs --resume: a new comparison has no changes to allow")
    base = base_recipe(recipe, settings, overrides) if resume is None else None
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.compare import compare as run_all
        from finetune.workflow.compare import resume_comparison

        if resume is not None:
            comparison = resume_comparison(resume, allow=allow or (), on_event=on_event)
        else:
            chosen = [name.strip() for name in strategies.split(",")] if strategies else USUAL
            comparison = run_all(
                strategies=chosen, seeds=seeds or 1, recipe=base, out=out, overrides=overrides,
                on_event=on_event, **settings,
            )  # fmt: skip
    if json_:
        tables.print_json(comparison.to_json())
    else:
        show(comparison)


def _of_runs(runs: list[Path], *, as_markdown: bool, as_json: bool) -> None:
    if as_markdown and as_json:
        raise RecipeError("--md and --json are two output formats: give one")
    from finetune.workflow.compare_runs import compare_runs

    found = compare_runs(runs)
    if as_json:
        tables.print_json(found.to_json())
    else:
        show_side_by_side(found, as_markdown=as_markdown)


def show(comparison: Comparison) -> None:
    """Print the strategies, the best first, what failed, and what it means."""
    console = tables.out()
    metric = comparison.standings[0].metric
    columns = ["strategy", f"{comparison.split} {metric}", "behind the best", "time", "params", "epoch"]
    console.print()
    console.print(
        tables.table(columns, [_row(standing) for standing in comparison.standings], drop=["epoch", "params", "time"])
    )
    console.print()
    headers = [f"val {metric} over epochs", "first", "last", "from 0 to 1"]
    console.print(
        tables.table(
            headers, [_curve(standing) for standing in comparison.standings], words=headers[3:], drop=headers[3:]
        )
    )
    over = f", {len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else ""
    console.print(
        f"\n{counted(comparison.num_images, f'{comparison.split} image')}{over}; in brackets: 95 % intervals,"
        " behind the best: image by image"
    )
    for text in dict.fromkeys(f"{failure.strategy}: {failure.reason}" for failure in comparison.failed):
        console.print(f"[red]failed[/red] {escape(text)}")
    for line in comparison.said:
        console.print(escape(line))
    if comparison.split == "val":
        console.print("note: val also chose the epoch, so this is optimistic; --test 0.2 sets a test split aside")
    console.print(f"curves: [bold]{escape(str(comparison.folder / 'compare.html'))}[/bold]")


def _row(standing: Standing) -> tuple[str, ...]:
    score, gap = standing.score, standing.difference
    epochs = sorted(set(standing.delivered_epochs))
    is_named = standing.strategy == standing.label.partition(":")[0]
    name = standing.label if is_named else f"{standing.label} ({standing.strategy})"
    return (
        name,
        tables.bracketed(score),
        f"{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]" if gap else "",
        tables.duration(standing.seconds),
        _count(standing.num_trained),
        str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}",
    )


def _curve(standing: Standing) -> tuple[str, ...]:
    """Return a row that draws the score on val of the first seed between 0 and 1, at most `CURVE` epochs of it."""
    values = [row.score for row in standing.curves[0]]
    count = min(len(values), CURVE)
    shown = [values[round(place * (len(values) - 1) / max(count - 1, 1))] for place in range(count)]
    drawn = "".join(HEIGHTS[min(int(max(value, 0) * len(HEIGHTS)), len(HEIGHTS) - 1)] for value in shown)
    return standing.label, f"{values[0]:.3f}", f"{values[-1]:.3f}", drawn.ljust(CURVE)


def _count(number: int) -> str:
    """Return a number of parameters in a few signs."""
    if number >= 10**6:
        return f"{number / 10**6:.1f} M"
    return f"{number / 1000:.0f} k" if number >= 10**4 else f"{number:,}"
