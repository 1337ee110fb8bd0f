"""What can be chosen stands in one table each; the names that a recipe or a flag takes are those of the table."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from finetune import arguments, values
from finetune import recipe as recipes
from finetune.exports.formats import FORMATS
from finetune.features.engines import ENGINES
from finetune.optim.initialisers import INITIALISERS
from finetune.optim.losses import LOSSES, NUMBER_LOSSES
from finetune.optim.optimisers import OPTIMISERS
from finetune.optim.schedules import SCHEDULES
from finetune.strategy.strategies import STRATEGIES
from finetune.tasks import TASKS


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (values.StrategyName, {"auto", *STRATEGIES, "race"}),
        (values.Schedule, SCHEDULES),
        (values.OptimiserName, OPTIMISERS),
        (values.Loss, {"auto", *LOSSES, *NUMBER_LOSSES}),
        (values.TaskName, {"auto", *TASKS}),
        (values.Initialiser, {"auto", *INITIALISERS}),
        (values.EngineName, {"auto", "torch", *ENGINES}),
        (values.ExportFormat, FORMATS),
    ],
    ids=["strategies", "schedules", "optimisers", "losses", "tasks", "initialisers", "engines", "formats"],
)
def test_the_names_are_those_of_the_table(names: Any, table: Any) -> None:
    assert set(get_args(names)) == set(table)


def test_the_arguments_of_the_api_are_the_flags_and_their_keys() -> None:
    assert set(arguments.SettingsWithData.__annotations__) == set(recipes.ALIASES)
    assert set(arguments.Settings.__annotations__) == set(recipes.ALIASES) - {"data"}
