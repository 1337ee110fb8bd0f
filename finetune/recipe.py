"""A recipe in and out of TOML, and `--set section.key=value` on top of it.

    recipe = load("recipes/head-only.toml", overrides={"optim.lr": 0.01})

Later wins: field default, recipe file, overrides from left to right.
"""

from __future__ import annotations

import math
import textwrap
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomlkit
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from finetune.errors import RecipeError, did_you_mean
from finetune.settings import FORMAT_VERSION, SECTIONS, Recipe
from finetune.values import TIME, WARMUP
from finetune.wording import meaning

# The flags that stand for one key each; every other key is reached by --set.
ALIASES: dict[str, str] = {
    "data": "data.path",
    "task": "data.task",
    "group_by": "data.group_by",
    "val": "split.val",
    "test": "split.test",
    "backbone": "backbone.name",
    "among": "backbone.among",
    "weights": "backbone.weights",
    "pretrained": "backbone.pretrained",
    "image_size": "backbone.image_size",
    "strategy": "strategy.name",
    "top_k": "strategy.top_k",
    "assume": "strategy.assume",
    "probe_at": "strategy.probe_at",
    "reinit": "strategy.reinit",
    "epochs": "train.epochs",
    "time": "train.time",
    "batch_size": "train.batch_size",
    "micro_batch": "train.micro_batch",
    "lr": "optim.lr",
    "balance": "train.balance",
    "calibrate": "train.calibrate",
    "refit": "train.refit",
    "track": "train.track",
    "seed": "train.seed",
    "device": "train.device",
    "workers": "train.workers",
    "threads": "train.threads",
}
PATTERNS = {
    TIME: "must be a time such as 90s, 20m or 1h30m",
    WARMUP: "must be a share of the steps such as 0.1, or such as '2 epochs' or '100 steps'",
}


def fields() -> dict[str, FieldInfo]:
    """Return every key of the recipe as "section.key" with its field."""
    return {f"{name}.{key}": info for name, section in SECTIONS.items() for key, info in section.model_fields.items()}


def value(recipe: Recipe, key: str) -> Any:
    """Return what a recipe says under a dotted key."""
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def loads(text: str, *, source: str) -> Recipe:
    """Return the recipe of a TOML text; `source` names it in errors.

    Raises:
        RecipeError: as `load`.
    """
    return _checked(_parse(text, source), {}, source)


def shipped_names() -> list[str]:
    """Return the names of the recipes that ship with the tool."""
    entries = [entry.name for entry in _shipped().iterdir()]
    return sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml"))


def shipped_text(name: str) -> str:
    """Return the text of a shipped recipe."""
    return (_shipped() / f"{name}.toml").read_text(encoding="utf-8")


def _shipped() -> Traversable:
    """Return the recipes' folder: inside the package in a wheel, beside it in a checkout."""
    packaged = files("finetune") / "_recipes"
    return packaged if packaged.is_dir() else files("finetune") / ".." / "recipes"


def load(path: str | Path | None = None, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a TOML file or of a shipped one by its name (or the defaults), overrides by key on top.

    Raises:
        RecipeError: the file cannot be read, or holds unknown keys or values that are not allowed;
            all of them are named at once.
    """
    raw = _read(Path(path)) if path is not None else {}
    return _checked(raw, overrides or {}, "" if path is None else str(path))


def update(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a copy of a recipe with some dotted keys changed.

    Raises:
        RecipeError: as `load`.
    """
    return _checked(recipe.model_dump(), changes, "")


def parse_set(text: str) -> tuple[str, Any]:
    """Return the key and value of one `--set section.key=value`; the value is TOML, else a string.

    Raises:
        RecipeError: there is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text}: write it as section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value.strip()
    return key.strip(), parsed if isinstance(parsed, (str, int, float, list, dict)) else value.strip()


def parse_flag(flag: str, text: str) -> Any:
    """Return the value of a flag: a number where its key takes numbers, else the text as it is."""
    annotation = str(fields()[ALIASES[flag]].annotation)
    if "int" not in annotation and "float" not in annotation:
        return text
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


def dump(recipe: Recipe, *, header: str = "", describe: bool = False) -> str:
    """Return a recipe as TOML, with the help of every key as a comment when `describe` is set."""
    document = tomlkit.document()
    for line in header.splitlines():
        document.add(tomlkit.comment(line))
    document["format_version"] = recipe.format_version
    for name, section in SECTIONS.items():
        table = tomlkit.table()
        values = getattr(recipe, name).model_dump()
        for key, info in section.model_fields.items():
            if describe:
                for line in textwrap.wrap(f"{info.description} ({describe_type(info)})", 96):
                    table.add(tomlkit.comment(line))
            table[key] = values[key]
        document[name] = table
    return tomlkit.dumps(document)


def describe_type(info: FieldInfo) -> str:
    """Return what a key takes, in words, e.g. "number or 'auto'"."""
    return _describe(info.annotation)


def _describe(annotation: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    if get_origin(annotation) is Literal:
        return ", ".join(repr(value) for value in get_args(annotation))
    if get_origin(annotation) is dict:
        return "table"
    if get_origin(annotation) is tuple:
        is_nested = get_origin(get_args(annotation)[0]) is tuple
        return "[[mean of each channel], [deviation of each channel]]" if is_nested else "[black, white]"
    parts = [_describe(part) for part in get_args(annotation) if not hasattr(part, "metadata")]
    return " or ".join(filter(None, dict.fromkeys(parts)))


def _checked(raw: dict[str, Any], overrides: Mapping[str, Any], source: str) -> Recipe:
    problems: list[str] = []
    for key, value in overrides.items():
        _put(raw, key, value, problems)
    recipe, more = _validate(raw)
    problems += more
    if problems or recipe is None:
        hint = "`finetune recipes show default` lists every key."
        raise RecipeError(problems, hint=f"In {source}. {hint}" if source else hint)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        name = str(path)
        if name in shipped_names():
            return _parse(shipped_text(name), name)
        near = did_you_mean(name, shipped_names())
        raise RecipeError(
            f"no recipe file {name}{near and '.'}{near}", hint="`finetune recipes ls` lists the shipped ones."
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe file {path} cannot be read: {error}") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {source} is not TOML: {error}") from error


def _put(raw: dict[str, Any], key: str, value: Any, problems: list[str]) -> None:
    section, _, name = key.partition(".")
    if not name or key not in fields():
        problems.append(_unknown(key))
        return
    table = raw.setdefault(section, {})
    if isinstance(table, dict):
        table[name] = value


def _unknown(key: str) -> str:
    known = list(fields())
    last = key.rpartition(".")[2]
    near = [name for name in known if get_close_matches(last, [name.partition(".")[2]])]
    chosen = get_close_matches(key, near, n=3, cutoff=0)
    text = f" Did you mean {' or '.join(map(repr, chosen))}?" if chosen else did_you_mean(key, known)
    return f"{key}: no such key.{text}"


def _validate(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    try:
        return Recipe.model_validate(raw), []
    except ValidationError as error:
        return None, _problems(error, raw)


def _problems(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """Return pydantic's errors, several for one key of a union, as one sentence per key."""
    reasons: dict[str, list[str]] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        key = ".".join(place[: 2 if place[0] in SECTIONS else 1])
        if problem["type"] == "extra_forbidden":
            reasons[key] = []
        else:
            reasons.setdefault(key, []).append(_reason(problem))
    return [_sentence(key, list(dict.fromkeys(texts)), raw) for key, texts in reasons.items()]


def _reason(problem: Mapping[str, Any]) -> str:
    pattern = problem.get("ctx", {}).get("pattern")
    return PATTERNS[pattern] if pattern else meaning(problem)


def _sentence(key: str, reasons: list[str], raw: Mapping[str, Any]) -> str:
    if not reasons:
        return _unknown(key) if "." in key else f"[{key}]: no such section.{did_you_mean(key, SECTIONS)}"
    value: Any = raw
    for part in key.split("."):
        value = value[part]
    if key == "format_version":
        return f"format_version = {value!r}: must be {FORMAT_VERSION}, the only one this version of finetune reads"
    near = did_you_mean(value, _choices(key)) if isinstance(value, str) else ""
    shown = str(value) if isinstance(value, float) and not math.isfinite(value) else repr(value)
    return f"{key} = {shown}: {_either(_specific(reasons, value))}.{near}"


def _either(reasons: list[str]) -> str:
    """Return the reasons of a union as one: "must be a number or 'auto'"."""
    must = "must be "
    is_alike = all(reason.startswith(must) for reason in reasons)
    return must + " or ".join(reason.removeprefix(must) for reason in reasons) if is_alike else " or ".join(reasons)


def _specific(reasons: list[str], value: Any) -> list[str]:
    """Return only the reason about the range, of a union's reasons, if the type was right."""
    ranges = [reason for reason in reasons if any(word in reason for word in ("than", "finite"))]
    return ranges if ranges and not isinstance(value, str) else reasons


def _choices(key: str) -> list[str]:
    info = fields().get(key)
    choices: list[str] = []

    def collect(annotation: Any) -> None:
        if get_origin(annotation) is Literal:
            choices.extend(str(value) for value in get_args(annotation))
        for part in get_args(annotation) if get_origin(annotation) is not Literal else ():
            collect(part)

    if info is not None:
        collect(info.annotation)
    return choices
