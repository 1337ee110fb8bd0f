"""The commands, grouped. Nothing here or above imports torch: help and completion answer at once."""

from __future__ import annotations

from typing import Annotated

import typer

import finetune
from finetune.cli import (
    augment,
    backbones,
    cache,
    check,
    compare,
    doctor,
    ensemble,
    evaluate,
    export,
    find_lr,
    plan,
    predict,
    recipes,
    run,
    runs,
    sample,
    shard,
    tune,
)
from finetune.cli.help import App
from finetune.process import check_launched_once

app = App(
    name="finetune",
    help="Transfer learning on images: measures which layers deserve training, and proves what it claims.",
    epilog="Start here:\n  finetune sample imgs\n  finetune run imgs --strategy head-only",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TRAIN, USE, MORE = "Train", "Use a trained classifier", "More"
app.command(draws=True, rich_help_panel=TRAIN, epilog=run.EXAMPLES)(run.run)
app.command(draws=True, rich_help_panel=TRAIN, epilog=plan.EXAMPLES)(plan.plan)
app.command(draws=True, rich_help_panel=TRAIN, epilog=check.EXAMPLES)(check.check)
app.command(rich_help_panel=TRAIN, epilog=augment.EXAMPLES)(augment.augment)
app.command(draws=True, rich_help_panel=TRAIN, epilog=compare.EXAMPLES)(compare.compare)
app.command(draws=True, rich_help_panel=TRAIN, epilog=tune.EXAMPLES)(tune.tune)
app.command("find-lr", draws=True, rich_help_panel=TRAIN, epilog=find_lr.EXAMPLES)(find_lr.find_lr)
app.command(draws=True, rich_help_panel=TRAIN, epilog=ensemble.ENSEMBLE_EXAMPLES)(ensemble.ensemble)
app.command(draws=True, rich_help_panel=TRAIN, epilog=ensemble.SOUP_EXAMPLES)(ensemble.soup)
app.add_typer(backbones.app, name="backbones", rich_help_panel=TRAIN)
app.command("eval", draws=True, rich_help_panel=USE, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(draws=True, rich_help_panel=USE, epilog=predict.EXAMPLES)(predict.predict)
app.command(draws=True, rich_help_panel=USE, epilog=export.EXAMPLES)(export.export)
app.add_typer(runs.app, name="runs", rich_help_panel=USE)
app.add_typer(recipes.app, name="recipes", rich_help_panel=MORE)
app.add_typer(cache.app, name="cache", rich_help_panel=MORE)
app.command(draws=True, rich_help_panel=MORE, epilog=shard.EXAMPLES)(shard.shard)
app.command(rich_help_panel=MORE, epilog=sample.EXAMPLES)(sample.sample)
app.command(draws=True, rich_help_panel=MORE, epilog=doctor.EXAMPLES)(doctor.doctor)


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(finetune.__version__)
        raise typer.Exit


@app.callback()
def _all(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "run":  # which several processes share
        check_launched_once()
