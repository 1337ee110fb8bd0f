"""Shards hold a data set byte for byte, are read like a folder, and cost one clear word where they are damaged."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune
from finetune.data import checks, sources
from finetune.data.loaders import Order, shards_of
from finetune.data.places import braces_expanded, check_outside, data_name, root_of, settled_path
from finetune.data.shards import named_shards
from finetune.errors import DataError, RecipeError, ResourceError
from finetune.images import shards as members
from finetune.images.files import read_content
from finetune.types import Manifest, Sample, Target
from finetune.whole import held
from tests.killing import forked


def written(data: Path, out: Path, **more: Any) -> str:
    finetune.shard(data, out=out, **{"size": 30_000, **more})
    return f"wds:{out}"


def tarred(place: Path, content: Mapping[str, bytes]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as tar:
        for name, text in content.items():
            head = tarfile.TarInfo(name)
            head.size = len(text)
            tar.addfile(head, io.BytesIO(text))
    return place


def images_of(few: Path, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted(few.rglob("*.jpg"))[:count]]


def foreign(few: Path, place: Path, beside: Mapping[str, list[Any]]) -> Path:
    """Write a shard of images with .cls or .json beside them."""
    count = len(next(iter(beside.values())))
    content = {}
    for number, image in enumerate(images_of(few, count)):
        content[f"set/{number:04d}.jpg"] = image
        for kind, values in beside.items():
            value = values[number]
            content[f"set/{number:04d}.{kind}"] = (value if kind == "cls" else json.dumps(value)).encode()
    return tarred(place, content)


def rows_of(manifest: Manifest) -> list[tuple[bytes, str, str | None, str | None]]:
    return sorted(
        (read_content(Path(manifest.root, s.file)), manifest.label(s.target), s.split, s.group)
        for s in manifest.samples
    )  # fmt: skip


def reasons(manifest: Manifest) -> dict[str, str]:
    return {problem.file: problem.reason for problem in manifest.problems}


def test_a_folder_comes_back_byte_for_byte(few: Path, tmp_path: Path) -> None:
    shards = written(few, tmp_path / "shards")
    there = sources.read(shards)
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 2
    assert rows_of(there) == rows_of(sources.read(few))
    assert there.classes == sources.read(few).classes
    assert checks.scan(there).problems == ()


def test_splits_and_groups_of_a_table_come_back_without_being_named(few: Path, tmp_path: Path) -> None:
    table = few.parent / "table.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "split", "who"])
        for number, file in enumerate(sorted(few.rglob("*.jpg"))):
            split = ["train", "train", "val", "test"][number % 4]
            writer.writerow([file.relative_to(few.parent), file.parent.name, split, f"p{number // 4}"])
    shards = written(table, tmp_path / "shards", group_by="who")
    assert {file.name.split("-")[0] for file in (tmp_path / "shards").glob("*.tar")} == {"train", "val", "test"}
    assert rows_of(sources.read(shards)) == rows_of(sources.read(table, group_by="who"))


@pytest.mark.parametrize(
    ("labels", "task"), [(["a;b", "b", "", "a"], "multilabel"), (["1.5", "2.25", "-3.0", "0.1"], "regress")]
)
def test_several_classes_and_numbers_come_back(few: Path, tmp_path: Path, labels: list[str], task: str) -> None:
    table = few.parent / f"{task}.csv"
    files = sorted(few.rglob("*.jpg"))[:4]
    rows = [f"{file.relative_to(few.parent)},{label}" for file, label in zip(files, labels, strict=True)]
    table.write_text("\n".join(["image,label", *rows]))
    shards = written(table, tmp_path / "shards", task=task)
    back: Any = sources.read(shards, task=task)  # type: ignore[arg-type]
    assert sorted(back.label(s.target) for s in back.samples) == sorted(label.replace(";", "|") for label in labels)


def test_a_list_of_classes_stays_one_where_every_image_has_a_single_class(few: Path, tmp_path: Path) -> None:
    """Columns that exclude each other are one class; a list in a .json says itself that there may be several."""
    foreign(few, tmp_path / "0.tar", {"json": [{"label": [name]} for name in ("a", "b", "a", "b")]})
    assert sources.read(f"wds:{tmp_path / '0.tar'}", task="auto").task == "multilabel"


def test_the_same_data_gives_the_same_bytes_and_a_shard_is_no_larger_than_asked(few: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(few, tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert all(file.stat().st_size <= 30_000 for file in (tmp_path / "a").glob("*.tar"))


def test_an_image_larger_than_a_shard_has_one_of_its_own(few: Path, tmp_path: Path) -> None:
    written(few, tmp_path / "shards", size=10_000)
    sizes = [len(members.shard_of(str(file)).entries) for file in (tmp_path / "shards").glob("*.tar")]
    assert min(sizes) == 1 and sum(sizes) == 24


def test_shards_are_written_whole_or_not_at_all(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count = read_content, iter(range(100))

    def failing(path: Path) -> bytes:
        if next(count) == 10:
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr("finetune.data.shard_writer.read_content", failing)
    with pytest.raises(DataError, match="Input/output error"):
        written(few, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_hidden", [False, True])
def test_killed_while_shards_are_written_none_is_taken_for_a_whole_one(
    few: Path, tmp_path: Path, has_hidden: bool
) -> None:
    """At a file's first byte, half-way, and when the folder takes its place, also where that has a hidden file."""
    whole = sources.read(written(few, tmp_path / "whole"))
    sets = tmp_path / "sets"
    work = partial(written, few, sets / "shards")
    points = forked(partial(written, few, tmp_path / "again")).points
    last = len(points) + (len(list((tmp_path / "whole").iterdir())) if has_hidden else 0)
    for number in sorted({1, 2, len(points) // 2, len(points) - 1, last - 3, last - 1, last}):
        (sets / "shards").mkdir(parents=True)
        if has_hidden:
            (sets / "shards" / ".keep").touch()
        ended = forked(work, lambda at, _, stop=number: at == stop)
        if ended.signal:
            with suppress(DataError):  # no shards there
                there = sources.read(f"wds:{sets / 'shards' if has_hidden else sets}", needs_two_classes=False)
                assert len(there.samples) == 24 or "but missing" in next(iter(reasons(there).values())), number
            with suppress(ResourceError):  # is not empty
                work()
                assert sources.read(f"wds:{sets / 'shards'}").samples == whole.samples
        shutil.rmtree(sets)


def test_shards_that_were_not_copied_are_told_of(few: Path, tmp_path: Path) -> None:
    shards = written(few, tmp_path / "shards")
    lost = sorted((tmp_path / "shards").glob("*.tar"))[1]
    lost.unlink()
    assert reasons(sources.read(shards)) == {lost.name: "is named by _info.json, but missing"}
    assert reasons(sources.read(f"{shards}/all-*.tar")) == {}


def test_how_many_images_a_shard_lacks_is_said(few: Path, tmp_path: Path) -> None:
    shards = written(few, tmp_path / "shards", size=10**6)
    (shard,) = (tmp_path / "shards").glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:100_000])
    there = sources.read(shards)
    missing = 24 - len(there.samples) - (".jpg" in "".join(reasons(there)))
    assert re.search(
        rf"what comes before is read; {missing} of its 24 images are missing, according to _info",
        reasons(there)[shard.name],
    )
    shard.write_bytes(b"")
    with pytest.raises(DataError, match="empty file; 24 of its 24 images are missing"):
        sources.read(shards)


def test_a_folder_with_something_in_it_and_a_full_disk_are_refused(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="is not empty"):
        written(few, tmp_path)
    monkeypatch.setattr("finetune.data.shard_writer.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ResourceError, match=r"take [\d.]+ KiB, and 1\.0 KiB are free"):
        written(few, tmp_path / "shards")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("sets", ["classnames.txt", "_info.json"])
def test_numbers_of_classes_are_named_by_what_lies_beside(few: Path, tmp_path: Path, sets: str) -> None:
    foreign(few, tmp_path / "data-000.tar", {"cls": ["1", "0", "1"]})
    names = ["zebra", "ant"]
    (tmp_path / sets).write_text("\n".join(names) if sets.endswith("txt") else json.dumps({"classes": names}))
    manifest = sources.read(f"wds:{tmp_path}")
    assert [manifest.label(s.target) for s in manifest.samples] == ["ant", "zebra", "ant"]


def test_numbers_without_names_and_names_in_cls_are_classes(few: Path, tmp_path: Path) -> None:
    foreign(few, tmp_path / "a" / "0.tar", {"cls": ["10", "2"]})
    numbered = sources.read(f"wds:{tmp_path / 'a'}")
    assert numbered.classes == ("10", "2") and "are called by their numbers" in numbered.notes[0]
    foreign(few, tmp_path / "b" / "0.tar", {"cls": ["cat\n", "dog"]})
    assert sources.read(f"wds:{tmp_path / 'b'}").classes == ("cat", "dog")


def test_a_json_is_read_by_the_keys_that_the_recipe_names(few: Path, tmp_path: Path) -> None:
    about = [
        {"kind": word, "who": who, "part": part}
        for word, who, part in (("a", 1, "train"), ("b", 1, "val"), ("a", 2, "val"), ("b", 2, "train"))
    ]
    foreign(few, tmp_path / "0.tar", {"json": about})
    manifest = sources.read(f"wds:{tmp_path}", label_column="kind", group_by="who", split_column="part")
    assert [(manifest.label(s.target), s.split, s.group) for s in manifest.samples] == [
        ("a", "train", "1"), ("b", "val", "1"), ("a", "val", "2"), ("b", "train", "2"),
    ]  # fmt: skip


def test_splits_are_told_from_names_of_shards_folders_and_timms_info(few: Path, tmp_path: Path) -> None:
    for name in ("pets-train-0.tar", "pets-val-0.tar", "test/0.tar", "other.tar"):
        foreign(few, tmp_path / name, {"cls": ["a", "b"]})
    info = {
        "splits": {
            "validation": {"name": "validation", "num_samples": 2, "filenames": ["other.tar"], "shard_lengths": [2]}
        }
    }
    (tmp_path / "_info.json").write_text(json.dumps(info))
    splits = {s.file.partition(".tar")[0]: s.split for s in sources.read(f"wds:{tmp_path}").samples}
    assert splits == {"other": "val", "pets-train-0": "train", "pets-val-0": "val", "test/0": "test"}


def test_what_lies_beside_shards_and_cannot_be_read_is_an_error(few: Path, tmp_path: Path) -> None:
    foreign(few, tmp_path / "0.tar", {"cls": ["0", "1"]})
    (tmp_path / "classnames.txt").mkdir()
    with pytest.raises(DataError, match=r"classnames.txt: cannot be read"):
        sources.read(f"wds:{tmp_path}")
    (tmp_path / "_info.json").write_text("{")
    with pytest.raises(DataError, match=r"_info.json cannot be read"):
        sources.read(f"wds:{tmp_path}")


def test_patterns_name_shards_as_webdataset_has_them(few: Path, tmp_path: Path) -> None:
    for number in range(4):
        foreign(few, tmp_path / f"a-{number:03d}.tar", {"cls": ["a", "b"]})
    names = lambda path: [Path(shard).name for shard in named_shards(path)]  # noqa: E731
    assert names(f"wds:{tmp_path}/a-{{001..003}}.tar") == ["a-001.tar", "a-002.tar", "a-003.tar"]
    assert names(f"wds:{tmp_path}/a-00[!x]*.tar") == ["a-000.tar", "a-001.tar", "a-002.tar", "a-003.tar"]
    assert braces_expanded("{a,b}-{08..11}.tar")[:3] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [s.file for s in sources.read(f"wds:{tmp_path}/a-{{000,002}}.tar").samples][::2] == [
        "a-000.tar/set/0000.jpg", "a-002.tar/set/0000.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "root", "name"),
    [
        ("wds:/data/imgs", "/data/imgs", "imgs"),
        ("wds:/data/imgs/train-{00..10}.tar", "/data/imgs", "imgs"),
        ("wds:/data/*/train.tar", "/data", "data"),
        ("wds:/data/imgs/one.tar", "/data/imgs", "imgs"),
        ("wds:s3://bucket/imgs/", "s3://bucket/imgs", "imgs"),
        ("wds:s3:/bucket/imgs/*.tar", "s3://bucket/imgs", "imgs"),
    ],
)
def test_the_root_and_the_name_of_shards_are_their_folder(path: str, root: str, name: str) -> None:
    assert (root_of(path), data_name(path)) == (root, name)
    assert settled_path(settled_path(path)) == settled_path(path)


def test_what_is_wrong_with_a_shard_is_said_and_the_rest_is_read(few: Path, tmp_path: Path) -> None:
    good, other, third = images_of(few, 3)
    tarred(
        tmp_path / "a.tar",
        {"0.jpg": good, "0.cls": b"x", "1.cls": b"y", "2.jpg": other, "3.jpg": other, "3.json": b"{", "0.png": good,
         "4.jpg": third, "4.cls": b"y", "5.jpg": b"no image", "5.cls": b"y", "6.txt": b"a caption"},
    )  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        head = tarfile.TarInfo("4.jpg")
        tar.addfile(head, io.BytesIO(b""))
    tarred(tmp_path / "empty.tar", {})
    manifest = checks.scan(sources.read(f"wds:{tmp_path}"))
    assert [s.file for s in manifest.samples] == ["a.tar/0.jpg", "a.tar/4.jpg"]
    assert reasons(manifest) == {
        "a.tar/1": "has a .cls, and no image",
        "a.tar/2.jpg": "no class beside it: no .cls, and no label in a .json",
        "a.tar/3.jpg": "its .json is damaged",
        "a.tar/0.png": "has the key of 0.jpg, which counts",
        "a.tar/4.jpg": "is twice in its shard; the first counts",
        "a.tar/5.jpg": "no image in a format that can be read",
        "empty.tar": "holds no image",
    }
    assert any("1 .txt" in note for note in manifest.notes)


def test_the_number_of_no_class_is_a_problem(few: Path, tmp_path: Path) -> None:
    foreign(few, tmp_path / "a.tar", {"cls": ["0", "1", "7"]})
    (tmp_path / "classnames.txt").write_text("ant\nbee\n")
    assert reasons(sources.read(f"wds:{tmp_path}")) == {"a.tar/set/0002.jpg": "its class is 7, but only 2 are named"}


@pytest.mark.parametrize("cut", [-1, -512, 700, 0.5, 0.9])
def test_a_shard_that_breaks_off_says_so_and_gives_what_lies_before(few: Path, tmp_path: Path, cut: float) -> None:
    shards = written(few, tmp_path / "shards", size=10**6)
    (shard,) = (tmp_path / "shards").glob("*.tar")
    content = shard.read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % 512
    shard.write_bytes(
        content[: {-1: end, -512: end - 512}.get(int(cut), int(cut * len(content)) if cut < 1 else int(cut))]
    )
    try:
        manifest = sources.read(shards, needs_two_classes=False)
    except DataError as error:
        assert "is damaged" in error.message and cut == 700
        return
    (reason,) = [problem.reason for problem in manifest.problems if problem.file == shard.name]
    assert "what comes before is read" in reason
    assert len(manifest.samples) <= 24
    assert checks.scan(manifest, needs_all_classes=False).problems[-1].file != ""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.tar", b"\x1f\x8b not a tar", "compressed"), ("a.tar", b"rubbish" * 1000, "damaged")],
)
def test_what_is_no_tar_is_an_error_that_says_why(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        sources.read(f"wds:{tmp_path}")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("wds:nothing", "no shards there"),
        ("wds:nothing/*.tar", "no shards there"),
        ("wds:nothing/{0..2}.tar", "No such file"),
        ("hfds:mnist", "Hub"),
        ("wds:{0..9999999}.tar", "more than 1,000,000"),
    ],
)
def test_shards_that_are_not_there_are_one_clear_error(path: str, said: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said):
        sources.read(path)


def test_where_images_lie_is_looked_up_once_and_anew_when_the_shard_changes(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = foreign(few, tmp_path / "a.tar", {"cls": ["a", "b"]})
    looked: list[str] = []
    through = members._looked_through
    monkeypatch.setattr(members, "_looked_through", lambda *args: looked.append(args[0]) or through(*args))
    for _ in range(2):
        sources.read(f"wds:{tmp_path}")
        members._shards.clear()
        assert members.read_member(str(place), "set/0001.jpg") == images_of(few, 2)[1]
    assert len(looked) == 1
    swapped = dict(zip(["set/0001.jpg", "set/0000.jpg"], images_of(few, 2), strict=True))
    tarred(place, swapped)
    os.utime(place, ns=(1, 1))
    assert members.read_member(str(place), "set/0001.jpg") == images_of(few, 2)[0]
    assert len(looked) == 2
    with pytest.raises(FileNotFoundError):
        members.read_member(str(place), "set/0002.jpg")


def test_a_format_that_begins_to_be_read_is_found_in_shards_that_are_known(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tarred(tmp_path / "a.tar", {f"{n}.{kind}": images_of(few, 1)[0] for n, kind in enumerate(["jpg", "new"])})
    assert members.shard_of(str(place)).others == {"new": 1}
    monkeypatch.setattr(members, "EXTENSIONS", members.EXTENSIONS | {".new"})
    assert [entry.name for entry in members.shard_of(str(place)).entries] == ["0.jpg", "1.new"]


def test_a_damaged_index_is_made_again(few: Path, tmp_path: Path) -> None:
    place = foreign(few, tmp_path / "a.tar", {"cls": ["a", "b"]})
    members.shard_of(str(place))
    members._file(str(place)).write_bytes(b"PK\x03\x04 half")
    assert [entry.name for entry in members.shard_of(str(place)).entries] == ["set/0000.jpg", "set/0001.jpg"]


def test_an_order_of_shards_shows_each_image_once_and_moves_none_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.loaders.WINDOW", 50)
    samples = [Sample(f"{i // 100:02d}.tar/{i:04d}.jpg", Target(0)) for i in range(1000)]
    order = Order(1000, batch_size=10, seed=3, shards=shards_of(samples))
    orders = []
    for order.epoch in range(2):
        drawn = [key[2] for batch in order for key in batch]
        assert sorted(drawn) == list(range(1000))
        shards = [index // 100 for index in drawn]
        first_seen = list(dict.fromkeys(shards))
        lying = [100 * first_seen.index(index // 100) + index % 100 for index in drawn]
        assert np.abs(np.array(lying) - np.arange(1000)).max() <= 50
        assert lying != sorted(lying)
        orders.append(drawn)
    assert orders[0] != orders[1]
    assert shards_of([Sample("a/b.jpg", Target(0))]) is None


def test_shards_are_not_written_where_another_process_writes_them(few: Path, tmp_path: Path) -> None:
    with held(tmp_path / "shards"), pytest.raises(ResourceError, match="another process is writing"):
        written(few, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["shards", "ant/shards", "../imgs/shards", "runs/one"])
def test_what_is_written_does_not_lie_inside_of_the_data(
    image_folder, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgs = image_folder("imgs", per_class=1)
    with pytest.raises(RecipeError, match=r"is inside the data, .*imgs:"):
        written(imgs, imgs / out)
    with pytest.raises(RecipeError, match="is inside the data"):
        check_outside(imgs / out, f"wds:{imgs}")
    monkeypatch.setenv("HOME", str(imgs.parent))
    with pytest.raises(RecipeError, match="is inside the data"):
        check_outside(imgs / out, "~/imgs")
    (imgs / "labels.csv").touch()
    check_outside(imgs / out, str(imgs / "labels.csv"))
    check_outside(imgs.parent / "shards", str(imgs))


def test_a_folder_of_shards_that_is_named_as_one_of_images_is_told_of_wds(few: Path, tmp_path: Path) -> None:
    written(few, tmp_path / "shards")
    with pytest.raises(DataError, match=r"but [0-9]+ tar shards") as refused:
        sources.read(tmp_path / "shards")
    assert f"wds:{tmp_path / 'shards'}." in refused.value.hint
