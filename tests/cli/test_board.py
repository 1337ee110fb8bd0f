"""While a search runs a terminal shows its best trials above the bars, drawn anew with each; a file gets lines."""

from __future__ import annotations

import io
from typing import Any

import pytest

from finetune.cli import screen, terminal
from finetune.cli.screen import BEST, Screen
from finetune.types import Event
from finetune.underway import underway


def trial(number: int, score: float | None, **more: Any) -> Event:
    facts: dict[str, Any] = {
        "study": "coarse",
        "number": number,
        "params": {"optim.lr": 0.001 * (number + 1), "optim.weight_decay": 0.05},
        "state": "done" if score is not None else "failed",
        "score": score,
        "loss": None if score is None else 1 - score,
        "curve": [] if score is None else [score - 0.2, score - 0.1, score],
        "reason": "" if score is not None else "the loss is nan",
        "count": 30,
    }
    return Event("trial", facts | more)


def watched(width: int | None, events: list[Event]) -> tuple[str, str]:
    """Return what a terminal (or, without a width, a file) has been shown, and what of it is drawn anew each time."""
    stream = io.StringIO()
    given = {} if width is None else {"width": width, "force_terminal": True, "color_system": None}
    console = terminal.Console(file=stream, **given)
    board = screen._Board(console=console, auto_refresh=False)
    drawing = Screen(console, board)
    for event in events:
        drawing.show(event)
    live = terminal.Console(file=io.StringIO(), width=width or 200)
    with live.capture() as captured:
        for renderable in board.get_renderables():
            live.print(renderable, soft_wrap=False)
    return stream.getvalue(), captured.get()


def test_the_best_stand_first_and_those_that_failed_in_their_lines_alone() -> None:
    scores = [0.5, 0.9, None, 0.7, 0.6, 0.8, 0.55, 0.65]
    lines, live = watched(100, [trial(number, score) for number, score in enumerate(scores)])
    told = [line.split()[:2] for line in live.splitlines()[1 : BEST + 1]]
    assert told == [["coarse", "2"], ["coarse", "6"], ["coarse", "4"], ["coarse", "8"], ["coarse", "5"]]
    assert "best so far" in live and "weight_decay" in live and "▁▅█" in live
    assert "the loss is nan" in lines and "coarse 3/30" in lines and "coarse 3 " not in live


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_whatever_is_searched(width: int) -> None:
    params = {f"section.key_number_{number}": 0.123 for number in range(9)}
    _, live = watched(width, [trial(number, 0.5, params=params) for number in range(3)])
    assert all(len(line) <= width for line in live.splitlines())


def test_an_epoch_adds_to_the_curve_of_the_bar_and_a_phase_begins_another() -> None:
    console = terminal.Console(file=io.StringIO(), width=80, force_terminal=True)
    drawing = Screen(console, screen._Board(console=console, auto_refresh=False))
    phase = {"index": 0, "total": 1, "name": "head", "epochs": 3, "solver": "gradient", "trained": ["head"]}
    epoch = {"train_loss": 1.0, "train_top1": 0.5, "is_best": False, "delivered": None, "scores": None}
    step = {"epoch": 3, "epochs": 3, "step": 1, "steps": 2, "loss": 1.0, "images_per_second": 10.0}
    drawing.show(Event("phase", phase))
    for number, top1 in enumerate((0.1, 0.5, 0.9), 1):
        drawing.show(Event("epoch", {**epoch, "epoch": number, "val_top1": top1}))
    drawing.show(Event("step", step))
    assert drawing.progress.tasks[-1].fields["facts"].endswith("▁▅█")
    drawing.show(Event("phase", phase))
    drawing.show(Event("step", step))
    assert drawing.progress.tasks[-1].fields["facts"].split() == ["loss", "1.000", "10", "images/s"]


def test_a_task_that_cannot_tell_how_far_it_is_has_a_line_of_its_own_after_a_silence() -> None:
    console = terminal.Console(file=io.StringIO(), width=80, force_terminal=False)
    shown = Screen(console, screen.silent_board(console))
    shown.last -= screen.SILENCE + 1
    with underway("report", shown.show):
        shown.last -= screen.SILENCE + 1
    assert console.file.getvalue() == "report ...\n"


def test_the_bar_of_a_phase_goes_with_its_last_step_or_with_what_comes_after_an_early_end() -> None:
    console = terminal.Console(file=io.StringIO(), width=80, force_terminal=True)
    drawing = Screen(console, screen._Board(console=console, auto_refresh=False))
    step = {"epochs": 2, "steps": 2, "loss": 1.0, "images_per_second": 10.0}
    bars = lambda: [task.description for task in drawing.progress.tasks if task.visible]  # noqa: E731
    drawing.show(Event("step", {**step, "epoch": 2, "step": 1}))
    assert bars() == ["epoch 2/2"]
    drawing.show(Event("step", {**step, "epoch": 2, "step": 2}))
    assert bars() == []
    drawing.show(Event("step", {**step, "epoch": 1, "step": 1}))
    with underway("export to model.onnx", drawing.show):
        assert bars() == ["export to model.onnx"]
    assert bars() == []
