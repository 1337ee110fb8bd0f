"""The cache on disk: what is damaged, half-written or of another key is never used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from finetune import cache_entries
from finetune.cache_entries import RECORD, CacheEntry, open_entry
from finetune.errors import Interrupted, ResourceError
from finetune.types import Event, ignore

DIGESTS = [f"{index:032x}" for index in range(5)]
LENGTHS = [40, 7, 100, 1, 33]


def rows() -> list[np.ndarray]:
    return [np.full(length, length, dtype=np.uint8) for length in LENGTHS]


def filled(folder: Path) -> CacheEntry:
    entry = open_entry(folder, {"trunk": "a"})
    entry.add(DIGESTS[:3], rows()[:3], heights=[1, 2, 3])
    entry.add(DIGESTS[3:], rows()[3:], heights=[4, 5])
    return entry


def contents(entry: CacheEntry) -> dict[str, list[int]]:
    content, found = entry.mapped(), {}
    for digest in DIGESTS:
        record = entry.find(digest)
        if record is not None:
            found[digest] = content[int(record["offset"]) :][: int(record["length"])].tolist()
    return found


def test_rows_come_back_from_this_process_and_from_the_next(tmp_path: Path) -> None:
    expected = {digest: row.tolist() for digest, row in zip(DIGESTS, rows(), strict=True)}
    assert contents(filled(tmp_path)) == expected
    again = open_entry(tmp_path, {"trunk": "a"})
    assert contents(again) == expected
    assert [int(again.find(digest)["height"]) for digest in DIGESTS] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", [{"trunk": "b"}, {"trunk": "a", "view": 1}])
def test_another_key_is_another_entry(tmp_path: Path, change: dict[str, object]) -> None:
    filled(tmp_path)
    assert contents(open_entry(tmp_path, change)) == {}


@pytest.mark.parametrize("lost", [1, RECORD.itemsize - 1, RECORD.itemsize, 2 * RECORD.itemsize + 7])
def test_a_cut_index_loses_its_last_rows_only(tmp_path: Path, lost: int) -> None:
    index = filled(tmp_path).index_file
    index.write_bytes(index.read_bytes()[:-lost])
    kept = 5 - -(-lost // RECORD.itemsize)
    assert list(contents(open_entry(tmp_path, {"trunk": "a"}))) == DIGESTS[:kept]


def test_rows_without_records_are_overwritten(tmp_path: Path) -> None:
    before = contents(filled(tmp_path))
    entry = open_entry(tmp_path, {"trunk": "a"})
    with entry.rows_file.open("ab") as stream:
        stream.write(b"half a row")
    entry.add(["f" * 32], [np.arange(9, dtype=np.uint8)])
    again = open_entry(tmp_path, {"trunk": "a"})
    assert contents(again) == before
    assert again.mapped()[-9:].tolist() == list(range(9))


@pytest.mark.parametrize(("lost", "left"), [(3, 4), (34, 3), (35, 2), (180, 0)])
def test_a_cut_rows_file_loses_its_last_rows(tmp_path: Path, lost: int, left: int) -> None:
    entry = filled(tmp_path)
    entry.rows_file.write_bytes(entry.rows_file.read_bytes()[:-lost])
    assert len(contents(open_entry(tmp_path, {"trunk": "a"}))) == left


@pytest.mark.parametrize("place", [0, 39, 40, 46, 47, 146, 147, 148, 180])
def test_a_flipped_byte_is_found(tmp_path: Path, place: int) -> None:
    entry = filled(tmp_path)
    content = bytearray(entry.rows_file.read_bytes())
    content[place] ^= 1
    entry.rows_file.write_bytes(content)
    again = open_entry(tmp_path, {"trunk": "a"})
    whose = int(np.searchsorted(np.cumsum(LENGTHS), place, side="right"))
    assert again.drop_damaged(DIGESTS) == [DIGESTS[whose]]
    assert DIGESTS[whose] not in again


def test_a_row_added_again_after_damage_is_the_one_that_counts(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    entry.add(DIGESTS[1:2], [np.array([9, 9], dtype=np.uint8)])
    assert contents(entry)[DIGESTS[1]] == contents(open_entry(tmp_path, {"trunk": "a"}))[DIGESTS[1]] == [9, 9]


def test_a_full_disk_is_one_error_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = filled(tmp_path)
    before = contents(entry)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ResourceError, match="No space left"):
        entry.add(["e" * 32], [np.zeros(10, dtype=np.uint8)])
    assert contents(open_entry(tmp_path, {"trunk": "a"})) == before


def test_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    for age, name in ((300, "old"), (200, "mid"), (100, "new")):
        entry = open_entry(tmp_path, {"trunk": name})
        entry.add(DIGESTS, rows())
        os.utime(entry.folder / "about.json", (1e9 - age, 1e9 - age))
    size = cache_entries.list_entries(tmp_path)[0].num_bytes
    assert cache_entries.make_room(tmp_path, needed=size, limit=3 * size, keep=["none"])
    assert [entry.about["trunk"] for entry in cache_entries.list_entries(tmp_path)] == ["mid", "new"]


def test_what_never_fits_removes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    assert not cache_entries.make_room(tmp_path, needed=100, limit=99, keep=["none"])
    assert not cache_entries.make_room(tmp_path, needed=2**60, limit=2**61, keep=["none"])
    assert len(cache_entries.list_entries(tmp_path)) == 1


def test_clear_frees_what_ls_said(tmp_path: Path) -> None:
    filled(tmp_path)
    said = cache_entries.list_entries(tmp_path)[0]
    assert (said.num_rows, cache_entries.clear(tmp_path)) == (5, said.num_bytes)
    assert cache_entries.list_entries(tmp_path) == []


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        open_entry(tmp_path / "file" / "entries", {})


def test_another_process_that_fills_is_waited_for_and_told_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_entries, "SILENCE", 0.01)
    other, looks = filled(tmp_path), iter(range(5))
    said: list[Event] = []

    def look() -> None:
        if next(looks) == 4:
            other.lock.release()

    other.lock.acquire()
    with open_entry(tmp_path, {"trunk": "a"}).filling(
        "the cache", on_event=said.append, stop=SimpleNamespace(raise_if_asked=look)
    ):
        assert [event.facts["text"] for event in said] == [
            f"waiting for another process that fills the cache ({other.folder})"
        ]
    with other.filling("the cache", on_event=said.append):
        assert len(said) == 1


def test_who_waits_can_be_stopped_and_holds_nothing_then(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_entries, "SILENCE", 0.01)
    other, own = filled(tmp_path), open_entry(tmp_path, {"trunk": "a"})

    def stop() -> None:
        raise Interrupted("stopped")

    with other.filling("the cache", on_event=ignore):
        with (
            pytest.raises(Interrupted),
            own.filling("the cache", on_event=ignore, stop=SimpleNamespace(raise_if_asked=stop)),
        ):
            pass
        assert not own.lock.is_locked
    with own.filling("the cache", on_event=ignore):
        assert own.lock.is_locked


def test_the_wait_has_an_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_entries, "SILENCE", 0.01)
    monkeypatch.setattr(cache_entries, "LONGEST_WAIT", 0.05)
    other, own = filled(tmp_path), open_entry(tmp_path, {"trunk": "a"})
    with (
        other.filling("the cache", on_event=ignore),
        pytest.raises(ResourceError, match="for an hour"),
        own.filling("the cache", on_event=ignore),
    ):
        pass


def make_all_room(folder: Path) -> bool:
    return cache_entries.make_room(folder, needed=1, limit=1, missing=1)


@pytest.mark.parametrize("remove", [cache_entries.clear, make_all_room])
def test_an_entry_that_is_being_filled_is_not_removed(tmp_path: Path, remove) -> None:
    entry = filled(tmp_path)
    with open_entry(tmp_path, {"trunk": "a"}).filling("the cache", on_event=ignore):
        assert not remove(tmp_path)
        assert contents(open_entry(tmp_path, {"trunk": "a"})) == contents(entry)
    assert remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_entry_that_was_removed_before_it_is_filled_begins_anew(tmp_path: Path, is_gone: bool) -> None:
    entry = filled(tmp_path)
    cache_entries.clear(tmp_path)
    if not is_gone:
        entry.folder.mkdir()
    entry.touch()
    with entry.filling("the cache", on_event=ignore):
        assert DIGESTS[0] not in entry
        entry.add(DIGESTS[:1], rows()[:1], heights=[1])
    again = open_entry(tmp_path, {"trunk": "a"})
    assert contents(again) == {DIGESTS[0]: rows()[0].tolist()}
    assert cache_entries.list_entries(tmp_path)[0].about["trunk"] == "a"


def test_one_who_waits_for_an_entry_that_is_removed_meanwhile_fills_a_new_one(tmp_path: Path) -> None:
    entry, lock = filled(tmp_path), FileLock(tmp_path / cache_entries.entry_name({"trunk": "a"}) / cache_entries.LOCK)
    lock.acquire()

    def remove() -> None:
        shutil.rmtree(entry.folder)
        lock.release()

    with entry.filling("the cache", on_event=lambda _: remove()):
        entry.add(DIGESTS[:1], rows()[:1], heights=[1])
    assert list(contents(open_entry(tmp_path, {"trunk": "a"}))) == DIGESTS[:1]


def test_an_entry_is_used_as_long_as_it_is_filled(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    os.utime(entry.folder / cache_entries.ABOUT, (1, 1))
    entry.add(DIGESTS[:1], rows()[:1], heights=[1])
    assert cache_entries.list_entries(tmp_path)[0].used > 1
