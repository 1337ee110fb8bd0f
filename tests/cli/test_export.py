"""`finetune export` says what was proven."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_command_prints_the_proof(finetune_cli, finished: Path, tmp_path: Path) -> None:
    done = finetune_cli("export", finished, "--out", tmp_path / "a.onnx")
    assert done.code == 0
    text = " ".join(done.out.split())
    assert re.search(r"proven on \d+ image files of the data: logits differ by at most", text)
    assert re.search(r"val, \d+ images: top1 0\.\d+, model 0\.\d+, \d+ answers the same", text)
    assert re.search(r"[\d.]+ MB; an image takes [\d.]+ ms here, [\d.]+ ms in torch", text)
