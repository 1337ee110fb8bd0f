"""Bad input costs one clear error: what was found, what to do, the right exit code, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support import FLAGS

QUICK = (*FLAGS, "--epochs", "1")
Make = Callable[[Path], tuple[object, ...]]


def good(folder: Path) -> Path:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            Image.effect_noise((72, 72), 40 + index).convert("RGB").save(folder / name / f"{name}{index}.png")
    return folder


def data(path: Path) -> tuple[object, ...]:
    return ("--data", path, "--strategy", "head-only", *QUICK)


def empty(tmp: Path) -> tuple[object, ...]:
    (tmp / "empty").mkdir()
    return data(tmp / "empty")


def one_class(tmp: Path) -> tuple[object, ...]:
    folder = good(tmp / "imgs")
    (folder / "dog").rename(tmp / "elsewhere")
    return data(folder)


def all_damaged(tmp: Path) -> tuple[object, ...]:
    folder = good(tmp / "imgs")
    for file in (folder / "dog").iterdir():
        file.write_bytes(b"")
    return data(folder)


def recipe_with_three_mistakes(tmp: Path) -> tuple[object, ...]:
    (tmp / "bad.toml").write_text('[optim]\nlrr = 1\nlr = nan\n[strategy]\nname = "hed-only"\n')
    return ("--recipe", tmp / "bad.toml", "--data", good(tmp / "imgs"))


def other_weights(tmp: Path) -> tuple[object, ...]:
    torch.save({"conv.weight": torch.zeros(3)}, tmp / "other.pth")
    return (*data(good(tmp / "imgs"))[:4], "--backbone", "test_resnet", "--weights", tmp / "other.pth")


def unwritable_out(tmp: Path) -> tuple[object, ...]:
    (tmp / "file").write_text("")
    return (*data(good(tmp / "imgs")), "--out", tmp / "file" / "run")


def with_flags(*flags: object) -> Make:
    return lambda tmp: (*data(good(tmp / "imgs")), *flags)


CASES: dict[str, tuple[Make, int, str]] = {
    "missing folder": (lambda tmp: data(tmp / "nowhere"), 3, "no such file or folder"),
    "no data": (lambda tmp: ("--strategy", "full", *QUICK), 2, "data.path is empty"),
    "empty folder": (empty, 3, "no images in"),
    "one class": (one_class, 3, "only one class"),
    "file for a folder": (lambda tmp: data(good(tmp / "imgs") / "cat" / "cat0.png"), 3, "is a file"),
    "all of a class damaged": (all_damaged, 3, "no usable image is left in 'dog'"),
    "unknown backbone": (with_flags("--backbone", "resnet81"), 4, "Did you mean"),
    "misspelt strategy": (with_flags("--strategy", "hed-only"), 2, "Did you mean 'head-only'"),
    "recipe with three mistakes": (recipe_with_three_mistakes, 2, "3 problems"),
    "weights of another network": (other_weights, 4, "another network's"),
    "weights missing": (with_flags("--weights", "nowhere.pth"), 4, "no weights at nowhere.pth"),
    "unwritable out": (unwritable_out, 5, "not a writable folder"),
    "learning rate nan": (with_flags("--lr", "nan"), 2, "optim.lr = nan: must be a finite number"),
    "batch size 0": (with_flags("--batch-size", "0"), 2, "train.batch_size = 0"),
    "image size": (with_flags("--backbone", "test_vit", "--image-size", "37"), 4, "not a multiple"),
    "image size too small": (
        with_flags("--backbone", "inception_v3", "--image-size", "32"),
        4,
        "does not take images",
    ),
    "unknown key": (with_flags("--set", "optim.lrr=1"), 2, "Did you mean 'optim.lr'"),
    "set without value": (with_flags("--set", "optim.lr"), 2, "section.key=value"),
    "probe at no group": (with_flags("--strategy", "linear-probe", "--probe-at", "layer9"), 2, "no such layer group"),
    "no device": (with_flags("--device", "mps"), 5, "none that torch can use"),
    "allow without resume": (with_flags("--allow", "data"), 2, "--allow needs --resume"),
    "resume elsewhere": (with_flags("--resume", "run", "--out", "other"), 2, "no --recipe, --out"),
    "resume of nothing": (lambda tmp: ("--resume", tmp / "nowhere"), 6, "no run folder"),
    "allow what is none": (lambda tmp: ("--resume", tmp, "--allow", "everything"), 2, "no such kind of change"),
    "too few epochs": (with_flags("--strategy", "gradual", "--epochs", "2"), 2, "has 4 phases"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_error(name: str, finetune_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, code, words = CASES[name]
    arguments = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = finetune_cli("run", *arguments)
    assert (done.code, words in done.err) == (code, True), done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert done.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_images_are_listed_left_out_and_never_touched(finetune_cli, tmp_path: Path) -> None:
    folder = good(tmp_path / "imgs")
    whole = (folder / "cat" / "cat0.png").read_bytes()
    bad = {"text.jpg": b"hello", "zero.png": b"", "cut.png": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (folder / "cat" / name).write_bytes(content)
    done = finetune_cli("run", *data(folder), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    listed = (tmp_path / "run" / "problems.csv").read_text()
    assert all(f"cat/{name}" in listed for name in bad)
    assert "3 left out" in done.err
    assert {name: (folder / "cat" / name).read_bytes() for name in bad} == bad


def test_the_hub_out_of_reach_names_the_ways_out(finetune_cli, tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = finetune_cli("run", "--data", good(tmp_path / "imgs"), "--backbone", "resnet18")
    assert done.code == 4
    assert all(way in done.err for way in ("--weights", "HF_HOME", "--no-pretrained"))


def test_a_full_folder_is_not_written_into(finetune_cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = finetune_cli("run", *data(good(tmp_path / "imgs")), "--out", tmp_path)
    assert done.code == 5
    assert "is not empty" in done.err


@pytest.mark.parametrize("out", [None, "run"])
def test_a_run_folder_inside_of_the_data_is_refused(finetune_cli, tmp_path: Path, monkeypatch, out: str | None) -> None:
    imgs = good(tmp_path / "imgs")
    monkeypatch.chdir(imgs)
    before = sorted(imgs.rglob("*"))
    done = finetune_cli("run", *data(Path()), *(["--out", out] if out else []))
    assert done.code == 2
    assert f"error: {out or 'runs'} is inside the data" in done.err
    assert "--out" in done.err.splitlines()[-1]
    assert sorted(imgs.rglob("*")) == before


def test_eval_of_no_run_is_an_error(finetune_cli, tmp_path: Path) -> None:
    done = finetune_cli("eval", tmp_path)
    assert done.code == 6
    assert "is not a run folder" in done.err
