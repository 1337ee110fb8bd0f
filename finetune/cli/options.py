"""Options that several commands share: the recipe's flags, made from one table, and `--set`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import recipe as recipes
from finetune.cli.completion import COMPLETIONS, complete_key, complete_recipe, complete_run
from finetune.errors import Interrupted, RecipeError
from finetune.settings import Recipe

DATA, STRATEGY, TRAINING = "Data", "Backbone and strategy", "Training"

# flag: (panel, what stands for the value in the help); what it does is said by its key
FLAGS: dict[str, tuple[str, str]] = {
    "data": (DATA, "PATH"),
    "task": (DATA, "NAME"),
    "group_by": (DATA, "COLUMN|REGEX"),
    "val": (DATA, "SHARE"),
    "test": (DATA, "SHARE"),
    "backbone": (STRATEGY, "NAME"),
    "among": (STRATEGY, "NAMES"),
    "weights": (STRATEGY, "PATH"),
    "pretrained": (STRATEGY, ""),
    "image_size": (STRATEGY, "PIXELS"),
    "strategy": (STRATEGY, "NAME"),
    "assume": (STRATEGY, "WORDS"),
    "top_k": (STRATEGY, "N"),
    "probe_at": (STRATEGY, "GROUP"),
    "reinit": (STRATEGY, ""),
    "epochs": (TRAINING, "N"),
    "time": (TRAINING, "TIME"),
    "batch_size": (TRAINING, "N"),
    "micro_batch": (TRAINING, "N"),
    "lr": (TRAINING, "RATE"),
    "balance": (TRAINING, "HOW"),
    "calibrate": (TRAINING, ""),
    "refit": (TRAINING, ""),
    "track": (TRAINING, "NAME"),
    "seed": (TRAINING, "N"),
    "device": (TRAINING, "NAME"),
    "workers": (TRAINING, "N"),
    "threads": (TRAINING, "N"),
}


SWITCHES = {name: f"--{name}/--no-{name}" for name in ("pretrained", "reinit", "refit", "calibrate")}


def recipe_options(command: Callable[..., None], *, flags: Collection[str] = FLAGS) -> Callable[..., None]:
    """Return a command with flags of the recipe (all of them, or some) and `--set`, which it gets as two mappings.

    The command takes `settings` (flags that were given) and `overrides` (of `--set`).
    """

    @wraps(command)
    def with_options(**given: Any) -> None:
        pairs = dict(recipes.parse_set(text) for text in given.pop("set_") or [])
        settings = {}
        for flag in flags:
            value = given.pop(flag)
            if value is not None:
                settings[flag] = recipes.parse_flag(flag, value) if isinstance(value, str) else value
        with_interrupt(command)(settings=settings, overrides=pairs, **given)

    own = [
        p
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.name not in ("settings", "overrides")
    ]
    parameters = [*(_flag(name) for name in flags), _set(), *own]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def base_recipe(
    recipe: str | None,
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    needs_data: bool | None = True,
    takes_hub: bool = False,
) -> Recipe | None:
    """Return the recipe that a command starts from, after the checks that need no torch.

    With `needs_data` None, data is needed if the strategy decides from it. With `takes_hub`, a data set of the Hub is
    accepted, and looked for later.

    Raises:
        RecipeError, DataError: a key, a value, or the place of the data.
    """
    from finetune.data.places import HUB
    from finetune.prepare.asked import check_data, check_decidable, recipe_of
    from finetune.workflow.recipes import load_recipe

    base = load_recipe(recipe) if recipe else None
    asked = recipe_of(base, settings=settings, overrides=overrides)
    if takes_hub and asked.data.path.startswith(HUB):
        return base
    if needs_data or asked.data.path:
        check_data(asked)
    elif needs_data is None:
        check_decidable(asked)
    return base


def with_interrupt(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that turns Ctrl-C outside of training into our own error, with its exit code."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise Interrupted("stopped", exit_code=130) from None

    return guarded


def _flag(name: str) -> inspect.Parameter:
    panel, metavar = FLAGS[name]
    info = recipes.fields()[recipes.ALIASES[name]]
    text = str(info.description) + (f" (default: {_shown(info.default)})" if info.default != "" else "")
    kind: Any
    if name in SWITCHES:
        option = typer.Option(SWITCHES[name], help=text, rich_help_panel=panel, show_default=False)
        kind = Annotated[bool | None, option]
    else:
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=text,
            metavar=metavar,
            rich_help_panel=panel,
            show_default=False,
            autocompletion=COMPLETIONS.get(name),
        )
        kind = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _set() -> inspect.Parameter:
    option = typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        autocompletion=complete_key,
        help="Any other key of the recipe; repeatable. `finetune recipes show default` lists them.",
        rich_help_panel=TRAINING,
        show_default=False,
    )
    return inspect.Parameter(
        "set_", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, option]
    )


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str, flag: str) -> int:
    """Return the bytes that a text like 16GB, 500 MiB or 2e9 says.

    Raises:
        RecipeError: it says none.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([kmgt]i?)?b?", text.strip(), re.IGNORECASE)
    try:
        size = float(match[1]) * UNITS[(match[2] or "").lower()] if match else 0.0
    except ValueError:
        size = 0.0
    if size < 1 or size > 2**62:
        raise RecipeError(f"{flag} {text}: not a size", hint="For example 16GB, 500MB or 24GiB.")
    return int(size)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
BatchOption = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images at once.")]


class TtaName(StrEnum):
    none = "none"
    flip = "flip"
    five_crops = "5crop"


TtaOption = Annotated[
    TtaName,
    typer.Option(
        "--tta", metavar="flip|5crop", help="The mean over an image and its mirror image, or its corners and middle."
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="Start from a recipe.",
        rich_help_panel=TRAINING,
        autocompletion=complete_recipe,
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False, autocompletion=complete_run)
]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run folder, an ensemble, an ONNX file of this tool or a folder with one, or a timm folder.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")]


def set_once(settings: dict[str, Any], flag: str, value: str) -> None:
    """Take an argument for a flag, unless the flag names something else."""
    if settings.setdefault(flag, value) != value:
        what = {"data": "data sets", "backbone": "backbones"}[flag]
        raise RecipeError(f"two {what}: {value} and --{flag} {settings[flag]}", hint="Give one of them.")
