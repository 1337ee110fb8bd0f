"""`backbones rank`: which backbone is nearest to some data."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import tables
from finetune.cli.help import examples
from finetune.cli.options import JsonOption, base_recipe, recipe_options
from finetune.cli.screen import watching
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.types import MOST_RANKED
from finetune.wording import apart, counted

if TYPE_CHECKING:
    from finetune.prepare.candidates import Ranked

EXAMPLES = examples(
    "backbones rank --data imgs",
    "backbones rank --data imgs weights/*",
    "backbones rank --data imgs resnet18 resnet18@160 --sample 300",
)
MEANING = (
    "px: side of the input; GMACs: billion multiply-adds per image; M par: million parameters; predicted {metric}:"
    " of a linear model, with its 95 % interval; "
)
OF_CLASSES, OF_OTHERS = (
    "k-NN: top1 by the nearest images; LogME, H: scores of separability",
    "LogME: likelihood of the numbers under a linear model",
)
FLAGS = ("data", "group_by", "val", "test", "image_size", "seed", "device", "workers", "threads")


@partial(recipe_options, flags=FLAGS)
def rank(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CANDIDATE",
            help="timm names or folders of weights, each with @PIXELS for another image size."
            " Default: what a short list has on this machine.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=2, help="Train images to measure on.")
    ] = MOST_RANKED,
    json_: JsonOption = False,
) -> None:
    """Rank backbones by how well they serve your data, without training them."""
    if candidates and "data" not in settings and Path(candidates[0]).exists():
        raise RecipeError(
            "data.path is empty: where are the images?",
            hint=f"Name data with a flag here: finetune backbones rank --data {shlex.quote(candidates[0])}",
        )
    base_recipe(None, settings, overrides)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.rank import rank as rank_them

        ranked = rank_them(
            candidates=candidates or (), sample=sample, overrides=overrides, on_event=on_event, **settings
        )
    if json_:
        tables.print_json(ranked.to_json())
    else:
        show(ranked)


def show(ranked: Ranked) -> None:
    """Print the candidates in order, what failed, and what to take."""
    console, ranking = tables.out(), ranked.ranking
    has_one_class = ranked.task == "classify"
    rows = [
        (
            candidate.name,
            candidate.image_size[0],
            f"{candidate.gmacs:.3f}",
            f"{candidate.num_parameters / 1e6:.1f}",
            tables.bracketed(candidate.predicted),
            *([f"{candidate.knn_top1:.3f}"] if has_one_class else []),
            f"{candidate.logme:.2f}",
            *([f"{candidate.h_score:.2f}"] if has_one_class else []),
        )
        for candidate in ranking.candidates
    ]
    console.print()
    headers = ["backbone", "px", "GMACs", "M par", f"predicted {ranked.metric}", "k-NN", "LogME", "H"]
    if not has_one_class:
        headers = [header for header in headers if header not in ("k-NN", "H")]
    droppable = [header for header in ("H", "LogME", "M par", "k-NN") if header in headers]
    console.print(tables.table(headers, rows, drop=droppable))
    console.print(f"\n{MEANING.format(metric=ranked.metric)}{OF_CLASSES if has_one_class else OF_OTHERS}")
    among = apart(ranked.num_images, ranked.num_independent)
    classes = f" of {ranked.num_classes} classes" if ranked.task != "regress" else ""
    console.print(f"measured on {counted(ranked.num_images, 'train image')}{among}{classes}")
    if ranked.failed:
        console.print(f"left out: {escape(', '.join(failure.name for failure in ranked.failed))}")
    console.print(f"[bold]take[/bold] {escape(ranking.reason)}")
    for remark in ranking.remarks:
        console.print(f"note: {escape(remark)}")
