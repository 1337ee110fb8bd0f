"""`finetune tune`: hyperparameters by the seven steps of the notes, trial by trial."""

from __future__ import annotations

import shlex
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import tables
from finetune.cli.completion import complete_unfinished
from finetune.cli.help import examples
from finetune.cli.options import FLAGS, TRAINING, JsonOption, RecipeOption, base_recipe, recipe_options, set_once
from finetune.cli.screen import trials_table, watching
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.types import to_json
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.search.outcome import Tuned

EXAMPLES = examples(
    "tune imgs --strategy head-only --trials 30",
    "tune imgs --time 20m --search optim.lr=log:1e-4:1e-1 --search optim.name=adamw,nesterov",
    "tune --resume runs/SEARCH",
)
SHARED = tuple(flag for flag in FLAGS if flag not in ("time", "refit"))
FAILURES = 3  # reasons of failed trials that are told
SHOWN = 10  # trials of the table at the end


@partial(recipe_options, flags=SHARED)
def tune(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    images: Annotated[str | None, typer.Argument(metavar="DATA", help="Short for --data DATA.")] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=VALUES",
            help="A key of the recipe with log:LOW:HIGH, lin:LOW:HIGH, int:LOW:HIGH, or a,b,c; repeatable. Default:"
            " learning rate and weight decay.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=3, help="How many at most. Default: 30.")
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="End the search after this time: 90s, 20m, 2h.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", metavar="random|grid|tpe", help="How values are drawn. Default: random.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", metavar="URL", help="A database for several machines. Default: a file in the folder."
        ),
    ] = None,
    recipe: RecipeOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new or empty folder for it.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Resume a stopped search, or help a running one.",
            autocompletion=complete_unfinished,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="data|version", help="With --resume, let this have changed."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Search hyperparameters on val, and leave the recipe of the best."""
    if images is not None:
        set_once(settings, "data", images)
    if time is not None:
        settings["time"] = time
    if resume is not None and (settings or overrides or search or trials or sampler or storage or recipe or out):
        raise RecipeError("--resume continues a search unchanged: the only other flag is --allow")
    if allow and resume is None:
        raise RecipeError("--allow needs --resume: a new search has no changes to allow")
    base = base_recipe(recipe, settings, overrides) if resume is None else None
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.tune import resume_tuning
        from finetune.workflow.tune import tune as search_all

        if resume is not None:
            found = resume_tuning(resume, allow=allow or (), on_event=on_event)
        else:
            found = search_all(
                search=search or (), sampler=sampler or "random", trials=trials or 30, storage=storage, recipe=base,
                out=out, overrides=overrides, on_event=on_event, **settings,
            )  # fmt: skip
    if json_:
        tables.print_json(found.to_json())
    else:
        show(found)


def show(found: Tuned) -> None:
    """Print the best trials, how they stand beside the recipe as it was, and what to do next."""
    console = tables.out()
    ranked = sorted((facts for facts in found.trials if facts.state == "done"), key=lambda facts: facts.rank)[::-1]
    shown = [to_json(facts) for facts in (*ranked[:SHOWN], found.usual)]
    console.print()
    console.print(trials_table(shown, score=found.score))
    ends = {state: sum(facts.state == state for facts in found.trials) for state in ("done", "pruned", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in ends.items() if count)
    console.print(f"\n{counted(len(found.trials), 'trial')}: {told}; usual: the recipe unchanged, in full")
    reasons = Counter(facts.reason for facts in found.trials if facts.state == "failed")
    for reason, count in reasons.most_common(FAILURES):
        console.print(escape(f"failed: {counted(count, 'trial')}, {reason}"))
    if found.best == found.usual:
        console.print("no trial did better on val than the unchanged recipe")
    elif found.usual.score is not None and found.best.score is not None:
        gap = found.best.score - found.usual.score
        console.print(f"the best is {gap:+.3f} from the unchanged recipe; val chose it, so this is optimistic")
    for text in found.curves:
        console.print(escape(f"curves: {text}"))
    console.print(f"next: finetune run --recipe {escape(shlex.quote(str(found.recipe)))}")
