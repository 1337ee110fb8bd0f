"""The scan: what cannot be used is listed by name, nothing is opened twice, and no file is touched."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from finetune.cache_dir import cache_folder
from finetune.data import checks, scan_memory
from finetune.data.checks import Scan, scan_files
from finetune.data.clashes import conflicts
from finetune.errors import DataError
from finetune.images.decode import decode, read_rgb
from finetune.images.files import ALWAYS
from finetune.images.names import HAS_AVIF
from finetune.types import Event
from tests.corpus import encoded, noise
from tests.support import scanned, watch_reading

MakeImages = Callable[..., Path]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the scan opens, as it does."""
    return watch_reading(monkeypatch, checks)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def state_of(root: Path) -> dict[str, tuple[bytes, int, int]]:
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.stat()
        found[str(path)] = (path.read_bytes() if path.is_file() else b"", stat.st_mtime_ns, stat.st_mode)
    return found


def test_every_sample_gets_the_hash_of_its_bytes(image_folder: MakeImages) -> None:
    root = image_folder(per_class=4)
    (root / "ant/copy.jpg").write_bytes((root / "ant/ant-00.jpg").read_bytes())
    digests = {s.file: s.digest for s in scanned(root).samples}
    assert all(len(digest) == 32 for digest in digests.values())
    assert digests["ant/copy.jpg"] == digests["ant/ant-00.jpg"]
    assert len(set(digests.values())) == 8


def test_what_cannot_be_used_is_listed_by_name_with_the_reason_and_left_out(image_folder: MakeImages) -> None:
    root = image_folder()
    whole = (root / "ant/ant-00.jpg").read_bytes()
    bad = {"empty.jpg": b"", "text.jpg": b"hello", "cut.jpg": whole[:400], "cut2.jpg": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (root / "ant" / name).write_bytes(content)
    (root / "ant/gone.jpg").symlink_to("nowhere.jpg")
    (root / "ant/loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(root / "ant/pipe.jpg")
    manifest = scanned(root)
    reasons = {Path(problem.file).name: problem.reason for problem in manifest.problems}
    assert set(reasons) == {*bad, "gone.jpg", "loop.jpg", "pipe.jpg"}
    assert "empty" in reasons["empty.jpg"] and "no image" in reasons["text.jpg"]
    assert "damaged" in reasons["cut.jpg"] and "damaged" in reasons["cut2.jpg"]
    assert "not a regular file" in reasons["pipe.jpg"]
    assert len(manifest.samples) == 12


def test_problems_of_the_reading_are_kept(image_folder: MakeImages) -> None:
    root = image_folder(per_class=1)
    (root / "t.csv").write_text("image,label\nant/ant-00.jpg,a\nbee/bee-00.jpg,b\nmissing.jpg,a\n")
    assert [problem.file for problem in scanned(root / "t.csv").problems] == ["missing.jpg"]


def test_a_class_without_a_usable_image_is_an_error_that_names_it(image_folder: MakeImages) -> None:
    root = image_folder(per_class=2)
    for file in (root / "bee").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no usable image is left in 'bee'") as caught:
        scanned(root)
    assert "bee/bee-00.jpg" in caught.value.hint


def test_a_class_usable_only_outside_of_train_is_an_error(image_folder: MakeImages) -> None:
    root = image_folder("split/train", per_class=2)
    image_folder("split/val", per_class=2, seed=1)
    for file in (root / "bee").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="'bee'"):
        scanned(root.parent)


def test_no_usable_image_at_all_is_an_error_that_shows_one(image_folder: MakeImages) -> None:
    root = image_folder(per_class=1)
    for file in root.rglob("*.jpg"):
        file.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"none of the 2 images .* can be used.*ant/ant-00\.jpg: no image"):
        scanned(root)


def test_a_second_scan_opens_no_file_and_finds_the_same(image_folder: MakeImages, opened: list[Path]) -> None:
    root = image_folder()
    (root / "ant/bad.jpg").write_bytes(b"bad")
    first = scanned(root)
    assert len(opened) == 13
    opened.clear()
    assert scanned(root) == first
    assert opened == []


def test_a_changed_file_is_scanned_again(image_folder: MakeImages, opened: list[Path]) -> None:
    root = image_folder()
    first = scanned(root)
    changed, touched = root / "ant/ant-00.jpg", root / "bee/bee-01.png"
    changed.write_bytes((root / "bee/bee-00.jpg").read_bytes())
    os.utime(touched, ns=(1, 1))
    opened.clear()
    second = scanned(root)
    assert sorted(opened) == [changed, touched]
    differing = {a.file for a, b in zip(first.samples, second.samples, strict=True) if a.digest != b.digest}
    assert differing == {"ant/ant-00.jpg"}


def test_a_repaired_file_is_no_problem_any_more(image_folder: MakeImages) -> None:
    root = image_folder()
    content = (root / "ant/ant-00.jpg").read_bytes()
    (root / "ant/ant-00.jpg").write_bytes(content[:-200])
    assert [problem.file for problem in scanned(root).problems] == ["ant/ant-00.jpg"]
    (root / "ant/ant-00.jpg").write_bytes(content)
    assert scanned(root).problems == ()


def test_a_missing_file_is_not_remembered_as_missing(tmp_path: Path) -> None:
    file = tmp_path / "late.png"
    assert "No such file" in next(scan_files([file])).problem
    Image.new("RGB", (4, 4)).save(file)
    assert next(scan_files([file])).problem == ""


def test_why_a_file_cannot_be_looked_at_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    assert "No such file" in next(scan_files([file])).problem
    file.symlink_to("x.png")
    assert "symbolic links" in next(scan_files([file])).problem


@pytest.mark.parametrize(
    ("where", "error", "word"),
    [
        ("read_content", OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        ("read_content", OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        ("read_content", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("load", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("load", MemoryError(), "no memory"),
    ],
)
def test_what_the_machine_could_not_do_is_tried_again(
    image_folder: MakeImages, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, word: str
) -> None:
    root = image_folder()

    def failing(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checks if where == "read_content" else ImageFile.ImageFile, where, failing)
        assert all(word in scan.problem for scan in scan_files(sorted(root.rglob("*.*"))))
    assert scanned(root).problems == ()


def test_what_is_wrong_with_the_bytes_is_remembered(tmp_path: Path, opened: list[Path]) -> None:
    whole = encoded(noise(), "PNG")
    files = {"cut.png": whole[: len(whole) // 2], "text.png": b"text", "empty.png": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    first = list(scan_files([tmp_path / name for name in files]))
    assert all(scan.problem for scan in first)
    assert list(scan_files([tmp_path / name for name in files])) == first
    assert len(opened) == len(files)


def test_another_version_of_the_scan_opens_all_files_again(
    image_folder: MakeImages, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder()
    scanned(root)
    opened.clear()
    monkeypatch.setattr(scan_memory, "SCAN_VERSION", scan_memory.SCAN_VERSION + 1)
    scanned(root)
    assert len(opened) == 12


@pytest.mark.skipif(not HAS_AVIF, reason="Pillow was built without AVIF")
def test_a_format_that_begins_to_be_read_is_read_in_files_that_were_refused(
    image_folder: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder()
    Image.new("RGB", (9, 9)).save(root / "ant/avif.jpg", "AVIF")
    with monkeypatch.context() as without:
        without.setattr("finetune.data.scan_memory.HAS_AVIF", False)
        without.setattr("finetune.images.files.HAS_AVIF", False)
        without.setattr("finetune.images.decode.FORMATS", ALWAYS)
        (problem,) = scanned(root).problems
        assert problem.reason.startswith("an image in AVIF, which this installation of Pillow does not read")
    assert scanned(root).problems == ()


def test_files_of_the_user_are_never_touched(image_folder: MakeImages) -> None:
    root = image_folder()
    (root / "ant/bad.jpg").write_bytes(b"bad")
    before = state_of(root)
    scanned(root)
    scanned(root)
    assert state_of(root) == before


def test_a_read_only_data_folder_is_scanned(image_folder: MakeImages) -> None:
    root = image_folder()
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert len(scanned(root).samples) == 12
    assert cache_folder() not in root.parents and not list(root.rglob("*.sqlite"))


def _is_a_file(place: Path) -> Path:
    place.write_text("in the way")
    return place / "cache"


def _has_junk(place: Path) -> Path:
    place.mkdir()
    (place / "scans.sqlite").write_bytes(b"no database" * 500)
    return place


def _has_another_layout(place: Path) -> Path:
    place.mkdir()
    with sqlite3.connect(place / "scans.sqlite") as database:
        database.execute("create table scans (file text, verdict text)")
    database.close()
    return place


def _has_a_folder_in_the_way(place: Path) -> Path:
    (place / "scans.sqlite").mkdir(parents=True)
    return place


@pytest.mark.parametrize("spoil", [_is_a_file, _has_junk, _has_another_layout, _has_a_folder_in_the_way])
def test_a_cache_that_cannot_be_used_is_no_error(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], Path]
) -> None:
    root = image_folder()
    expected = scanned(root)
    monkeypatch.setenv("FINETUNE_CACHE", str(spoil(tmp_path / "place")))
    assert scanned(root) == scanned(root) == expected


def test_a_cache_damaged_in_its_middle_is_no_error(image_folder: MakeImages) -> None:
    root = image_folder(per_class=40, side=8)
    expected = scanned(root)
    place = cache_folder() / "scans.sqlite"
    content = place.read_bytes()
    assert len(content) > 8192
    place.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert scanned(root) == expected


def test_names_of_any_bytes_are_scanned_and_remembered(image_folder: MakeImages, opened: list[Path]) -> None:
    root = image_folder()
    content = (root / "ant/ant-00.jpg").read_bytes()
    names = ["a\nb.jpg", "🐜.jpg", "-rf.jpg", os.fsdecode(b"\xff.jpg"), "\\xff.jpg", "'; drop table scans; --.jpg"]
    for name in names:
        (root / "ant" / name).write_bytes(content)
    first = scanned(root)
    assert {f"ant/{name}" for name in names} <= {s.file for s in first.samples}
    opened.clear()
    assert scanned(root) == first
    assert opened == []


def test_names_that_look_alike_are_remembered_apart(tmp_path: Path) -> None:
    good, bad = tmp_path / os.fsdecode(b"\xff.png"), tmp_path / "\\xff.png"
    Image.new("RGB", (4, 4)).save(good)
    bad.write_bytes(b"x" * good.stat().st_size)
    for file in (good, bad):
        os.utime(file, ns=(1, 1))
    for _ in range(2):
        assert [found.problem != "" for found in scan_files([good, bad])] == [False, True]


def test_pictures_in_two_classes_and_copies_are_noted(image_folder: MakeImages) -> None:
    root = image_folder()
    (root / "bee/twin.jpg").write_bytes((root / "ant/ant-00.jpg").read_bytes())
    notes = list(conflicts(scanned(root)))
    assert "1 image is in two classes, e.g. ant/ant-00.jpg; `finetune check` lists all" in notes
    assert "1 image is an exact copy of others; copies stay in one split" in notes


def test_of_copies_in_two_splits_it_is_not_said_that_they_stay_in_one(image_folder: MakeImages) -> None:
    root = image_folder()
    manifest = scanned(root)
    twin = replace(manifest.samples[0], file="twin", split="val")
    divided = replace(manifest, samples=(replace(manifest.samples[0], split="train"), twin))
    assert list(conflicts(divided)) == ["1 image is an exact copy of others"]


def test_a_clean_folder_has_no_notes_and_no_problems(image_folder: MakeImages) -> None:
    manifest = scanned(image_folder())
    assert (manifest.notes, manifest.problems) == ((), ())


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_scans_come_in_the_order_of_the_files_with_any_number_of_workers(
    image_folder: MakeImages, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(checks, "CHUNK", 5)
    files = sorted(image_folder().rglob("*.*"))
    alone = [next(scan_files([file])) for file in files]
    monkeypatch.setattr(scan_memory, "cache_folder", lambda: Path("/dev/null/cache"))
    assert list(scan_files(files, workers=workers)) == alone
    assert all(isinstance(found, Scan) and found.digest for found in alone)


def test_progress_ends_at_the_number_of_files(image_folder: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHUNK", 5)
    events: list[Event] = []
    scanned(image_folder(), on_event=events.append)
    assert [event.facts["done"] for event in events] == [0, 5, 10, 12]
    assert {event.facts["total"] for event in events} == {12}


def test_remarks_of_the_decoder_are_not_shown(image_folder: MakeImages) -> None:
    root = image_folder(per_class=1)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1\1"
    Image.new("RGB", (8, 8)).save(root / "ant/odd.jpg", exif=exif)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        decode((root / "ant/odd.jpg").read_bytes())
        assert len(shown) == 1
        assert scanned(root).problems == ()
        read_rgb(root / "ant/odd.jpg")
    assert len(shown) == 1


def test_threads_leave_the_warning_filters_as_they_were(image_folder: MakeImages, quick_switches: None) -> None:
    root = image_folder(per_class=150, side=8)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        scanned(root, workers=8)
        assert list(warnings.filters) == before
