"""What can be chosen stands in one table each; the names that a recipe or a flag takes are those of the table."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from finetune import recipe as recipes
from finetune import settings
from finetune.exports.formats import FORMATS
from finetune.features.engines import ENGINES
from finetune.optim.losses import LOSSES
from finetune.optim.schedules import SCHEDULES
from finetune.strategy.strategies import STRATEGIES
from finetune.tasks import TASKS


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (settings.StrategyName, {"auto", *STRATEGIES, "race"}),
        (settings.Schedule, SCHEDULES),
        (settings.Loss, {"auto", *LOSSES}),
        (settings.TaskName, {"auto", *TASKS}),
        (settings.EngineName, {"auto", "torch", *ENGINES}),
        (settings.ExportFormat, FORMATS),
    ],
    ids=["strategies", "schedules", "losses", "tasks", "engines", "formats"],
)
def test_the_names_are_those_of_the_table(names: Any, table: Any) -> None:
    assert set(get_args(names)) == set(table)


def test_the_arguments_of_the_api_are_the_flags_and_their_keys() -> None:
    arguments = settings.SettingsWithData.__annotations__
    assert set(arguments) == set(recipes.ALIASES)
    assert set(settings.Settings.__annotations__) == set(recipes.ALIASES) - {"data"}
