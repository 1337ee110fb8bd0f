"""A run folder with damage in any of its files is read as it was, or costs one clear error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import finetune
from finetune.errors import CheckpointError, FinetuneError
from finetune.workflow.saved import load_run
from tests.test_fuzz import mutated

EXAMPLES = pytest.mark.parametrize("examples", [15, pytest.param(200, marks=pytest.mark.slow)])


@EXAMPLES
@pytest.mark.parametrize("name", ["recipe.toml", "model/config.json", "model/model.safetensors", "split.csv"])
def test_a_damaged_run_loads_or_is_an_error(finished: Path, tmp_path: Path, name: str, examples: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    valid = (run / name).read_bytes()

    def check(content: bytes) -> None:
        (run / name).write_bytes(content)
        try:
            saved = load_run(run, device="cpu")
            assert len(saved.manifest().classes) == len(saved.classes) > 0
        except FinetuneError as error:
            assert error.message

    damage = st.one_of(mutated(valid), mutated(valid), st.binary(max_size=99))
    asked = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    asked(given(damage)(check))()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"classes": 5}', '{"classes": []}', '{"classes": [1, 2]}']
)
def test_a_damaged_plan_cannot_be_resumed(finished: Path, tmp_path: Path, content: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "metrics.json").unlink()
    (run / "plan.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        finetune.resume(run)


@pytest.mark.parametrize(
    ("key", "value"), [("probe_at", '"layer9"'), ("probe_at", "5"), ("label_names", "[]"), ("architecture", '"vgg11"')]
)
def test_a_model_folder_that_says_something_else_is_an_error(
    finished: Path, tmp_path: Path, key: str, value: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = run / "model" / "config.json"
    config.write_text(config.read_text().rstrip().removesuffix("}") + f', "{key}": {value}}}')
    with pytest.raises(FinetuneError):
        finetune.load(run, device="cpu")
