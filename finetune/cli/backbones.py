"""`backbones rank`."""

from __future__ import annotations

import typer

from finetune.cli import rank

app = typer.Typer(help="Find a backbone for your data.", no_args_is_help=True)
app.command(epilog=rank.EXAMPLES)(rank.rank)


@app.callback()
def _group() -> None:
    pass
