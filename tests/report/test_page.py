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
    assert "<script" not in page
    assert "&lt;b&gt;bad.jpg" in page
    assert not re.search(r"(src|href)=.?http", page)
