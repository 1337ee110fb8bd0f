"""The cache on disk: what is damaged, half-written or of another key is never used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.errors import ResourceError
from finetune.features import store
from finetune.features.store import RECORD, Entry, Layout, open_entry

LAYOUT = Layout(((3, 2), (4,)), "float32")
DIGESTS = [f"{index:032x}" for index in range(5)]


def rows(count: int = 5, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return LAYOUT.pack([torch.randn(count, *shape, generator=generator) for shape in LAYOUT.shapes])


def filled(folder: Path) -> Entry:
    entry = open_entry(folder, {"trunk": "a"}, LAYOUT)
    entry.add(DIGESTS, rows())
    return entry


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    filled(tmp_path)
    again = open_entry(tmp_path, {"trunk": "a"}, LAYOUT)
    assert np.array_equal(again.mapped(), rows())
    assert again.places == {digest: place for place, digest in enumerate(DIGESTS)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_packing_is_rounding_to_the_precision(precision: str) -> None:
    layout = Layout(((3, 2), (4,)), precision)
    tensors = [torch.randn(5, 3, 2), torch.randn(5, 4)]
    back = layout.unpack(layout.pack(tensors))
    kind = store.DTYPES[precision]
    assert all(torch.equal(a.to(kind).float(), b) for a, b in zip(tensors, back, strict=True))


@pytest.mark.parametrize("change", [{"trunk": "b"}, {"trunk": "a", "view": 1}])
def test_another_key_is_another_entry(tmp_path: Path, change: dict[str, object]) -> None:
    filled(tmp_path)
    assert open_entry(tmp_path, change, LAYOUT).places == {}


def test_another_precision_is_another_entry(tmp_path: Path) -> None:
    filled(tmp_path)
    assert open_entry(tmp_path, {"trunk": "a"}, Layout(LAYOUT.shapes, "bfloat16")).places == {}


@pytest.mark.parametrize("lost", [1, RECORD - 1, RECORD, 2 * RECORD + 7])
def test_a_cut_index_loses_its_last_rows_only(tmp_path: Path, lost: int) -> None:
    index = filled(tmp_path).index_file
    index.write_bytes(index.read_bytes()[:-lost])
    again = open_entry(tmp_path, {"trunk": "a"}, LAYOUT)
    kept = 5 - -(-lost // RECORD)
    assert list(again.places) == DIGESTS[:kept]


def test_rows_without_records_are_overwritten(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    with entry.rows_file.open("ab") as stream:
        stream.write(b"half a row")
    again = open_entry(tmp_path, {"trunk": "a"}, LAYOUT)
    again.add(["f" * 32], rows(1, seed=1))
    assert np.array_equal(again.mapped()[5:], rows(1, seed=1))
    assert np.array_equal(again.mapped()[:5], rows())


def test_a_cut_rows_file_loses_its_last_rows(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    entry.rows_file.write_bytes(entry.rows_file.read_bytes()[:-3])
    assert len(open_entry(tmp_path, {"trunk": "a"}, LAYOUT).places) == 4


@pytest.mark.parametrize("place", range(0, 5 * LAYOUT.row_bytes, 37))
def test_a_flipped_byte_is_found(tmp_path: Path, place: int) -> None:
    entry = filled(tmp_path)
    content = bytearray(entry.rows_file.read_bytes())
    content[place] ^= 1
    entry.rows_file.write_bytes(content)
    again = open_entry(tmp_path, {"trunk": "a"}, LAYOUT)
    assert again.drop_damaged(DIGESTS) == [DIGESTS[place // LAYOUT.row_bytes]]
    assert len(again.places) == 4


def test_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    import os

    for age, name in ((300, "old"), (200, "mid"), (100, "new")):
        entry = open_entry(tmp_path, {"trunk": name}, LAYOUT)
        entry.add(DIGESTS, rows())
        os.utime(entry.folder / "about.json", (1e9 - age, 1e9 - age))
    size = store.list_entries(tmp_path)[0].num_bytes
    assert store.make_room(tmp_path, needed=size, limit=3 * size, keep="none")
    assert [entry.about["trunk"] for entry in store.list_entries(tmp_path)] == ["mid", "new"]


def test_what_never_fits_removes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    assert not store.make_room(tmp_path, needed=100, limit=99, keep="none")
    assert not store.make_room(tmp_path, needed=2**60, limit=2**61, keep="none")
    assert len(store.list_entries(tmp_path)) == 1


def test_clear_frees_what_ls_said(tmp_path: Path) -> None:
    filled(tmp_path)
    said = store.list_entries(tmp_path)[0]
    assert (said.num_rows, store.clear(tmp_path)) == (5, said.num_bytes)
    assert store.list_entries(tmp_path) == []


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        open_entry(tmp_path / "file" / "features", {}, LAYOUT)
