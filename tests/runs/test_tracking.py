"""A run is told to experiment trackers epoch by epoch; what they cannot take costs a warning and no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

import finetune
from finetune import tracking
from finetune.types import Event
from tests.support import QUICK, stop_after

SMALL: dict[str, Any] = {**QUICK, "strategy": "head-only", "backbone": "test_resnet", "epochs": 3}
BOTH = "tensorboard,mlflow"


class Heard:
    """A tracker that keeps what it is told."""

    started: ClassVar[list[Heard]] = []

    def __init__(self, *given: Any, **more: Any) -> None:
        self.given, self.more, self.rows, self.about, self.is_finished = given, more, [], {}, False  # type: ignore[var-annotated]

    @property
    def tracker(self) -> Any:
        class Info:
            info = type("Info", (), {"run_id": f"run {len(Heard.started)}"})

        return Info

    def start(self) -> None:
        Heard.started.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.about = values

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Heard]:
    """Trackers of two names that are there, in place of Accelerate's."""
    from accelerate import tracking as theirs

    monkeypatch.setattr(Heard, "started", [])
    monkeypatch.setattr(tracking, "find_spec", lambda name: object() if name in BOTH else None)
    for name in ("TensorBoardTracker", "MLflowTracker"):
        monkeypatch.setattr(theirs, name, Heard)
    return Heard.started


def test_epochs_and_metrics_are_told_and_a_run_that_goes_on_keeps_its_name(
    heard: list[Heard], drawn: Path, tmp_path: Path
) -> None:
    with pytest.raises(finetune.Interrupted):
        finetune.run(drawn, track=BOTH, out=tmp_path / "run", on_event=stop_after(5), **SMALL)
    board, flow = heard
    assert (board.given == ("tensorboard", tmp_path / "run") and flow.given == ("drawn",)) or flow.given
    assert flow.more == {"run_id": None, "run_name": "run"} and flow.about["train.epochs"] == 3
    assert board.is_finished and flow.is_finished and 1 <= len(flow.rows) < 3
    known = json.loads((tmp_path / "run" / tracking.FILE).read_text())
    finetune.resume(tmp_path / "run")
    _, again = heard[2:]
    assert again.more["run_id"] == known["mlflow"] and again.about == {}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [*flow.rows, *again.rows]
    assert [step for step, _ in told] == [1, 2, 3, None]
    assert [row["val_top1"] for _, row in told[:3]] == [line["val_top1"] for line in lines]
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert told[-1][1]["val/top1"] == measured["val"]["top1"]["value"]


def test_a_tracker_that_fails_costs_one_warning(
    heard: list[Heard], drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Heard, values: Any, step: Any = None) -> None:
        raise OSError("no route to it")

    monkeypatch.setattr(Heard, "log", fail)
    said: list[Event] = []
    result = finetune.run(drawn, track="mlflow", out=tmp_path / "run", on_event=said.append, **SMALL)
    texts = [event.facts["text"] for event in said if event.kind == "warning"]
    assert [text for text in texts if "mlflow" in text] == ["mlflow gets no more data: no route to it"]
    assert result.metrics["val"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("tensorbord", "'tensorbord' is not a tracker"),
        ("wandb", "wandb is not installed"),
        ("mlflow,", "'' is not a tracker"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_done(
    heard: list[Heard], drawn: Path, tmp_path: Path, asked: str, message: str
) -> None:
    with pytest.raises(finetune.RecipeError, match=message):
        finetune.run(drawn, track=asked, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_begin_is_told_with_the_way_out(
    heard: list[Heard], drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heard, "start", lambda self: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(finetune.ResourceError, match="mlflow cannot be started: refused") as caught:
        finetune.run(drawn, track="mlflow", out=tmp_path / "run", **SMALL)
    assert "--track" in caught.value.hint and "finetune run --resume" in caught.value.hint


def test_tensorboard_itself_holds_the_epochs(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetune.run(drawn, track="tensorboard", out=tmp_path / "run", **SMALL)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row.step, round(row.value, 5)) for row in found.Scalars("val_loss")] == [
        (line["epoch"], round(line["val_loss"], 5)) for line in lines
    ]


def test_mlflow_itself_holds_the_epochs_of_a_run_that_was_stopped(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(finetune.Interrupted):
        finetune.run(drawn, track="mlflow", out=tmp_path / "run", on_event=stop_after(5), **SMALL)
    finetune.resume(tmp_path / "run")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, "val_top1")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row.step, row.value) for row in history] == [(line["epoch"], line["val_top1"]) for line in lines]
    assert run.data.params["strategy.name"] == "head-only" and "val/top1" in run.data.metrics
