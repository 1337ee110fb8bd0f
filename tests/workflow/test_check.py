"""The whole check on drawn images: what was planted is found, under the split that a run would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFilter

import finetune
from finetune.data.findings import Case
from finetune.data.sample import CLASSES, draw, write_sample
from finetune.features import sources as trunk_passes
from finetune.features.sources import run_trunk
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import read_data
from finetune.settings import Recipe
from finetune.types import Event
from finetune.workflow.check import Check, check
from tests.support import cases_of

STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "edges": lambda picture: picture.filter(ImageFilter.FIND_EDGES),
    "plain": lambda picture: picture,
    "soft": lambda picture: picture.filter(ImageFilter.GaussianBlur(4)),
}
EMBEDDED: dict[str, Any] = {"image_size": 96, "device": "cpu", "workers": 0}


def styled(root: Path, *, per_class: int, seed: int = 0, turned_every: int = 0) -> set[str]:
    """Draw images in three styles, a class each, and yield the files that stand in a wrong one."""
    names, wrong = list(STYLES), set()
    for place, name in enumerate(names):
        for index in range(per_class):
            is_turned = turned_every and index % turned_every == 0
            label = names[(place + 1 + index // 10 % 2) % 3] if is_turned else name
            file = root / label / f"{name}-{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            STYLES[name](draw(CLASSES[index % len(CLASSES)], index=index + 100 * place, seed=seed)).save(file)
            if is_turned:
                wrong.add(f"{label}/{file.name}")
    return wrong


def files_of(found: Check, kind: str) -> list[list[str]]:
    return [files for _, files in cases_of(found, kind)]


@pytest.fixture
def imgs(tmp_path: Path) -> Path:
    write_sample(tmp_path / "imgs", per_class=5)
    return tmp_path / "imgs"


def saved_again(imgs: Path, name: str, label: str, number: int = 0) -> str:
    """Save an image of the drawn set as a smaller PNG under another label."""
    picture = Image.open(imgs / name)
    to = f"{label}/again{number}.png"
    picture.resize((picture.width // 2, picture.height // 2)).save(imgs / to)
    return to


@pytest.mark.parametrize("seeds", [(1,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_turned_labels_are_found_at_nine_in_ten(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """Measured over three seeds: of 36 turned labels 29 are found, beside one that was right."""
    hits = flagged = turned = 0
    for seed in seeds:
        wrong = styled(tmp_path / str(seed), per_class=40, seed=seed, turned_every=10)
        found = check(tmp_path / str(seed), **EMBEDDED)
        named = {files[0] for files in files_of(found, "label")}
        hits, flagged, turned = hits + len(named & wrong), flagged + len(named), turned + len(wrong)
        assert found.judged is not None
        assert found.judged.backbone == "embedded"
        assert found.judged.num_images == 120
    assert turned == 12 * len(seeds)
    assert hits >= 0.9 * flagged
    assert hits >= 0.6 * turned


def test_a_picture_unlike_all_others_is_found(tmp_path: Path) -> None:
    root = tmp_path / "imgs"
    styled(root, per_class=14)
    for name in ("edges", "plain"):  # two grey classes of fine structure, one image of neither
        for index in range(14):
            STYLES["edges"](draw(CLASSES[index % 6], index=index + (500 if name == "plain" else 0), seed=3)).save(
                root / name / f"more-{index}.png"
            )
    page = Image.new("RGB", (120, 100), "white")
    for line in range(8):
        ImageDraw.Draw(page).text((4, 4 + 12 * line), "the quick brown fox", fill="black")
    page.save(root / "edges/strange.png")
    found = check(root, **EMBEDDED)
    assert ["edges/strange.png"] in files_of(found, "odd")[:2]


def test_copies_leaks_and_conflicts_are_found_whatever_their_files(imgs: Path) -> None:
    first, second, third = (f"{CLASSES[place]}/{CLASSES[place]}-000.jpg" for place in range(3))
    conflicting = saved_again(imgs, first, CLASSES[1])
    copy = f"{CLASSES[1]}/copy.jpg"
    (imgs / copy).write_bytes((imgs / second).read_bytes())
    turned = Image.open(imgs / third).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(imgs / CLASSES[2] / "flipped.png")
    found = check(imgs, quick=True)
    assert [set(files) for files in files_of(found, "conflict")] == [{first, conflicting}]
    assert [set(files) for files in files_of(found, "copies")] == [{second, copy}]
    assert found.judged is None
    with pytest.raises(finetune.FindingsError, match=r"would spoil a result: .*conflict") as caught:
        found.raise_if_spoiled()
    assert caught.value.exit_code == 9


def test_the_split_is_that_of_a_run_with_the_same_settings(imgs: Path) -> None:
    for number in range(4):
        for place in (0, 1, 2):
            saved_again(imgs, f"{CLASSES[place]}/{CLASSES[place]}-00{number}.jpg", CLASSES[place], number)
    settings = {"val": 0.3, "test": 0.2}
    overrides = {"split.seed": 3}
    found = check(imgs, quick=True, overrides=overrides, **settings)
    made = read_data(recipe_of(settings={"data": imgs, **settings}, overrides=overrides))
    splits = {sample.file: sample.split for sample in made.samples}
    shown = [one for finding in found.findings for case in finding.cases for one in case.files]
    assert files_of(found, "leak")
    assert all(one.split == splits[one.file] for one in shown)
    assert {name: count["val"] for name, count in found.classes.items()} == made.counts("val")


def test_a_given_split_that_leaks_is_reported_as_given(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write_sample(tmp_path / "imgs" / split, per_class=3, seed=seed)
    name = f"{CLASSES[0]}/{CLASSES[0]}-000.jpg"
    (tmp_path / "imgs/val" / CLASSES[0] / "leak.jpg").write_bytes((tmp_path / "imgs/train" / name).read_bytes())
    (finding,) = check(tmp_path / "imgs", quick=True).spoiling
    assert finding.kind == "leak"
    assert "when `run`" not in finding.text
    assert [one.file for one in finding.cases[0].files] == [f"train/{name}", f"val/{CLASSES[0]}/leak.jpg"]


def test_the_table_of_groups_keeps_copies_in_one_split(imgs: Path, tmp_path: Path) -> None:
    for number in range(4):
        for place in range(6):
            saved_again(imgs, f"{CLASSES[place]}/{CLASSES[place]}-00{number}.jpg", CLASSES[place], number)
    table = tmp_path / "groups.csv"
    first = check(imgs, quick=True, groups=table)
    assert [finding.kind for finding in first.spoiling] == ["leak"]
    again = check(table, quick=True, group_by="group")
    assert again.spoiling == ()
    assert len(files_of(again, "copies")) == 24
    assert again.num_images == first.num_images == 54


def test_an_image_alone_in_its_class_is_a_finding(imgs: Path) -> None:
    for file in sorted((imgs / CLASSES[0]).iterdir())[1:]:
        file.unlink()
    (finding,) = check(imgs, quick=True).spoiling
    assert (finding.kind, finding.cases[0].facts) == ("too-few", {"class": CLASSES[0]})


@pytest.mark.parametrize("quick", [True, False])
def test_a_class_of_damaged_files_is_a_finding_beside_the_others(imgs: Path, quick: bool) -> None:
    saved_again(imgs, f"{CLASSES[0]}/{CLASSES[0]}-000.jpg", CLASSES[1])
    for file in (imgs / CLASSES[2]).iterdir():
        file.write_bytes(b"no image")
    found = check(imgs, quick=quick, **{**EMBEDDED, "image_size": 64})
    assert {finding.kind for finding in found.spoiling} >= {"conflict", "too-few", "damaged"}
    (few,) = (finding for finding in found.findings if finding.kind == "too-few")
    assert few.cases == (Case((), f"{CLASSES[2]}: no usable image", {"class": CLASSES[2]}),)
    assert found.classes[CLASSES[2]] == {"images": 0, "train": 0, "val": 0}
    assert found.classes[CLASSES[3]] == {"images": 5, "train": 4, "val": 1}
    assert not any(finding.kind == "imbalance" for finding in found.findings)


def test_a_class_that_train_lacks_is_a_finding_and_its_leaks_are_found(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write_sample(tmp_path / "imgs" / split, per_class=3, seed=seed)
    name = f"{CLASSES[0]}/{CLASSES[0]}-000.jpg"
    strange = tmp_path / "imgs/val/another"
    strange.mkdir()
    (strange / "leak.jpg").write_bytes((tmp_path / "imgs/train" / name).read_bytes())
    found = check(tmp_path / "imgs", quick=True)
    assert [finding.kind for finding in found.spoiling] == ["leak", "conflict", "too-few"]
    assert [case.note for case in found.spoiling[2].cases] == ["another: 1 image, none in train"]
    assert [set(files) for files in files_of(found, "leak")] == [{f"train/{name}", "val/another/leak.jpg"}]
    assert found.classes["another"] == {"images": 1, "train": 0, "val": 1}


@pytest.mark.parametrize("quick", [True, False])
def test_one_class_only_is_a_finding(imgs: Path, tmp_path: Path, quick: bool) -> None:
    (tmp_path / "one").mkdir()
    (imgs / CLASSES[0]).rename(tmp_path / "one" / "a")
    found = check(tmp_path / "one", quick=quick, **{**EMBEDDED, "image_size": 64})
    assert ["one class only" in finding.text for finding in found.spoiling] == [True]


def test_data_that_cannot_be_divided_is_a_finding_beside_the_others(imgs: Path) -> None:
    saved_again(imgs, f"{CLASSES[0]}/{CLASSES[0]}-000.jpg", CLASSES[1])
    found = check(imgs, quick=True, group_by=r"(\.)[a-z]+$")  # one group
    assert [finding.kind for finding in found.spoiling] == ["too-few", "conflict"]
    assert found.spoiling[0].text.startswith("this data cannot be divided: ")
    assert found.classes[CLASSES[0]] == {"images": 5}


def test_a_second_check_computes_no_features_and_a_run_finds_them(
    imgs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(trunk: Any, images: Any, **more: Any) -> Any:
        counts.append(len(images))
        return run_trunk(trunk, images, **more)

    monkeypatch.setattr(trunk_passes, "run_trunk", counted)
    plain = {"augment.level": "none"}
    first = check(imgs, **EMBEDDED)
    assert sum(counts) == 30
    counts.clear()
    assert check(imgs, **EMBEDDED).to_json() == first.to_json()
    finetune.run(
        imgs, strategy="head-only", backbone="embedded", epochs=2, out=tmp_path / "run", overrides=plain, **EMBEDDED
    )
    assert counts == []


def test_the_strategy_of_a_recipe_is_left_aside_and_its_backbone_taken(imgs: Path) -> None:
    recipe = Recipe.model_validate(
        {"strategy": {"name": "top-k", "top_k": 2}, "backbone": {"name": "test_resnet", "pretrained": False}}
    )
    found = check(imgs, recipe=recipe, image_size=64, device="cpu", workers=0)
    assert found.judged is not None
    assert found.judged.backbone == "test_resnet"
    assert found.judged.num_images == 0  # of five images a class none is judged


def test_what_could_not_be_written_is_refused_before_anything_is_read(imgs: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    (tmp_path / "there.png").touch()
    cases: list[tuple[dict[str, Any], type[finetune.FinetuneError], str]] = [
        ({"sheet": tmp_path / "a.jpg"}, finetune.RecipeError, r"does not end in \.png"),
        ({"sheet": "."}, finetune.RecipeError, r"\. does not end in \.png"),
        ({"groups": tmp_path / "a.txt"}, finetune.RecipeError, r"does not end in \.csv"),
        ({"sheet": tmp_path / "there.png"}, finetune.ResourceError, "already exists"),
        ({"sheet": tmp_path / "no/a.png"}, finetune.ResourceError, "no such folder"),
        ({"alike": 0.5}, finetune.RecipeError, "between 0.9 and 1"),
        ({"val": 0.6, "test": 0.5}, finetune.RecipeError, "leaves nothing to train on"),
    ]
    for arguments, kind, text in cases:
        with pytest.raises(kind, match=text) as caught:
            check(imgs, quick=True, on_event=events.append, **arguments)
        assert caught.value.hint
    assert events == []


def test_nothing_in_the_data_is_touched(imgs: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in imgs.rglob("*")}
    check(imgs, quick=True, sheet=tmp_path / "sheet.png")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in imgs.rglob("*")} == before
    assert Image.open(tmp_path / "sheet.png").size[1] > 0
