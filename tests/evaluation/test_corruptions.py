"""Images corrupted by a public protocol: the same each time, measured alike of a run and of its file, or refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import finetune
from finetune.bands import COLOURS, Bands
from finetune.errors import RecipeError
from finetune.evaluation import corruptions
from finetune.evaluation.corruptions import FAMILIES, KINDS, check_corruptible, check_severities, corrupted
from finetune.runs.corrupting import OfPixels, under_corruption

HAS_PACKAGE = importlib.util.find_spec("imagecorruptions") is not None
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Any]]:
    """A protocol in which each kind is noise, the stronger the severer; what it was asked for."""
    asked: list[tuple[str, int, Any]] = []

    def corrupt(image: Any, *, severity: int, corruption_name: str, seed: int | None = None) -> Any:
        asked.append((corruption_name, severity, seed))
        print("what a library prints")
        noise = np.random.normal(scale=60 * severity, size=image.shape)
        return (image + noise).clip(0, 255).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=corrupt))
    return asked


def test_an_image_is_corrupted_the_same_way_each_time(noisy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = np.random.get_state()[1].copy()
    first, again = (corrupted(PIXELS, "fog", 2) for _ in range(2))
    assert np.array_equal(first, again) and not np.array_equal(first, PIXELS)
    assert not np.array_equal(first, corrupted(PIXELS[:, ::-1], "fog", 2)[:, ::-1])
    assert not np.array_equal(first, corrupted(PIXELS, "snow", 2))
    assert np.array_equal(state, np.random.get_state()[1]) and capsys.readouterr().out == ""
    corrupted(PIXELS, "glass_blur", 1)
    assert noisy[0][2] is None and noisy[-1][2] is not None  # it draws from no generator that can be seeded


def test_a_run_and_its_file_fall_alike(noisy: Any, finetune_cli, exported: Path) -> None:
    ours = finetune.evaluate(exported, split="val", device="cpu", corrupt=(3, 1, 3)).corruption
    theirs = finetune.evaluate(exported / "exports", split="val", corrupt=(1, 3)).corruption
    assert ours is not None and theirs is not None and ours.by_kind == theirs.by_kind
    assert ours.severities == (1, 3) and tuple(ours.by_kind) == KINDS and ours.measure == "top1"
    assert {kind for kind, _, seed in noisy if seed is not None} == {"glass_blur", "impulse_noise"}
    printed = finetune_cli("eval", exported / "exports", "--split", "val", "--corrupt", "--severities", "1,3").out
    assert "top1 under" in printed and "all, mean" in printed and "points lost at severity 1, 3: " in printed
    facts = json.loads(
        finetune_cli("eval", exported / "exports", "--split", "val", "--corrupt", "--severities", "1", "--json").out
    )["corruption"]
    assert facts["by_kind"]["fog"] == [ours.by_kind["fog"][0]] and len(facts["means"]) == 1
    assert finetune.evaluate(exported / "exports", split="val").to_json()["corruption"] is None


def test_each_kind_is_scored_at_each_severity_on_all_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def corrupt(image: Any, *, severity: int, corruption_name: str, seed: int | None = None) -> Any:
        return 255 - image if severity == 3 and corruption_name == "fog" else image

    def answer(pixels: Any) -> torch.Tensor:
        return torch.tensor([[128.0, image.mean()] for image in pixels])

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=corrupt))
    levels = {tmp_path / name: level for name, level in (("a", 20), ("b", 230), ("c", 240))}
    model = OfPixels(lambda file: np.full((40, 40, 3), levels[file], np.uint8), answer)
    done: list[tuple[int, int]] = []
    found = under_corruption(
        model, list(levels), torch.tensor([0, 1, 0]), (1, 3), task="classify", clean=0.5, batch_size=2,
        on_event=lambda event: done.append((event.facts["done"], event.facts["total"])),
    )  # fmt: skip
    assert found.by_kind["fog"] == pytest.approx((2 / 3, 1 / 3)) and found.by_kind["snow"] == pytest.approx(
        (2 / 3,) * 2
    )
    assert found.means == pytest.approx((2 / 3, (14 * 2 / 3 + 1 / 3) / 15)) and done[-1] == (90, 90)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--severities", "1"), "--severities needs --corrupt"),
        (("--corrupt", "--severities", "0"), "severity 0 is not one of 1 to 5"),
        (("--corrupt", "--severities", "1-3"), "is not a list of numbers"),
        (("--corrupt", "--tta", "flip"), "--corrupt measures single images"),
    ],
)
def test_what_does_not_go_together_is_refused(noisy: Any, finetune_cli, finished: Path, more: Any, said: str) -> None:
    done = finetune_cli("eval", finished, *more)
    assert done.code == 2 and said in done.err and not noisy


def test_images_that_cannot_be_corrupted_are_refused(noisy: Any, tiny_run, tmp_path: Path) -> None:
    check_corruptible(COLOURS, (32, 40))
    with pytest.raises(RecipeError, match="sees 31 × 40 pixels"):
        check_corruptible(COLOURS, (31, 40))
    with pytest.raises(RecipeError, match="takes 4 channels, but"):
        check_corruptible(Bands(4), (64, 64))
    with pytest.raises(RecipeError, match="takes 3 channels with all bits"):
        check_corruptible(Bands(3, "full"), (64, 64))
    done = finetune.export(tiny_run(epochs=1).folder, out=tmp_path / "full.onnx", preprocessing="full")
    with pytest.raises(RecipeError, match="resizes and cuts images itself"):
        finetune.evaluate(done.path, data=tmp_path, corrupt=(1,))


def test_a_package_that_is_missing_or_broken_is_named(monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(RecipeError, match="needs imagecorruptions, which is not installed") as caught:
        finetune.evaluate(finished, corrupt=(1,))
    assert caught.value.hint == 'pip install "finetune[corrupt]"'
    monkeypatch.delitem(sys.modules, "imagecorruptions")

    def broken(name: str) -> None:
        raise ImportError("libGL.so.1")

    monkeypatch.setattr(corruptions, "import_module", broken)
    with pytest.raises(RecipeError, match=r"cannot be imported: libGL\.so\.1"):
        check_severities((1,))
    assert check_severities(()) == ()


@pytest.mark.skipif(not HAS_PACKAGE, reason="imagecorruptions is not installed")
@pytest.mark.parametrize("shape", [(32, 32, 3), (33, 47, 3), (130, 70, 3)])
def test_every_kind_of_the_package_is_the_same_each_time(shape: tuple[int, ...]) -> None:
    import imagecorruptions

    assert list(KINDS) == imagecorruptions.get_corruption_names("common")
    assert all(list(kinds) == imagecorruptions.get_corruption_names(name) for name, kinds in FAMILIES.items())
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for kind in KINDS:
        first, again = (corrupted(pixels, kind, 2) for _ in range(2))
        assert first.shape == shape and first.dtype == np.uint8, kind
        assert np.array_equal(first, again) and not np.array_equal(first, pixels), kind
