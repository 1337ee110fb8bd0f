"""What a user sees while something runs: live bars in a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from finetune.cli.grid import Grid
from finetune.cli.tables import table
from finetune.cli.terminal import Console, escape
from finetune.types import Event, OnEvent
from finetune.wording import counted, shown_value, trial_place

PLAIN_STEP = 0.25  # share of a long task after which a plain line is printed
HEIGHTS = "▁▂▃▄▅▆▇█"
BEST = 5  # trials of a search that stand above the bars
SILENCE = 10.0  # seconds after which one is printed for any task


Volume = Literal["quiet", "usual", "verbose"]
VOLUMES: dict[Volume, str] = {
    "quiet": "Show only warnings and the result.",
    "verbose": "Show the time of each line, and where the time of each epoch went.",
}
_volume: Volume = "usual"


@contextmanager
def at_volume(volume: Volume) -> Iterator[None]:
    """Draw inside the block as much as is asked for."""
    global _volume
    before, _volume = _volume, volume
    try:
        yield
    finally:
        _volume = before


@contextmanager
def watching(*, is_quiet: bool = False) -> Iterator[OnEvent]:
    """Yield an `on_event` that draws on stderr until the block ends."""
    console = Console(stderr=True)
    if is_quiet or _volume == "quiet":
        yield lambda event: _warnings_only(console, event)
        return
    progress = _Board(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        _Count(),
        TextColumn("{task.fields[facts]}"),
        _Remaining(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress if console.is_terminal else nullcontext():  # elsewhere older versions of rich leave an empty line
        yield Screen(console, progress).show


class _Board(Progress):
    """The bars of what goes on, and above them the best trials of a search as they come, drawn anew each time."""

    def __init__(self, *columns: Any, **settings: Any) -> None:
        self.trials: list[Mapping[str, Any]] = []
        super().__init__(*columns, **settings)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the table of trials, if there are any, then the bars."""
        ranked = sorted((facts for facts in self.trials if facts["score"] is not None), key=_score)[::-1]
        if ranked:
            yield trials_table(ranked[:BEST], first="best so far")
        yield from super().get_renderables()


def _score(facts: Mapping[str, Any]) -> tuple[float, float]:
    return facts["score"], -(facts["loss"] or 0.0)


class _Count(MofNCompleteColumn):
    """How many of how many; empty for a task without a known end."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text()


class _Remaining(TimeRemainingColumn):
    """How long a task still takes; empty for one without a known end."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text()


def silent_board(console: Console) -> _Board:
    """Return a board that draws nothing by itself."""
    return _Board(console=console, disable=True)


class Screen:
    """Draws events: a bar for what goes on, a line for what is done."""

    def __init__(self, console: Console, progress: _Board) -> None:
        self.console = console
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}
        self.speed: float | None = None  # images per second of the last step
        self.curve: list[float] = []  # the score on val of every epoch
        self.began = self.last = time.monotonic()  # when it began, and when a line was printed
        self._starting = progress.add_task("starting", total=None, facts="")  # libraries are read for seconds

    def show(self, event: Event) -> None:
        """Draw one event."""
        self.progress.update(self._starting, visible=False)
        getattr(self, f"_{event.kind}")(event.facts)

    def _line(self, text: str) -> None:
        when = f"[dim]{time.monotonic() - self.began:8.1f} s[/dim]  " if _volume == "verbose" else ""
        self.console.print(f"{when}{text}")
        self.last = time.monotonic()

    def _message(self, facts: dict[str, Any]) -> None:
        self._line(escape(facts["text"]))

    def _warning(self, facts: dict[str, Any]) -> None:
        self._line(f"[yellow]note:[/yellow] {escape(facts['text'])}")

    def _progress(self, facts: dict[str, Any]) -> None:
        task, done, total = facts["task"], facts["done"], facts["total"]
        if total is None:
            self._endless(task, done)
            return
        if not self.console.is_terminal:
            share = done / max(total, 1)
            is_long = total > 1000 and share - self.said.get(task, 0.0) >= PLAIN_STEP
            if is_long or (total > 1 and time.monotonic() - self.last > SILENCE):
                self.said[task] = share
                self._line(f"{escape(task)}: {done} of {total}")
            return
        self._bar(task, done, total, "")
        if done >= total:
            self._drop(task)

    def _endless(self, task: str, done: int) -> None:
        """Draw the progress of a task whose end is unknown."""
        if self.console.is_terminal:
            self._drop("train")  # a phase may have ended before its last epoch
            self._bar(task, done, None, f"{done:,}" if done else "")
        elif time.monotonic() - self.last > SILENCE:
            self._line(f"{escape(task)}: {done}" if done else f"{escape(task)} ...")

    def _phase(self, facts: dict[str, Any]) -> None:
        self._drop("train")
        how = "solved" if facts["solver"] == "lbfgs" else counted(facts["epochs"], "epoch")
        trained, self.curve = facts["trained"], []
        shown = ", ".join(trained) if len(trained) <= 4 else f"{trained[0]} ... {trained[-1]}"
        place, name = f"phase {facts['index'] + 1}/{facts['total']}", escape(facts["name"])
        self._line(f"{place} [bold]{name}[/bold]: {how}, trains {escape(shown)}")

    def _timing(self, facts: dict[str, Any]) -> None:
        """Print where the time of an epoch went, if asked for; timing.json has it for all."""
        if _volume == "verbose":
            took = f"{facts['seconds']:.1f} s, {facts['waited']:.1f} s of them waiting for images"
            self._line(f"epoch {facts['epoch']:>3}  {took}")

    def _step(self, facts: dict[str, Any]) -> None:
        if self.console.is_terminal:
            done = (facts["epoch"] - 1) * facts["steps"] + facts["step"]
            told = f"loss {facts['loss']:.3f}  {facts['images_per_second']:.0f} images/s  {sparkline(self.curve)}"
            total = facts["epochs"] * facts["steps"]
            self._bar("train", done, total, told, f"epoch {facts['epoch']}/{facts['epochs']}")
            if done >= total:
                self._drop("train")
        elif time.monotonic() - self.last > SILENCE:
            self._line(f"epoch {facts['epoch']}: step {facts['step']} of {facts['steps']}")
        self.speed = facts["images_per_second"]

    def _epoch(self, facts: dict[str, Any]) -> None:
        parts = [f"epoch {facts['epoch']:>3}"]
        if facts["train_loss"] is not None:
            seen = facts["train_top1"]
            parts.append(f"loss {facts['train_loss']:.4f}" + (f"  train top1 {seen:.3f}" if seen is not None else ""))
        scores = facts.get("scores") or {"top1": facts["val_top1"]}
        parts += [f"val {name} {value:.3f}" for name, value in scores.items()]
        self.curve += list(scores.values())[:1]
        if self.speed is not None:
            parts.append(f"{self.speed:.0f} images/s")
        if facts["is_best"]:
            parts.append("[green]highest[/green]")
        if facts["delivered"] not in (None, facts["epoch"]):
            parts.append(f"epoch {facts['delivered']} would be delivered")
        self._line("  ".join(parts))

    def _trial(self, facts: dict[str, Any]) -> None:
        self._line(escape(trial_line(facts)))
        self.progress.trials.append(facts)

    def _bar(self, task: str, done: int, total: int | None, facts: str, description: str | None = None) -> None:
        if task not in self.tasks:
            self.tasks[task] = self.progress.add_task(description or task, total=total, facts=facts)
        self.progress.update(
            self.tasks[task], completed=done, total=total, facts=facts, description=description or task
        )

    def _drop(self, task: str) -> None:
        if task in self.tasks:
            self.progress.remove_task(self.tasks.pop(task))


def trial_line(facts: Mapping[str, Any]) -> str:
    """Return a trial of a search in one line: its place, its score with its curve, how it ended, its values."""
    place = trial_place(facts["study"], facts["number"], f"/{facts['count']}")
    score = "" if facts["score"] is None else f"{facts['score']:.3f}"
    end = "" if facts["state"] == "done" else facts["state"]
    values = ", ".join(f"{key.partition('.')[2]} {shown_value(value)}" for key, value in facts["params"].items())
    told = f": {facts['reason']}" if facts["state"] == "failed" else ""
    return f"{place:<13} {score:>6} {sparkline(facts['curve']):<12} {end:<7} {values or 'recipe unchanged'}{told}"


def trials_table(trials: Sequence[Mapping[str, Any]], *, first: str = "trial", score: str = "score") -> Grid:
    """Return a table of trials of a search, with their values and curves."""
    keys = list(dict.fromkeys(key for facts in trials for key in facts["params"]))
    headers = [first, f"val {score}", "loss", *(key.partition(".")[2] for key in keys), "epochs", "curve"]
    rows = [_trial_cells(facts, keys) for facts in trials]
    return table(headers, rows, words=["curve"], drop=["curve", "loss", "epochs"])


def _trial_cells(facts: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    numbers = ("" if facts[name] is None else f"{facts[name]:.3f}" for name in ("score", "loss"))
    values = (shown_value(facts["params"][key]) if key in facts["params"] else "" for key in keys)
    curve = facts["curve"]
    return (trial_place(facts["study"], facts["number"]), *numbers, *values, str(len(curve)), sparkline(curve))


def sparkline(values: Sequence[float], *, most: int = 12) -> str:
    """Return a curve between its lowest and highest values, with at most `most` points."""
    count = min(len(values), most)
    shown = [values[round(place * (len(values) - 1) / max(count - 1, 1))] for place in range(count)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    steps = len(HEIGHTS) - 1
    return "".join(HEIGHTS[round((value - low) / (high - low) * steps) if high > low else 0] for value in shown)


def _warnings_only(console: Console, event: Event) -> None:
    if event.kind == "warning":
        console.print(f"note: {escape(event.facts['text'])}")
