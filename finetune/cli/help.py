"""`--help`: usage, flags in their panels, examples one per line; laid out like everything else, for any width."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from finetune.cli.screen import VOLUMES, Volume, at_volume
from finetune.cli.tables import out, table
from finetune.cli.terminal import escape
from finetune.errors import RecipeError
from finetune.wording import in_our_words

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # has no public name
LIST = "ls"  # the command of a group that lists
ARGUMENTS, OPTIONS, COMMANDS = "Arguments", "Options", "Commands"  # the panels of what names none


def examples(*lines: str) -> str:
    """Return the end of a command's help: commands that use it, as typed."""
    return "\n".join(["Examples:", *(f"  finetune {line}" for line in lines)])


class Command(TyperCommand):
    """A command with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; nothing is left for the formatter."""
        show_help(self, ctx)


def with_volume(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that reports as much as --quiet or --verbose say.

    Raises:
        RecipeError: it is asked to be both.
    """

    @wraps(command)
    def at_some_volume(*, quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet and verbose:
            raise RecipeError("--quiet and --verbose are opposites", hint="Give one of them.")
        with at_volume("quiet" if quiet else "verbose" if verbose else "usual"):
            command(**given)

    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [*own, *(_volume_flag(volume, text) for volume, text in VOLUMES.items())]
    at_some_volume.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    at_some_volume.__annotations__ = {each.name: each.annotation for each in parameters}
    return at_some_volume


def _volume_flag(volume: Volume, text: str) -> inspect.Parameter:
    kind = Annotated[bool, typer.Option(f"--{volume}", f"-{volume[0]}", help=text)]
    return inspect.Parameter(volume, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)


class CommandGroup(TyperGroup):
    """A group of commands with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; nothing is left for the formatter."""
        show_help(self, ctx)


class ListGroup(CommandGroup):
    """A group that lists if no command is given; its help shows the options of the list as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_command = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_command or ctx.resilient_parsing else [LIST, *args])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        own, self.params = self.params, self.commands[LIST].params
        try:
            super().format_help(ctx, formatter)
        finally:
            self.params = own


class App(typer.Typer):
    """An application, or a part of one, whose commands and groups have our help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": CommandGroup, **settings})

    def command(self, name: str | None = None, *, draws: bool = False, **settings: Any) -> Callable[[Any], Any]:
        """Return the decorator that makes a function a command; one that draws what it does can be told how much."""
        registered = super().command(name, **{"cls": Command, **settings})
        return (lambda function: registered(with_volume(function))) if draws else registered

    def __call__(self, *args: Any, **how: Any) -> Any:
        """Run the command line, by one name however it was started.

        Raises:
            RecipeError: a flag or an argument is not what it should be.
        """
        try:
            code = super().__call__(*args, **{"prog_name": "finetune", "standalone_mode": False, **how})
        except typer.Abort:
            code = 130  # as older versions of typer hand on Ctrl-C
        except USAGE_ERROR as error:
            if not (message := error.format_message()):
                sys.exit(error.exit_code)  # no arguments at all: the help was printed
            asked = error.ctx.command_path if error.ctx else "finetune"
            raise RecipeError(in_our_words(message), hint=f"`{asked} --help` shows what it takes.") from None
        if isinstance(code, int) and code:
            sys.exit(code)


def show_help(command: Any, ctx: Any) -> None:
    """Print how a command is used."""
    console = out()
    console.print(f"[bold]{escape(' '.join(command.get_usage(ctx).split()))}[/bold]\n")
    if command.help:
        console.print(escape(command.help))
    panels = _panels(command, ctx)
    widest = max((len(name) for rows in panels.values() for name, _ in rows), default=0)
    for panel, rows in panels.items():
        console.print(f"\n[bold]{panel}[/bold]")
        aligned = [(f"  {name}".ljust(widest + 2), text) for name, text in rows]
        console.print(table(["", "what"], aligned, words=["what"], has_header=False))
    if command.epilog:
        console.print()
        for line in command.epilog.split("\n"):
            console.print(escape(line))


def _panels(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the rows of each panel: arguments first, then what has a panel of its own, the common ones last."""
    panels: dict[str, list[tuple[str, str]]] = {ARGUMENTS: []}
    for panel, name, text in (*_parameters(command, ctx), *_commands(command, ctx)):
        panels.setdefault(panel, []).append((name, " ".join(text.split())))
    panels[OPTIONS] = panels.pop(OPTIONS)  # there is always --help
    return {panel: rows for panel, rows in panels.items() if rows}


def _parameters(command: Any, ctx: Any) -> Iterator[tuple[str, str, str]]:
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue  # hidden
        name, text = record
        if param.param_type_name == "argument":
            yield param.rich_help_panel or ARGUMENTS, name.split(" <")[0], text
        else:
            yield getattr(param, "rich_help_panel", None) or OPTIONS, name.replace(" / ", "/"), text


def _commands(command: Any, ctx: Any) -> Iterator[tuple[str, str, str]]:
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield getattr(each, "rich_help_panel", None) or COMMANDS, name, each.get_short_help_str(1000)
