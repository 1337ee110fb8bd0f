"""`cache ls|clear`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli import tables
from finetune.cli.help import App, examples
from finetune.cli.options import JsonOption
from finetune.cli.terminal import escape
from finetune.types import to_json
from finetune.wording import counted

app = App(
    help="See and clear what is kept: decoded images, and what frozen layers have computed.", no_args_is_help=True
)
FolderOption = Annotated[str, typer.Option("--folder", metavar="DIR", help="A cache folder other than the usual one.")]


@app.command("ls", epilog=examples("cache ls", "cache ls --json"))
def list_them(folder: FolderOption = "auto", json_: JsonOption = False) -> None:
    """List the entries of the cache, the least recently used first."""
    from finetune.workflow.cache import list_cache

    place, entries = list_cache(folder)
    if json_:
        tables.print_json({"folder": str(place), "entries": [to_json(entry) for entry in entries]})
        return
    rows = [
        (
            entry.name[:8],
            *_what(entry.about),
            f"{entry.num_rows:,}",
            f"{entry.num_bytes / 1e6:,.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        )
        for entry in entries
    ]
    console = tables.out()
    headers = ["entry", "of", "what", "images", "MB", "last used"]
    console.print(tables.table(headers, rows, words=["of", "what"], drop=["last used"]))
    total = sum(entry.num_bytes for entry in entries)
    console.print(f"\n{counted(len(entries), 'entry', 'entries')}, {total / 1e6:,.1f} MB in {escape(str(place))}")


def _what(about: dict[str, Any]) -> tuple[str, str]:
    """Return what an entry's rows were computed from, and what they are."""
    place, network = Path(str(about.get("root", ""))).name, about.get("network")
    if about.get("kind") == "pixels":
        return place or "?", f"pixels, {about.get('side', '?')}"
    if about.get("kind") == "looks":
        return place or "?", "small images"
    name = network.get("name") if isinstance(network, dict) else None
    return str(name or "?"), f"features, view {about.get('view', '?')}"


@app.command(epilog=examples("cache clear", "cache clear --folder other"))
def clear(
    names: Annotated[list[str] | None, typer.Argument(metavar="ENTRY", help="Default: all.")] = None,
    folder: FolderOption = "auto",
) -> None:
    """Remove entries of the cache; they are computed again when they are needed."""
    from finetune.workflow.cache import clear_cache

    freed, held = clear_cache(names, folder=folder)
    typer.echo(f"{freed / 1e6:,.1f} MB freed")
    if held:
        typer.echo(f"kept, a process is filling them: {', '.join(name[:8] for name in held)}")
