"""What of a space a search can try: keys that mean something, and values with which a run can begin.

Some keys have a meaning with some values of others alone (`loss.focal_gamma` with `loss.name = "focal"`). Both may be
searched together; a trial then has the key only where it means something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from finetune import recipe as recipes
from finetune.belongings import BELONGS
from finetune.errors import FinetuneError, RecipeError
from finetune.prepare.asked import meaningless
from finetune.prepare.prepared import Prepared
from finetune.runs.trials import settled
from finetune.search.space import Axis, ChoiceList, Space, grid_points
from finetune.settings import RANGE_TEST, Recipe
from finetune.types import Manifest

CHOOSERS = ("strategy.name", "optim.momentum_from", *dict.fromkeys(chooser for chooser, _ in BELONGS.values()))
OF_STEPS = ("optim.", "loss.", "regularise.")  # what a head that is solved does not use
BEFORE_TRAINING = ("strategy.", "backbone.")  # keys of which a value may be one that no run can begin with


def with_meaning(recipe: Recipe, params: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return a recipe with some values, and those of them that mean something; others are as they are by default."""
    whole = recipes.update(recipe, params)
    lost = meaningless(whole, params)
    if not lost:
        return whole, dict(params)
    usual = {key: recipes.fields()[key].default for key in lost}
    return recipes.update(whole, usual), {key: value for key, value in params.items() if key not in lost}


def grid_of(recipe: Recipe, space: Space, count: int) -> list[dict[str, Any]]:
    """Return the points of a grid, each of those once that differ by values without a meaning alone."""
    points = [with_meaning(recipe, point)[1] for point in grid_points(space, count)]
    return [point for place, point in enumerate(points) if point not in points[:place]]


def check_space(recipe: Recipe, space: Space) -> None:
    """See that a recipe can be searched, and that every key of the space means something with some choices of others.

    Raises:
        RecipeError: it does not.
    """
    _check_searched(recipe)
    for key, axis in space.items():
        for value in axis.values if isinstance(axis, ChoiceList) else ():
            _check_searched(recipes.update(recipe, {key: value}))
    never: dict[str, str] = {}
    for key, axis in space.items():
        why = [_reason(recipe, {**others, key: _unusual(key, axis)}, key) for others in _choices(space)]
        if all(why):
            never[key] = str(why[0])
    if never:
        raise RecipeError(list(never.values()), hint="Search it together with what it needs, or leave it out.")


def check_steps(prepared: Prepared, space: Space, *, is_named: bool) -> None:
    """See that a head that is solved is not searched for what only training by steps uses.

    Raises:
        RecipeError: it is.
    """
    unused = [key for key in space if key.startswith(OF_STEPS)]
    if not unused or "strategy.name" in space or any(phase.solver == "gradient" for phase in prepared.phases):
        return
    name = prepared.recipe.strategy.name
    what = ", ".join(unused) if is_named else "learning rate and weight decay, searched by default,"
    raise RecipeError(
        f"{what} {'changes' if len(unused) == 1 else 'change'} nothing with {name}, which solves the head",
        hint="Search what does, e.g. --search strategy.whiten=none,pca,zca, or name another strategy, e.g. head-only.",
    )


def check_beginnings(space: Space, recipe: Recipe, manifest: Manifest) -> None:
    """See that a run can begin with every value of what is settled before the first step, each by itself.

    Without the weights of a backbone, say, it cannot.

    Raises:
        FinetuneError: as a run would, with the value that is at fault.
    """
    for key, axis in space.items():
        for value in _ends(axis) if key.startswith(BEFORE_TRAINING) else ():
            chosen = next(others for others in _choices(space) if not _reason(recipe, {**others, key: value}, key))
            try:
                settled(with_meaning(recipe, {**chosen, key: value})[0], manifest)
            except FinetuneError as error:
                error.message = f"--search {key}: with {value}, {error.message}"
                error.args = (error.message,)
                raise


def known_of_data(prepared: Prepared) -> dict[str, Any]:
    """Return what the data has told, which every trial takes as given."""
    return {
        "data.value_range": prepared.recipe.data.value_range,
        "data.statistics": prepared.recipe.data.statistics,
    }


def decided(asked: Recipe, prepared: Prepared, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what auto has decided, once for all trials; nothing of what is searched."""
    if asked.strategy.name != "auto" or "strategy.name" in named:
        return {}
    keys = ("strategy.name", "strategy.top_k", "strategy.probe_at")
    return {key: recipes.value(prepared.recipe, key) for key in keys if key not in named}


def _check_searched(recipe: Recipe) -> None:
    if recipe.strategy.name == "race":
        raise RecipeError("a race has several strategies, each with its own settings", hint="Name one of them.")
    if recipe.optim.lr == RANGE_TEST:
        raise RecipeError(
            "optim.lr = 'range-test' has no meaning with tune, which tests rates and searches among them",
            hint="Leave out --lr, or name what to search: --search optim.lr=log:1e-4:1e-1.",
        )


def _choices(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every combination of what is searched and decides whether other keys have a meaning."""
    choosers = {key: axis.values for key in CHOOSERS if isinstance(axis := space.get(key), ChoiceList)}
    for values in product(*choosers.values()):
        yield dict(zip(choosers, values, strict=True))


def _reason(recipe: Recipe, params: Mapping[str, Any], key: str) -> str | None:
    return meaningless(recipes.update(recipe, params), params).get(key)


def _unusual(key: str, axis: Axis) -> Any:
    """Return a value that is not the default, which would mean something anywhere."""
    default = recipes.fields()[key].default
    return next((value for value in reversed(_ends(axis)) if value != default), default)


def _ends(axis: Axis) -> list[Any]:
    """Return the two ends of a range, or every choice."""
    return list(axis.values) if isinstance(axis, ChoiceList) else [axis.at(0.0), axis.at(1.0)]
