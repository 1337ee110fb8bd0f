"""A run folder with damage in any of its files is read as it was, or costs one clear error."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import finetune
from finetune.checkpoint.run_folder import write_json
from finetune.checkpoint.saved import load_run
from finetune.errors import CheckpointError, FinetuneError
from tests.support import QUICK, mutated

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


@pytest.fixture(scope="module")
def measured(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of auto that is left before its report; it has every file that a run lays out."""
    run = tmp_path_factory.mktemp("measured") / "run"
    finetune.run(few, backbone="test_resnet", epochs=1, out=run, **QUICK)
    (run / "metrics.json").unlink()
    return run


BEGAN, ENVIRONMENT = {"recipe": 1, "versions": [], "weights": 1, "threads": "x", "allowed": 1}, {"packages": {}}
DAMAGE: list[tuple[str, dict[str, Any] | str | None]] = [
    *(("began.json", {key: value}) for key, value in BEGAN.items()),
    *(("began.json", {key: ...}) for key in BEGAN),
    ("began.json", {"recipe": {"data": []}}),
    ("environment.json", ENVIRONMENT),
    ("environment.json", {"packages": ...}),
    *(("plan.json", {key: ...}) for key in ("data", "groups", "phases", "notes")),
    *(("plan.json", {"groups": value}) for value in (5, [], [{"name": "head"}])),
    *(("evidence.json", {key: value}) for key in ("evidence", "verdict") for value in (..., {}, 5)),
    *(("problems.csv", content) for content in ("", "x,y\n", "file,reason\na\n", "file,reason\na,b,c\n")),
    *((name, None) for name in ("began.json", "environment.json", "plan.json", "problems.csv")),
    *((f"{name}.json", content) for name in ("began", "environment", "plan", "evidence") for content in ("[]", "{}")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_damage_of_what_the_report_needs_is_told_before_training_goes_on(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: dict[str, Any] | str | None
) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    file = run / name
    if damage is None:
        file.unlink()
    elif isinstance(damage, str):
        file.write_text(damage)
    else:
        content = {**json.loads(file.read_text()), **damage}
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    def train(*_: object, **__: object) -> None:
        raise AssertionError("it trained before it said so")

    monkeypatch.setattr("finetune.runs.single.train", train)
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        finetune.resume(run)
    assert "start a new run" in caught.value.hint or "has format_version None" in caught.value.message


def test_names_of_any_bytes_are_no_damage(measured: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    plan = json.loads((run / "plan.json").read_text())
    write_json(run / "plan.json", {**plan, "data": "1 left out, \udcff.png", "notes": ["\udcff"]})
    write_json(run / "began.json", {**json.loads((run / "began.json").read_text()), "allowed": ["data: \udcff"]})
    finetune.resume(run)
    assert b"\xff.png" in (run / "report.html").read_bytes()


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
