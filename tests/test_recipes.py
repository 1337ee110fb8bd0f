"""Every shipped recipe loads, says what it is for, and there is one for each strategy."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.values import STRATEGY_NAMES
from finetune.workflow.recipes import list_recipes, load_recipe, recipe_text

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_recipe_loads_and_has_a_header(file: Path) -> None:
    recipe = load_recipe(file.stem)
    assert recipe.strategy.name in STRATEGY_NAMES
    header = [line for line in recipe_text(file.stem).splitlines() if line.startswith("#")]
    assert f"--recipe {file.stem} " in header[1]


def test_every_strategy_has_a_recipe() -> None:
    assert {recipe.strategy for recipe in list_recipes()} == set(STRATEGY_NAMES)
