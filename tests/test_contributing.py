"""The lists of CONTRIBUTING.md are true: where a name is chosen, it stands in those files and in no other."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from finetune.evaluation.metrics import METRICS
from finetune.exports.formats import FORMATS
from finetune.optim.initialisers import INITIALISERS
from finetune.optim.losses import LOSSES
from finetune.optim.optimisers import OPTIMISERS
from finetune.optim.schedules import SCHEDULES
from finetune.strategy.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# Who may name one besides: the matrix and the race decide among strategies, a probe is what check and rank measure by.
DECIDES = {"finetune/strategy/matrix.py", "finetune/strategy/race.py", "finetune/strategy/entrants.py"}
PROBES = {"finetune/workflow/check.py", "finetune/prepare/candidates.py", "finetune/prepare/resolve.py"}
# The default of the command, of its function and of a run, and the package of that name.
VERBS = {"finetune/cli/export.py", "finetune/workflow/export.py", "finetune/runs/export_at_end.py"}
DEFAULTS = VERBS | {"finetune/environment.py"}
KEYS = {"finetune/belongings.py"}  # which keys have a meaning with which of the names


def files_for(what: str) -> set[str]:
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| {what} |"))
    return set(re.findall(r"`((?:finetune|recipes|docs)/[^`]+)`", row))


@cache
def texts_by_module() -> dict[str, set[str]]:
    """Return every text that stands in a module of the package."""
    found = {}
    for path in (ROOT / "finetune").rglob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        found[str(path.relative_to(ROOT))] = {text for text in texts if isinstance(text, str)}
    return found


def naming(names: set[str]) -> set[str]:
    """Return the modules that have one of the names as a whole text."""
    return {module for module, texts in texts_by_module().items() if names & texts}


def test_every_file_of_the_lists_is_there() -> None:
    named = set(re.findall(r"`((?:finetune|docs)/[^`]+)`", TEXT))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("what", "names", "most", "besides"),
    [
        ("a strategy", {*STRATEGIES} - {"full", "scratch", "lora"}, 4, DECIDES | PROBES),
        ("an optimiser", {*OPTIMISERS} - {"momentum", "adamw"}, 3, set()),
        ("a learning-rate schedule", {*SCHEDULES} - {"constant", "step", "cosine"}, 3, set()),  # cosine is the default
        ("an initialiser", {*INITIALISERS} - {"lsuv", "zero"}, 3, set()),
        ("a loss", {*LOSSES} - {*METRICS}, 3, set()),
        ("a metric", {"top5", "macro_f1", "ece"}, 2, set()),
        ("an export format", {"onnx"}, 5, DEFAULTS),
    ],
)
def test_a_name_stands_where_the_list_says(what: str, names: set[str], most: int, besides: set[str]) -> None:
    assert names <= {*STRATEGIES, *OPTIMISERS, *SCHEDULES, *LOSSES, *INITIALISERS, *METRICS, *FORMATS}
    assert len(files_for(what)) <= most
    assert naming(names) - files_for(what) - besides - KEYS == set()
