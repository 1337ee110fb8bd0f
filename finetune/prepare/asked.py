"""What is asked for, as a recipe: settings, their keys and the data's place, checked without torch.

Errors here are reported at once, since importing torch takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.backbone.catalogue import find
from finetune.bands import PICTURE_CHANNELS, Bands
from finetune.belongings import BELONGS, HAVE_MOMENTUM, OFF
from finetune.data.sources import check_there
from finetune.errors import RecipeError, did_you_mean
from finetune.images.augmentation import pieces_of
from finetune.settings import RANGE_TEST, Recipe
from finetune.strategy.strategies import STRATEGIES, is_pretrained, taking


def recipe_of(
    base: Recipe | str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe from a file or the defaults, with settings by flag name and by dotted key on top.

    Naming a number of a strategy names the strategy: `top_k` alone means top-k, `probe_at` alone
    linear-probe.

    Raises:
        RecipeError: what is not allowed, all of it at once.
    """
    _check_kinds(base, settings or {})
    changes: dict[str, Any] = {}
    for name, value in (settings or {}).items():
        if value is not None:
            changes[recipes.ALIASES.get(name, name)] = _plain(value)
    changes.update({key: _plain(value) for key, value in (overrides or {}).items()})
    if isinstance(base, Recipe):
        flat = {key: getattr(getattr(base, key.split(".")[0]), key.split(".")[1]) for key in recipes.fields()}
        recipe = recipes.load(overrides={**flat, **changes})
    else:
        recipe = recipes.load(base, overrides=changes)
    _check_numbers(recipe, changes)
    for number in ("top_k", "probe_at"):  # names the strategy that it is of, where none is named
        if changes.get(f"strategy.{number}", "auto") != "auto" and recipe.strategy.name == "auto":
            recipe = recipes.update(recipe, {"strategy.name": taking(number)[0]})
    return recipe


def _plain(value: Any) -> Any:
    """Return a value as recipes hold it: a path as text, and a number of NumPy as one of Python."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, Integral) else value


def _check_kinds(base: object, settings: Mapping[str, Any]) -> None:
    """See that Python code gives a recipe and settings as they are taken.

    Raises:
        RecipeError: it does not.
    """
    if not isinstance(base, Recipe | str | Path | None):
        hint = 'Keys alone are overrides: overrides={"optim.lr": 0.01}.'
        raise RecipeError(f"recipe = {base!r}: must be a recipe, its name or its file", hint=hint)
    strange = [name for name in settings if name not in recipes.ALIASES and "." not in name]
    if strange:
        problems = [f"{name}: no such setting.{did_you_mean(name, recipes.ALIASES)}" for name in strange]
        hint = f"There are {', '.join(recipes.ALIASES)}; any other key of the recipe goes into overrides."
        raise RecipeError(problems, hint=hint)


def options(recipe: Recipe) -> str:
    """Return what a recipe changes about training, in one line; empty if nothing."""
    sections = ("optim.", "loss.", "regularise.", "augment.")
    data = ("data.channels", "data.depth", "data.fit", "data.statistics")
    more = (*data, "backbone.pool", "strategy.initialiser", "strategy.whiten", "train.balance")
    keys = [key for key in recipes.fields() if key.startswith(sections) or key in more]
    changed = [key for key in keys if recipes.value(recipe, key) != recipes.fields()[key].default]
    return "options: " + ", ".join(f"{key} = {recipes.value(recipe, key)}" for key in changed) if changed else ""


def check_data(recipe: Recipe) -> None:
    """Check that a recipe names data and that it is there.

    Raises:
        RecipeError: no data is named. DataError: there is none at this place.
    """
    if not recipe.data.path:
        raise RecipeError(
            "data.path is empty: where are the images?",
            hint="Add --data DIR. No data at hand? `finetune sample DIR` draws some.",
        )
    check_there(recipe.data.path)


def check_decidable(recipe: Recipe) -> None:
    """Check that a strategy that decides from the data has some.

    Raises:
        RecipeError: it has none.
    """
    if recipe.strategy.name in ("auto", "race") and not recipe.data.path:
        name = recipe.backbone.name
        is_known = name == "auto" or ":" in name or find(name) is not None
        raise RecipeError(
            f"strategy {recipe.strategy.name} decides from the data, but there is none"
            + ("" if is_known else f"; {name!r} is neither a network nor a file or folder here"),
            hint="Add --data DIR, or name a strategy, e.g. --strategy head-only.",
        )


def meaningless(recipe: Recipe, named: Iterable[str]) -> dict[str, str]:
    """Return the keys that the strategy, loss or optimiser of a recipe would not use, each with the reason.

    Of most keys only those are meant that are `named`.
    """
    name, named = recipe.strategy.name, list(named)
    found = {}
    users = {"top_k": ("auto", *taking("top_k")), "probe_at": ("auto", *taking("probe_at")), "assume": ("auto", "race")}
    for number, of in users.items():
        key = f"strategy.{number}"
        if key in named and recipes.value(recipe, key) not in ("auto", "none") and name not in of:
            only = " and ".join(map(repr, [user for user in of if user != "auto" or number == "assume"]))
            found[key] = f"{key} has no meaning with strategy.name = {name!r}, only with {only}"
    unused = STRATEGIES[name].unused if name in STRATEGIES else {}
    for key in named:
        why = unused.get(key) or unused.get(key.partition(".")[0])
        if why and recipes.value(recipe, key) != recipes.fields()[key].default:
            found[key] = f"{key} has no meaning with strategy.name = {name!r}, which {why}"
    found |= {key: _without_use(key, recipe) for key in BELONGS if _is_unused(key, recipe, is_named=key in named)}
    if recipe.optim.momentum_from != "none" and recipe.optim.name not in HAVE_MOMENTUM:
        found["optim.momentum_from"] = (
            f"optim.momentum_from has no meaning with optim.name = {recipe.optim.name!r}, without momentum"
        )
    return found


def _check_numbers(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Refuse a number that the named strategy or loss would not use: nothing is silently ignored."""
    name = recipe.strategy.name
    problems = [*meaningless(recipe, changes).values(), *_of_bands(recipe)]
    if recipe.strategy.initialiser == "zero" and (recipe.strategy.reinit or name == "scratch"):
        problems.append("strategy.initialiser = 'zero' is only for the head: equal units stay equal")
    if name == "race" and recipe.optim.lr == RANGE_TEST:
        problems.append("optim.lr = 'range-test' has no meaning with strategy.name = 'race', whose strategies differ")
    problems += _of_among(recipe)
    if recipe.split.fold > (1 if recipe.split.folds == "none" else recipe.split.folds):
        problems.append(f"split.fold = {recipe.split.fold} is not one of split.folds = {recipe.split.folds}")
    if recipe.split.folds != "none" and "split.val" in changes:
        problems.append("split.val has no meaning with split.folds: one of the folds is val")
    if problems:
        raise RecipeError(problems)


def _of_among(recipe: Recipe) -> Iterator[str]:
    """Yield why no backbone can be chosen from several."""
    backbone = recipe.backbone
    if backbone.among in ("auto", "none"):
        return
    named = {"name": backbone.name != "auto", "weights": backbone.weights != "none"}
    yield from (
        f"backbone.among chooses, but backbone.{key} names one: leave one of them out"
        for key, is_named in named.items()
        if is_named
    )
    if not backbone.pretrained or not is_pretrained(recipe.strategy.name):
        yield "backbone.among ranks what backbones have learned, and these begin with random weights"
    if recipe.strategy.name == "race":
        yield "backbone.among lets backbones race, and strategy.name = 'race' strategies: leave one of them out"
    if not all(name.strip() for name in backbone.among.split(",")):
        yield f"backbone.among = {backbone.among!r}: a name is missing beside a comma"


def _of_bands(recipe: Recipe) -> Iterator[str]:
    """Yield the settings that mean nothing for the channels that images are decoded into."""
    data = recipe.data
    bands, images = data.bands, f"data.channels is {data.channels}, data.depth {data.depth}"
    varied = None if bands.are_colours else pieces_of(recipe.augment)
    if varied and (varied.color_jitter or varied.hue or varied.policy != "none"):
        yield (
            f"augment: color_jitter, hue and policies (heavy has them) are of red, green and blue of 8 bits; {images}"
        )
    if bands == Bands(4) and data.value_range != "auto":
        yield "data.value_range has no meaning with data.channels = 4, which have 8 bits unless data.depth = 'full'"
    if data.depth == 8 and data.channels not in PICTURE_CHANNELS:
        yield f"data.depth = 8 is for images of 1, 3 or 4 channels; data.channels is {data.channels}"


def _is_unused(key: str, recipe: Recipe, *, is_named: bool) -> bool:
    """Return whether a key that belongs to certain values of another is set without one of them."""
    chooser, values = BELONGS[key]
    is_set = is_named or recipes.value(recipe, key) not in OFF.get(key, (recipes.fields()[key].default,))
    return is_set and recipes.value(recipe, chooser) not in values


def _without_use(key: str, recipe: Recipe) -> str:
    chooser, values = BELONGS[key]
    only = " and ".join(map(repr, values))
    return f"{key} has no meaning with {chooser} = {recipes.value(recipe, chooser)!r}, only with {only}"
