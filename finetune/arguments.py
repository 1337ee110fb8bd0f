"""What Python code gives the functions: the flags of `finetune run` as arguments, and the check of their types."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from finetune.errors import RecipeError
from finetune.values import StrategyName, TaskName

Function = TypeVar("Function", bound=Callable[..., Any])
LISTS = (Sequence, Iterable)
TAKEN: dict[Any, tuple[tuple[Any, ...], str]] = {  # of a type that is asked for: what is taken, and its name
    NoneType: ((NoneType,), "None"),
    str: ((str,), "text"),
    Path: ((str, PathLike), "a path"),
    bool: ((bool,), "True or False"),
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    Mapping: ((Mapping,), 'a mapping of keys to values, as {"optim.lr": 0.01}'),
    Callable: ((Callable,), "a function"),
    **dict.fromkeys(LISTS, ((Iterable, PathLike), "a list, each ")),
}


class Settings(TypedDict, total=False):
    """The flags of `finetune run` but for the data, each a key of the recipe (`recipe.ALIASES`); None leaves it out."""

    task: TaskName | None
    group_by: str | None
    val: float | None
    test: float | None
    backbone: str | None
    among: str | None
    weights: str | Path | None
    pretrained: bool | None
    image_size: int | Literal["auto"] | None
    strategy: StrategyName | None
    assume: str | None
    top_k: int | Literal["auto"] | None
    probe_at: str | None
    reinit: bool | None
    epochs: int | Literal["auto"] | None
    time: str | None
    batch_size: int | Literal["auto"] | None
    micro_batch: int | Literal["auto"] | None
    lr: float | Literal["auto", "range-test"] | None
    balance: Literal["auto", "weights", "sampling", "none"] | None
    calibrate: bool | Literal["auto"] | None
    refit: bool | None
    track: str | None
    seed: int | None
    device: Literal["auto", "cpu", "cuda", "mps"] | None
    workers: int | Literal["auto"] | None
    threads: int | Literal["auto"] | None


class SettingsWithData(Settings, total=False):
    """The same where the data is no argument of its own."""

    data: str | Path | None


def each_of(named: Any) -> list[Any]:
    """Return what is named as a list; one text or path alone is a list of one."""
    things: Iterable[Any] = [named] if isinstance(named, str | PathLike) else named
    return list(things)


def typed(function: Function) -> Function:
    """Return a function that refuses, in one line, arguments of another type than it names.

    What is not covered: types that are not in `TAKEN`, which have checks of their own, and `**settings`, which a
    recipe checks.
    """

    @wraps(function)
    def called(*args: Any, **given: Any) -> Any:
        try:
            named = inspect.signature(function).bind(*args, **given).arguments
        except TypeError:
            return function(*args, **given)  # whose own error names the function
        types = _types(function)
        refused = {name: _taken_instead(value, types.get(name, Any)) for name, value in named.items()}
        problems = [f"{name} = {named[name]!r}: must be {taken}" for name, taken in refused.items() if taken]
        texts = [*args, *given.values()]
        problems += [f"{text!r}: a null character is in no name" for text in texts if "\0" in _text_of(text)]
        if problems:
            raise RecipeError(problems)
        return function(*args, **given)

    return called  # type: ignore[return-value]


@cache
def _types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's arguments but for `**settings`."""
    kept = [name for name, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_KEYWORD]
    found = get_type_hints(function)
    return {name: found[name] for name in kept if name in found}


def _text_of(value: object) -> str:
    return str(value) if isinstance(value, str | Path) else ""


def _taken_instead(value: object, of: Any) -> str:
    """Return what is taken instead of a value, in words; empty if it is taken, or nothing is known of the type."""
    words = []
    for one in _alternatives(of):
        kind = get_origin(one) or one
        if kind is Literal:  # which of the words it is, each function checks
            kinds, word = (str,), f"one of {', '.join(map(str, get_args(one)))}"
        elif kind in TAKEN:
            kinds, word = TAKEN[kind]
        else:
            return ""
        is_taken = isinstance(value, kinds) and not (isinstance(value, bool) and kind is not bool)
        if kind is Mapping:
            is_taken = is_taken and all(isinstance(key, str) for key in value)  # type: ignore[attr-defined]
        if kind in LISTS:
            (each,) = get_args(one)
            word += _taken_instead(object(), each)
            is_taken = is_taken and not any(_taken_instead(part, each) for part in _parts(value))
        if is_taken:
            return ""
        words.append(word)
    return " or ".join(word for word in dict.fromkeys(words) if word != "text" or "a path" not in words)


def _parts(value: object) -> Iterable[Any]:
    """Return what a list holds; of what can be read only once, nothing."""
    return value if isinstance(value, list | tuple) else ()


def _alternatives(of: Any) -> Iterator[Any]:
    """Yield each type that is asked for: the members of a union."""
    if get_origin(of) in (Union, UnionType):
        for one in get_args(of):
            yield from _alternatives(one)
    else:
        yield of
