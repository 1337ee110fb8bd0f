"""Uneven data with files that are not read, seen the same way by every command, from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune
from tests.support import TINY, warned

SAID = ("1 .heic", "1 class has a single image: cow", "bee (2)")
Lay = Callable[..., Path]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 ants, 2 bees, one cow, and a file of a kind that is not read."""
    import numpy as np
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("uneven") / "imgs", np.random.default_rng(0)
    for name, count in {"ant": 30, "bee": 2, "cow": 1}.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    (root / "ant" / "x.heic").touch()
    return root


def is_said(part: str, texts: list[str]) -> bool:
    return any(part in text for text in texts)


def test_a_run_tells_before_and_after_of_classes_that_are_not_learned(uneven: Path, tmp_path: Path) -> None:
    result, texts = warned(
        finetune.run, uneven, strategy="full", epochs=1, out=tmp_path / "run", balance="none", **TINY
    )
    assert all(is_said(part, texts) for part in (*SAID, "no image in val, which cannot judge it: cow"))
    assert result.never_predicted == finetune.evaluate(result.folder, split="val").never_predicted == {"bee": 1}
    sentence = "the model never predicts bee (1 image) on val"
    assert is_said(sentence, texts) and sentence in (result.folder / "report.html").read_text()
    found, texts = warned(finetune.evaluate, result.folder, data=uneven)
    assert found.never_predicted == {"bee": 2, "cow": 1} and is_said("1 .heic", texts)
    found, texts = warned(finetune.load(result.folder).predict, uneven)
    assert len(found) == 33 and is_said("1 .heic", texts)


def test_what_is_never_predicted_is_told_of_the_first_fit_where_another_model_is_delivered(
    uneven: Path, tmp_path: Path
) -> None:
    more = {**TINY, "refit": True, "epochs": 1, "balance": "none"}
    result, texts = warned(finetune.run, uneven, strategy="full", out=tmp_path / "run", **more)
    assert result.never_predicted == {"bee": 1}
    assert is_said("the first fit (the refit, which is delivered, has learned from val) never predicts bee", texts)
    assert not is_said("the model never predicts", texts)


@pytest.mark.parametrize("strategy", ["head-only", "auto"])
def test_a_plan_has_what_is_known_of_the_data_once_in_its_notes(uneven: Path, strategy: str) -> None:
    plan, texts = warned(
        finetune.plan, uneven, strategy=strategy, **{**TINY, "backbone": "embedded", "pretrained": True}
    )
    assert all(is_said(part, list(plan.notes)) for part in SAID)
    assert len(set(plan.notes)) == len(plan.notes) and not set(plan.notes) & set(texts)


def test_a_check_and_a_comparison_tell_of_it_too(uneven: Path, tmp_path: Path) -> None:
    found = finetune.check(uneven, quick=True)
    assert is_said("1 .heic", list(found.notes))
    texts = {finding.kind: finding.text for finding in found.findings}
    assert "may never be predicted" in texts["imbalance"] and "too few images" in texts["too-few"]
    _, said = warned(
        finetune.compare, uneven, strategies="full,head-only", epochs=1, out=tmp_path / "cmp", balance="none", **TINY
    )
    assert all(is_said(part, said) for part in (*SAID, "never predicts bee"))


@pytest.mark.parametrize("act", [finetune.run, finetune.plan, finetune.check, finetune.compare])
@pytest.mark.parametrize("tops", ["fold1 fold2", "first second"])
def test_every_command_refuses_what_looks_like_splits_alike(
    image_folder: Lay, act: Callable[..., Any], tops: str, tmp_path: Path
) -> None:
    for top in tops.split():
        image_folder(f"imgs/{top}", per_class=1)
    with pytest.raises(finetune.DataError, match=tops.replace(" ", ", ")):
        act(tmp_path / "imgs", **TINY)
    assert not (tmp_path / "runs").exists()


def test_every_command_takes_such_folders_as_classes_when_told(image_folder: Lay, tmp_path: Path) -> None:
    for seed, top in enumerate(("first", "second")):
        image_folder(f"imgs/{top}", per_class=3, seed=seed)
    told = {"overrides": {"data.layout": "classes"}}
    assert finetune.plan(tmp_path / "imgs", strategy="full", **told, **TINY).num_classes == 2
    assert set(finetune.check(tmp_path / "imgs", quick=True, **told).classes) == {"first", "second"}
