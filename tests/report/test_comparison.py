"""The images of a comparison: round marks, everything inside its axes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from markupsafe import escape

from finetune.report.comparison import HEIGHT, LARGEST_LOSS, WIDTH, marks, panels, write
from finetune.report.standings import CurvePoint
from finetune.types import Interval


def one(label: str, seconds: float, tops: tuple[float, ...], *, loss: float = 1.0) -> SimpleNamespace:
    curve = [CurvePoint(n, top, loss / n, seconds * n) for n, top in enumerate(tops, 1)]
    best = max(curve, key=lambda row: row.score).epoch
    return SimpleNamespace(label=label, strategy=label, curves=[curve], delivered_epochs=[best], metric="top1")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.87), (0, 30), (2.2, 2.3), (0, 12345), (0, 1e-4)])
def test_marks_are_round_few_and_inside(low: float, high: float) -> None:
    found = marks(low, high)
    assert 2 <= len(found) <= 7
    assert low <= found[0] and found[-1] <= high * (1 + 1e-9)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1.0}


def test_every_curve_lies_inside_the_axes() -> None:
    found = [one("full", 30, (0.5, 0.9, 0.8), loss=1000), one("linear-probe", 0.4, (0.7,))]
    for panel in panels(found, {"full": "#000", "linear-probe": "#111"}, guess_loss=0.7):
        for line in panel.lines:
            pairs = [tuple(map(float, pair.split(","))) for pair in line.points.split()]
            assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in [*pairs, line.delivered])
        assert all(0 <= place <= WIDTH for place, _ in panel.x_marks)


def test_a_head_that_is_solved_is_a_level_and_its_best_is_its_point() -> None:
    panel = panels([one("linear-probe", 2, (0.7,)), one("full", 2, (0.5, 0.9))], {"linear-probe": "a", "full": "b"},
                   guess_loss=0.7)[0]  # fmt: skip
    first, second = panel.lines
    assert first.is_dashed and not second.is_dashed
    heights = [pair.split(",")[1] for pair in first.points.split()]
    assert len(heights) == 2 and heights[0] == heights[1]
    assert second.delivered == tuple(map(float, second.points.split()[1].split(",")))


def test_seconds_stand_on_a_logarithmic_axis_where_times_are_far_apart() -> None:
    colours = {"a": "1", "b": "2"}
    near = panels([one("a", 1, (0.1, 0.2)), one("b", 2, (0.1, 0.2))], colours, guess_loss=0.7)
    far = panels([one("a", 1, (0.1, 0.2)), one("b", 500, (0.1, 0.2))], colours, guess_loss=0.7)
    assert [panel.across for panel in near][1] == "seconds"
    assert "logarithmic" in far[1].across
    assert far[0].across == "epochs"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "=cmd|' -C calc'!A0", '"><img src=x onerror=alert(1)>'])
def test_names_are_text_in_the_page(tmp_path: Path, name: str) -> None:
    """Names of classes and files come into it with the data, with errors, and with the folders of the runs."""
    standing = one("full", 30, (0.5, 0.9))
    facts = {
        "label": name, "strategy": name, "score": Interval(0.5, 0.4, 0.6), "difference": None, "is_told_apart": False,
        "seconds": 30.0, "num_trained": 1000,
    }  # fmt: skip
    vars(standing).update(facts)
    failed = SimpleNamespace(strategy=name, seed=0, reason=f"no usable image is left of {name}", hint=name)
    comparison = SimpleNamespace(
        standings=(standing,), said=(f"{name} is best",), failed=(failed,), split="val", num_images=6, seeds=(0,)
    )
    content = {"title": name, "data": f"6 images; 1 left out, e.g. {name} (damaged)", "comparison": comparison}
    more = {
        "is_done": True,
        "num_classes": 2,
        "task": "classify",
        "metric": "top1",
        "runs": [(name, name, 0)],
        "has_seeds": False,
    }
    write(tmp_path / "compare.html", {**content, **more})
    page = (tmp_path / "compare.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count(escape(name)) >= 10


def test_a_loss_beyond_guessing_does_not_flatten_the_others() -> None:
    found = [one("a", 1, (0.1, 0.2), loss=1000), one("b", 1, (0.1, 0.2))]
    panel = panels(found, {"a": "1", "b": "2"}, guess_loss=1.1)[2]
    assert max(float(text) for _, text in panel.y_marks) <= LARGEST_LOSS * 1.2
