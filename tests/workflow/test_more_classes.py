"""More classes later: a run that begins from another keeps what its head knows of classes by their name."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import finetune
from finetune.backbone.groups import head_modules
from finetune.backbone.load import architecture, load
from finetune.errors import RecipeError
from tests.support import TINY, stop_after

LEVELS = {"ant": 40, "bee": 130, "cow": 220, "dog": 85}
QUICK: dict[str, Any] = {**TINY, "epochs": 12}


def shades(root: Path, names: str) -> Path:
    rng = np.random.default_rng(0)
    for name in names.split():
        (root / name).mkdir(parents=True)
        for number in range(15):
            pixels = rng.normal(LEVELS[name], 10, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three classes."""
    place = tmp_path_factory.mktemp("earlier")
    data = shades(place / "imgs", "bee cow ant")
    return finetune.run(data, strategy="scratch", out=place / "run", **{**QUICK, "lr": 3e-3}).folder


def test_rows_are_matched_by_name_and_new_ones_are_as_without(earlier: Path) -> None:
    of = architecture("auto", weights=earlier)
    old = load(of, num_classes=None)
    names = ("dog", "cow", "ant", "eel")
    backbone = load(of, num_classes=4, classes=names)
    fresh = load(of, num_classes=4)
    (head,), (before,), (new,) = (head_modules(part.model) for part in (backbone, old, fresh))
    assert backbone.known == ("cow", "ant") and fresh.known == ()
    for name, tensor in head.named_parameters():
        source, unknown = before.get_parameter(name), new.get_parameter(name)
        assert torch.equal(tensor[1], source[of.classes.index("cow")])
        assert torch.equal(tensor[2], source[of.classes.index("ant")])
        assert torch.equal(tensor[0], unknown[0]) and torch.equal(tensor[3], unknown[3])


def test_a_run_on_more_classes_says_what_became_of_the_old_ones(earlier: Path, tmp_path: Path) -> None:
    said: list[str] = []
    more = {key: value for key, value in QUICK.items() if key not in ("backbone", "pretrained", "image_size")}
    result = finetune.run(
        shades(tmp_path / "imgs", "ant bee cow dog"), weights=earlier, strategy="head-only", out=tmp_path / "run",
        on_event=lambda event: said.append(str(event.facts.get("text", ""))), **more,
    )  # fmt: skip
    assert any("head: ant, bee, cow keep their rows; new: dog" in text for text in said)
    (told,) = [text for text in said if "known before, top1 was" in text]
    assert "9 val images of the 3 classes" in told
    assert told in (result.folder / "report.html").read_text()


def test_val_images_that_the_earlier_run_was_trained_on_are_counted(earlier: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(earlier.parent / "imgs", tmp_path / "imgs"))
    rows = list(csv.DictReader((earlier / "split.csv").open()))
    trained = {row["file"] for row in rows if row["split"] == "train"}
    more = {key: value for key, value in QUICK.items() if key not in ("backbone", "pretrained", "image_size", "epochs")}
    told: list[str] = []
    counts = []
    for seed in (0, 5):
        run = finetune.run(
            data, weights=earlier, strategy="head-only", out=tmp_path / str(seed), epochs=1,
            overrides={"split.seed": seed}, on_event=lambda event: told.append(str(event.facts.get("text"))), **more,
        ).folder  # fmt: skip
        val = [row["file"] for row in csv.DictReader((run / "split.csv").open()) if row["split"] == "val"]
        counts.append(f"was trained on {len(trained.intersection(val))} of the {len(val)} images of val")
    notes = [text for text in told if "was trained on" in text]
    assert "on 0 of" in counts[0] and "on 0 of" not in counts[1]
    assert len(notes) == 1 and counts[1] in notes[0]


def test_images_that_a_run_before_the_earlier_one_was_trained_on_are_counted(earlier: Path, tmp_path: Path) -> None:
    more = {key: value for key, value in QUICK.items() if key not in ("backbone", "pretrained", "image_size", "epochs")}
    told: list[str] = []

    def after(weights: Path, data: Path, name: str) -> Path:
        return finetune.run(
            data, weights=weights, strategy="head-only", out=tmp_path / name, epochs=1, overrides={"split.seed": 5},
            on_event=lambda event: told.append(str(event.facts.get("text"))), **more,
        ).folder  # fmt: skip

    others = shades(tmp_path / "others", "dog cow")
    for file in sorted(others.rglob("*.png")):  # of the images that the first run has seen, none
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    second = after(earlier, others, "second")
    assert not any("was trained on" in text for text in told)
    after(second, earlier.parent / "imgs", "third")
    trained = {row["digest"] for row in csv.DictReader((earlier / "split.csv").open()) if row["split"] == "train"}
    rows = [row for row in csv.DictReader((tmp_path / "third" / "split.csv").open()) if row["split"] == "val"]
    count = sum(row["digest"] in trained for row in rows)
    (note,) = [text for text in told if "was trained on" in text]
    assert count and f"or one before it, was trained on {count} of the {len(rows)} images of val" in note


def test_rows_that_another_model_has_are_other_weights_when_a_run_is_resumed(earlier: Path, tmp_path: Path) -> None:
    more = {key: value for key, value in QUICK.items() if key not in ("backbone", "pretrained", "image_size")}
    begun = Path(shutil.copytree(earlier, tmp_path / "begun"))
    with pytest.raises(finetune.Interrupted):
        finetune.run(
            earlier.parent / "imgs", weights=begun, strategy="head-only", out=tmp_path / "run",
            on_event=stop_after(2), **more,
        )  # fmt: skip
    file = begun / "model" / "model.safetensors"
    content, tensors = file.read_bytes(), load_file(file)
    save_file({name: tensor * (2 if len(tensor) == 3 else 1) for name, tensor in tensors.items()}, file)
    with pytest.raises(finetune.CheckpointError, match=r"are not those that .* began with"):
        finetune.resume(tmp_path / "run")
    file.write_bytes(content)
    begun.rename(tmp_path / "moved")
    with pytest.raises(finetune.BackboneError, match=r"began with are not in .*begun/model any more") as gone:
        finetune.resume(tmp_path / "run")
    assert gone.value.hint.endswith("--weights NEW")
    assert finetune.resume(tmp_path / "run", weights=tmp_path / "moved").folder == tmp_path / "run"


def test_what_would_overwrite_the_rows_is_refused(earlier: Path, tmp_path: Path) -> None:
    data = shades(tmp_path / "imgs", "ant dog")
    with pytest.raises(RecipeError, match="would overwrite what"):
        finetune.run(data, weights=earlier, strategy="head-only", out=tmp_path / "run",
                     overrides={"strategy.initialiser": "xavier"}, device="cpu")  # fmt: skip
