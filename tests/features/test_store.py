"""Rows of the feature cache: what is packed comes back, and is found by the image it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.cache_entries import open_entry
from finetune.features import store
from finetune.features.store import Layout, RowsInMemory, RowsOnDisk

LAYOUT = Layout(((3, 2), (4,)), "float32")
DIGESTS = [f"{index:032x}" for index in range(5)]


def rows(count: int = 5, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return LAYOUT.pack([torch.randn(count, *shape, generator=generator) for shape in LAYOUT.shapes])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_packing_is_rounding_to_the_precision(precision: str) -> None:
    layout = Layout(((3, 2), (4,)), precision)
    tensors = [torch.randn(5, 3, 2), torch.randn(5, 4)]
    back = layout.unpack(layout.pack(tensors))
    kind = store.DTYPES[precision]
    assert all(torch.equal(a.to(kind).float(), b) for a, b in zip(tensors, back, strict=True))


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_rows_come_back_by_image_wherever_they_are_kept(tmp_path: Path, where: str) -> None:
    kept = RowsInMemory(LAYOUT) if where == "memory" else RowsOnDisk(open_entry(tmp_path, {}), LAYOUT)
    kept.add(DIGESTS[:2], rows()[:2])
    kept.add(DIGESTS[2:], rows()[2:])
    order = [3, 0, 4, 0]
    found = kept.mapped()[kept.places([DIGESTS[index] for index in order])]
    assert np.array_equal(found, rows()[order])
    assert DIGESTS[4] in kept
    assert "f" * 32 not in kept
