"""What a search may choose: for each key of the recipe a range or a list, as `--search` names it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from finetune import recipe as recipes
from finetune.errors import RecipeError, did_you_mean
from finetune.settings import Recipe
from finetune.types import to_json

Scale = Literal["log", "lin", "int"]
SCALES: tuple[Scale, ...] = ("log", "lin", "int")
FIXED = ("data", "split", "cache", "export")  # sections: another one is judged on other images, or changes no result
FIXED_KEYS = ("train.device", "train.workers", "train.threads", "train.refit", "train.time", "train.checkpoint_every")
HINT = "Write --search optim.lr=log:1e-4:1e-1, KEY=lin:0:0.5, KEY=int:1:6, or KEY=a,b,c."
NARROWED = 4.0  # what a range is divided by around the best, round by round


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two ends, on a logarithmic or a linear scale, or whole ones."""

    scale: Scale
    low: float
    high: float

    def grid(self, count: int) -> list[Any]:
        """Return `count` values from one end to the other, in even steps of the scale; a single one is the middle."""
        shares = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
        values = [self.at(share) for share in shares]
        return list(dict.fromkeys(values))

    def at(self, share: float) -> Any:
        """Return the value at a share of the way from the low end to the high one."""
        if share in (0.0, 1.0):  # an end to the bit
            end = self.high if share else self.low
            return int(end) if self.scale == "int" else end
        if self.scale == "log":
            return min(self.high, max(self.low, math.exp(
                math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))))  # fmt: skip
        value = self.low + share * (self.high - self.low)
        return round(value) if self.scale == "int" else value

    def around(self, value: float) -> Range:
        """Return a range a quarter as wide around a value, inside this one."""
        if self.scale == "log":
            reach = (self.high / self.low) ** (0.5 / NARROWED)
            return Range("log", max(self.low, value / reach), min(self.high, value * reach))
        reach = (self.high - self.low) / NARROWED / 2
        low, high = max(self.low, value - reach), min(self.high, value + reach)
        return Range("int", math.floor(low), math.ceil(high)) if self.scale == "int" else Range("lin", low, high)


@dataclass(frozen=True, slots=True)
class ChoiceList:
    """Some values, one of which is taken."""

    values: tuple[Any, ...]

    def grid(self, count: int) -> list[Any]:
        """Return all of them, however many were meant."""
        return list(self.values)

    def around(self, value: Any) -> ChoiceList:
        """Return the same choices: there is no nearer and farther among them."""
        return self


Axis = Range | ChoiceList
Space = Mapping[str, Axis]


def usual_space(lr: float, weight_decay: float) -> dict[str, Axis]:
    """Return what is searched unless it is named: learning rate and weight decay, around what a strategy has."""
    decays = (0.0, 1e-5, 1e-4, weight_decay)
    return {
        "optim.lr": Range("log", float(f"{lr / 30:.1g}"), float(f"{lr * 30:.1g}")),
        "optim.weight_decay": ChoiceList(tuple(dict.fromkeys(decays))),
    }


def space_of(texts: Iterable[str], recipe: Recipe) -> dict[str, Axis]:
    """Return the space that several `--search KEY=VALUES` name; the recipe must accept every end and choice.

    Raises:
        RecipeError: a key or a value that is not allowed, all of them at once.
    """
    space: dict[str, Axis] = {}
    problems: list[str] = []
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            if not equals:
                raise RecipeError(f"--search {text}: write it as KEY=VALUES", hint=HINT)
            name, axis = _checked_key(key.strip(), space), _axis(text, values.strip())
            _check_values(name, axis, recipe)
            space[name] = axis
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems, hint=HINT)
    return space


def around_best(space: Space, best: Mapping[str, Any]) -> dict[str, Axis]:
    """Return a space with each range narrowed around the best values; whole where the best has none."""
    return {key: axis.around(best[key]) if key in best else axis for key, axis in space.items()}


def grid_points(space: Space, count: int) -> list[dict[str, Any]]:
    """Return a grid of at most `count` points, with as many values on each range as that allows, at least two.

    Lists of choices are taken whole. If even two values of each range are more than `count`, they are all there.
    """
    ranges = sum(isinstance(axis, Range) for axis in space.values())
    fixed = math.prod(len(axis.values) for axis in space.values() if isinstance(axis, ChoiceList))
    each = max(2, math.floor((count / fixed) ** (1 / ranges) + 1e-9)) if ranges else 0
    columns = [axis.grid(each) for axis in space.values()]
    return [dict(zip(space, point, strict=True)) for point in product(*columns)]


def space_to_json(space: Space) -> dict[str, Any]:
    """Return a space as JSON has it."""
    return {key: to_json(axis) for key, axis in space.items()}


def space_from_json(content: Mapping[str, Any]) -> dict[str, Axis]:
    """Return what `space_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    found: dict[str, Axis] = {}
    for key, axis in content.items():
        if "values" in axis:
            found[key] = ChoiceList(tuple(axis["values"]))
        else:
            if axis["scale"] not in SCALES:
                raise ValueError(f"no scale {axis['scale']!r}")
            found[key] = Range(axis["scale"], float(axis["low"]), float(axis["high"]))
    return found


def _checked_key(key: str, space: Space) -> str:
    key = recipes.ALIASES.get(key.replace("-", "_"), key)
    if key not in recipes.fields():
        raise RecipeError(f"--search {key}: no such key.{did_you_mean(key, recipes.fields())}")
    if key.split(".")[0] in FIXED or key in FIXED_KEYS:
        raise RecipeError(f"--search {key}: trials with different values cannot be compared, or do not differ")
    if key in space:
        raise RecipeError(f"--search {key} is named twice")
    return key


def _axis(text: str, values: str) -> Axis:
    scale, colon, ends = values.partition(":")
    if colon and scale in SCALES:
        parts = ends.split(":")
        try:
            low, high = map(float, parts)
        except ValueError:
            raise RecipeError(f"--search {text}: a range has two numbers, {scale}:LOW:HIGH") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (scale == "log" and low <= 0):
            above = " and above 0" if scale == "log" else ""
            raise RecipeError(f"--search {text}: LOW must be below HIGH{above}")
        if scale == "int" and (low != int(low) or high != int(high)):
            raise RecipeError(f"--search {text}: both ends must be whole numbers")
        known: Scale = next(name for name in SCALES if name == scale)
        return Range(known, low, high)
    choices = tuple(dict.fromkeys(_value(part.strip()) for part in values.split(",")))
    if len(choices) < 2:
        raise RecipeError(f"--search {text}: one value leaves nothing to search")
    return ChoiceList(choices)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, (str, int, float)) else text


def _check_values(key: str, axis: Axis, recipe: Recipe) -> None:
    """Check that a recipe takes both ends of a range, or every choice."""
    values: Sequence[Any] = [axis.at(0.0), axis.at(1.0)] if isinstance(axis, Range) else axis.values
    for value in values:
        recipes.update(recipe, {key: value})
