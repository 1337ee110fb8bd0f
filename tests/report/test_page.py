"""The report escapes what comes from files, and opens offline."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

import finetune


def test_a_class_name_with_markup_is_shown_and_not_run(tmp_path: Path) -> None:
    for name in ("<script>alert(1)</script>".replace("/", "∕"), "b"):
        (tmp_path / "imgs" / name).mkdir(parents=True)
        for index in range(4):
            noise = Image.effect_noise((64, 64), 30 + index).convert("RGB")
            noise.save(tmp_path / "imgs" / name / f"{name[-3:]}{index}.png")
        (tmp_path / "imgs" / name / "<b>bad.jpg").write_bytes(b"x")
    result = finetune.run(
        tmp_path / "imgs", strategy="head-only", backbone="test_resnet", pretrained=False, image_size=64,
        epochs=2, workers=0, device="cpu", out=tmp_path / "run",
    )  # fmt: skip
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "<script>alert" not in page  # that of ours, which sorts a table
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;bad.jpg" in page
    assert not re.search(r"(src|href)=.?http", page)


def test_the_report_shows_what_people_open_it_for(quick_run) -> None:
    result = quick_run("head-only", test=0.2, epochs=3)
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    top1 = result.metrics["test"]["top1"]["value"]
    for wanted in (
        f"gets {top1:.1%} of test right", "What to do next", "How it learned", "delivered: epoch",
        "What is confused with what", "mostly taken for", "The most confident mistakes", "The least confident",
        "Where it looked", "lit where it speaks for", "The filters of its first layer", "data:image/png",
        "How far its confidence can be trusted", "data:image/jpeg", "Where the time went", "What it sees in training",
        "prefers-color-scheme: dark",
    ):  # fmt: skip
        assert wanted in page, wanted
    assert page.count('alt="an image of train') == 12
    assert len(page) < 3_000_000
    assert not re.search(r"(src|href)=.?http", page)


def test_a_solved_head_has_no_curves_and_shows_its_cell(quick_run) -> None:
    result = quick_run("auto", overrides={"strategy.assume": "few,similar"})
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "How it learned" not in page
    assert re.search(r'class="chosen">the head, solved', page)
