"""What a user reads: each error with its own way out, nothing said twice, no word that misleads."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from finetune import cli
from finetune.cli import screen
from finetune.cli.screen import Screen
from finetune.errors import Interrupted, RecipeError
from finetune.types import Event
from tests.support import FLAGS


@pytest.fixture
def run(place: Path) -> Path:
    return place / "runs" / "one"


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("nowhere.jpg", "no such file or folder: nowhere.jpg", "Give images, folders, patterns"),
        ("imgs/*.jpg", "nothing matches imgs/*.jpg", "See what is in imgs."),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg is an address of an unsupported kind", "Download it first."),
        ("S3://bucket/a.jpg", "s3://bucket/a.jpg is an address of an unsupported kind", "Download it first."),
        ("file:///some/a.jpg", "file:///some/a.jpg is an address", "Name the file itself: /some/a.jpg"),
        ("img", "no such file or folder: img", "Did you mean 'imgs'?"),
    ],
)
def test_predict_names_what_is_not_there_and_says_nothing_of_data_sets(
    finetune_cli, run: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(run.parents[1])
    done = finetune_cli("predict", run, path)
    assert done.code == 3
    assert message in done.err and hint in done.err
    assert "<class>" not in done.err


def test_data_that_is_not_there_names_the_layouts(finetune_cli, tmp_path: Path) -> None:
    done = finetune_cli("run", "--data", tmp_path / "nowhere", *FLAGS)
    assert (done.code, "DIR/<class>/images" in done.err) == (3, True)
    done = finetune_cli("run", "--data", "s3://bucket/imgs", *FLAGS)
    assert (done.code, "s3://bucket/imgs is an address" in done.err) == (3, True)


def test_a_comparison_is_no_run_and_not_the_newest_one(
    finetune_cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run.parents[1]
    compared = place / "runs" / "cmp"
    compared.mkdir()
    try:
        shutil.copy(run / "recipe.toml", compared / "recipe.toml")
        (compared / "compare.json").write_text("{}")
        monkeypatch.chdir(place)
        done = finetune_cli("predict", compared, "imgs")
        assert (done.code, "is a comparison of several runs" in done.err) == (6, True)
        assert "is not finished" not in done.err
        assert "The newest here is runs/one." in finetune_cli("predict", "runs/two", "imgs").err
    finally:
        shutil.rmtree(compared)


def test_a_finished_run_names_the_way_to_train_on(finetune_cli, run: Path) -> None:
    done = finetune_cli("run", "--resume", run)
    assert (done.code, f"finetune run --weights {run}" in done.err) == (6, True)


def test_two_forms_of_one_output_are_an_error(finetune_cli, run: Path) -> None:
    done = finetune_cli("predict", run, run, "--csv", "--json")
    assert (done.code, "--csv and --json" in done.err) == (2, True)
    assert done.out == ""


def test_the_plan_says_the_verdict_once(finetune_cli, run: Path) -> None:
    done = finetune_cli("plan", "--data", run.parents[1] / "imgs", *FLAGS)
    assert done.code == 0, done.err
    said = " ".join((done.out + done.err).split())
    assert said.count("(median ") == 1
    assert "72" not in done.err.split("images in")[0] or "36 images in 6 classes" in done.err


def said_by(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    def fail() -> None:
        raise error

    monkeypatch.setattr("finetune.cli.app.app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().err


def test_a_stop_is_no_error_and_a_wrong_flag_has_a_way_out(monkeypatch, capsys) -> None:
    stopped = said_by(Interrupted("stopped by SIGINT; what was done is kept", hint="Go on."), monkeypatch, capsys)
    assert stopped == "stopped by SIGINT; what was done is kept\nhint: Go on.\n"
    assert "--help" in said_by(RecipeError("--allow needs --resume"), monkeypatch, capsys)


def test_every_flag_of_a_run_shows_its_default(finetune_cli) -> None:
    shown = " ".join(finetune_cli("run", "--help").out.replace("│", " ").split())
    for words in ("(default: auto)", "(default: 0.2)", "(default: yes)", "(default: no)"):
        assert words in shown
    assert "seed" in shown and "(default: 0)" in shown


def drawn(events: list[Event]) -> str:
    """Return what a screen writes of events where it is no terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=200, highlight=False)
    shown = Screen(console, Progress(console=console, disable=True))
    for event in events:
        shown.show(event)
    return stream.getvalue()


EPOCH = {"train_loss": 1.0, "train_top1": 0.5, "val_top1": 0.5}


def test_the_highest_epoch_is_not_called_the_one_that_is_delivered() -> None:
    lines = drawn(
        [
            Event("epoch", {**EPOCH, "epoch": 1, "is_best": True, "delivered": 1}),
            Event("epoch", {**EPOCH, "epoch": 2, "is_best": False, "delivered": 1}),
            Event("epoch", {**EPOCH, "epoch": 3, "is_best": False, "delivered": 3}),
        ]
    ).splitlines()
    assert "best" not in "".join(lines)
    assert lines[0].endswith("highest")
    assert lines[1].endswith("epoch 1 would be delivered")
    assert "delivered" not in lines[2]


def test_one_epoch_is_one_epoch() -> None:
    facts = {"index": 0, "total": 1, "name": "head", "epochs": 1, "trained": ["head"], "solver": "gradient"}
    assert "head: 1 epoch, trains head" in drawn([Event("phase", facts)])


def test_a_short_task_that_takes_long_is_told_of_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = [Event("progress", {"task": "probe layer groups", "done": done, "total": 4}) for done in range(4)]
    assert drawn(progress) == ""
    monkeypatch.setattr(screen, "SILENCE", -1.0)
    assert drawn(progress).splitlines() == [f"probe layer groups: {done} of 4" for done in range(4)]


def test_features_are_cached_view_by_view_of_how_many(run: Path, tmp_path: Path) -> None:
    import finetune

    told: list[str] = []
    finetune.run(
        run.parents[1] / "imgs",
        strategy="head-only",
        epochs=5,
        out=tmp_path / "run",
        backbone="test_resnet",
        pretrained=False,
        image_size=32,
        device="cpu",
        workers=0,
        overrides={"cache.folder": str(tmp_path / "cache")},
        on_event=lambda event: told.append(str(event.facts.get("task"))),
    )
    tasks = [task for task in dict.fromkeys(told) if task.startswith("cache features")]
    assert tasks == [f"cache features, view {view} of 4" for view in range(1, 5)] + ["cache features"]  # val has one
    assert json.loads((run / "metrics.json").read_text())["val"].keys() >= {"top1", "macro_f1", "ece", "auroc"}
