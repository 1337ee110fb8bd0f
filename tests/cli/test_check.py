"""`finetune check` as a user sees it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.sample import CLASSES, write_sample

FIRST = f"{CLASSES[0]}/{CLASSES[0]}-000.jpg"


@pytest.fixture
def imgs(tmp_path: Path) -> Path:
    write_sample(tmp_path / "imgs", per_class=3)
    return tmp_path / "imgs"


@pytest.fixture
def torn(imgs: Path) -> Path:
    """The drawn set with an image in two classes, under a name that a terminal must not obey."""
    (imgs / CLASSES[1] / "\x1b[31mcopy\n[bold]x.jpg").write_bytes((imgs / FIRST).read_bytes())
    return imgs


def test_a_clean_set_ends_with_0(finetune_cli, imgs: Path) -> None:
    done = finetune_cli("check", imgs, "--quick")
    assert done.code == 0
    assert "18 images in 6 classes" in done.out
    assert "no problems found" in done.out
    assert "not checked (--quick)" in done.out
    assert done.err == ""


def test_what_spoils_a_result_ends_with_9_after_everything_was_shown(
    finetune_cli, torn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = finetune_cli("check", torn, "--quick")
    assert done.code == 9
    assert "conflict (spoils results): 1 image is in more than one class" in done.out
    assert FIRST in done.out
    assert "\\x1b[31mcopy\\n[bold]x.jpg" in done.out
    assert "\x1b" not in done.out
    assert done.err.splitlines()[-2] == "error: 1 finding would spoil a result: conflict"
    assert done.err.splitlines()[-1].startswith("hint: ")


def test_json_is_one_complete_document_whatever_the_names(finetune_cli, torn: Path) -> None:
    (torn / CLASSES[0] / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    done = finetune_cli("check", torn, "--quick", "--json")
    assert done.code == 9
    found = json.loads(done.out)
    assert (found["num_images"], found["spoils"], found["judged"]) == (19, True, None)
    assert set(found["pictures"]) == {"smallest", "median", "largest", "formats", "num_grey", "channels", "shown"}
    conflict, damaged = found["findings"]
    assert {one["class"] for one in conflict["cases"][0]["files"]} == {CLASSES[0], CLASSES[1]}
    assert conflict["cases"][0]["how"] == "bytes"
    assert damaged["cases"] == [
        {"files": [{"file": f"{CLASSES[0]}/\udcff.jpg", "class": None, "split": None}], "reason": "the file is empty"}
    ]


def test_labels_are_judged_by_the_embedded_backbone_and_a_sheet_is_drawn(
    finetune_cli, torn: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "worst.png"
    done = finetune_cli("check", "--data", torn, "--image-size", "64", "--device", "cpu", "--sheet", sheet)
    assert done.code == 9
    assert "labels were not judged: no class has enough images" in done.out
    assert f"written: {sheet}" in done.out.replace("\n", "")
    assert sheet.stat().st_size > 1000


def test_only_some_examples_are_shown_and_the_rest_is_counted(finetune_cli, imgs: Path) -> None:
    for number in range(3):
        name = f"{CLASSES[0]}/{CLASSES[0]}-00{number}.jpg"
        (imgs / CLASSES[1] / f"copy{number}.jpg").write_bytes((imgs / name).read_bytes())
    done = finetune_cli("check", imgs, "--quick", "--show", "1")
    assert "and 2 more: --show N, or all with --json" in done.out
    assert "copy0.jpg" in done.out and "copy1.jpg" not in done.out
    assert "copy0.jpg" not in finetune_cli("check", imgs, "--quick", "--show", "0").out


def test_a_class_of_damaged_files_ends_with_9_after_the_table(finetune_cli, imgs: Path) -> None:
    for file in (imgs / CLASSES[0]).iterdir():
        file.write_bytes(b"no image")
    done = finetune_cli("check", imgs, "--quick")
    assert done.code == 9, done.err
    assert f"{CLASSES[0]}: no usable image" in done.out and CLASSES[1] in done.out
    found = json.loads(finetune_cli("check", imgs, "--quick", "--json").out)
    assert found["classes"][CLASSES[0]] == {"images": 0, "train": 0, "val": 0}
    for file in imgs.rglob("*.jpg"):
        file.write_bytes(b"no image")
    assert finetune_cli("check", imgs, "--quick").code == 3


def test_many_classes_are_told_in_lines(finetune_cli, image_folder) -> None:
    root = image_folder(classes=" ".join(f"c{n:02}" for n in range(20)), per_class=2, side=12)
    done = finetune_cli("check", root, "--quick")
    assert "images: 40; per class 2 to 2, median 2" in done.out
    assert "c07" not in done.out


def test_wrong_arguments_end_with_2_and_missing_data_with_3(finetune_cli, imgs: Path) -> None:
    assert finetune_cli("check", imgs, "--data", "other").code == 2
    assert finetune_cli("check").code == 2
    assert finetune_cli("check", imgs, "--alike", "0.1").code == 2
    assert finetune_cli("check", imgs / "nowhere").code == 3
    assert finetune_cli("check", "--help").code == 0


def test_what_is_kept_is_named_in_the_cache(finetune_cli, imgs: Path) -> None:
    finetune_cli("check", imgs, "--quick")
    assert "small images" in finetune_cli("cache", "ls").out


def test_run_names_check_where_its_scan_finds_a_conflict(finetune_cli, torn: Path, tmp_path: Path) -> None:
    quick = ("--backbone", "test_resnet", "--no-pretrained", "--image-size", "64", "--epochs", "1", "--device", "cpu")
    done = finetune_cli("run", "--data", torn, *quick, "--strategy", "head-only", "--out", tmp_path / "run")
    assert done.code == 0
    assert "1 image is in two classes" in done.err
    assert "`finetune check` lists all" in done.err


def test_labels_are_judged_on_as_many_pictures_as_are_independent(finetune_cli, tmp_path: Path) -> None:
    write_sample(tmp_path, per_class=4)
    rows = ["image,label,photo"]
    for place, file in enumerate(sorted(tmp_path.glob("*/*.jpg"))):
        darker = file.with_suffix(".png")
        with Image.open(file) as picture:
            picture.point(lambda level: max(0, level - 12)).save(darker)
        rows += [f"{one.relative_to(tmp_path)},{'even' if place % 2 else 'odd'},{place}" for one in (file, darker)]
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    quick = ("--image-size", "32", "--device", "cpu", "--workers", "0", "--alike", "1", "--group-by", "photo")
    done = finetune_cli("check", tmp_path / "photos.csv", *quick)
    told = " ".join(done.out.split()).partition("labels of 48 images (24 independent) were judged")[2]
    found = re.search(r"top1 (\S+) \(95 %: (\S+) to (\S+)\)", told)
    assert found
    top1, low, high = map(float, found.groups())
    assert low <= top1 <= high
    assert high - low > 0.3  # of 24 photos; 48 independent ones would leave 0.27 at most
