"""Copies of one image as groups, and the table that tells `run` to keep them in one split."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.csv_cells import MARK, guarded_cell
from finetune.data.near_duplicates import Copies
from finetune.data.ties import Ties
from finetune.errors import DataError
from finetune.types import Manifest, Sample

COLUMNS = ("image", "label", "split", "group")


def with_groups(manifest: Manifest, copies: Sequence[Copies]) -> Manifest:
    """Return a manifest in which copies of one image are one group, together with the groups it has.

    A group goes by the name of its first image.
    """
    ties = Ties(len(manifest.samples))
    ties.join_alike([sample.file for sample in manifest.samples])
    ties.join_alike([sample.group for sample in manifest.samples])
    for cluster in copies:
        members = np.array(cluster.members)
        ties.join(members, np.full_like(members, members[0]))
    roots = ties.roots(np.arange(len(manifest.samples))).tolist()
    named = zip(manifest.samples, roots, strict=True)
    samples = tuple(replace(sample, group=manifest.samples[root].file) for sample, root in named)
    return replace(manifest, samples=samples)


def table_of(manifest: Manifest, folder: Path) -> str:
    """Return the CSV of a manifest (image, label, split, group), its paths as seen from a folder.

    If a name would be a formula, the cells of its row are guarded, and a column tells readers so.

    Raises:
        DataError: a name that a table cannot hold, because it would not be read back as it was written.
    """
    column, mark = MARK
    rows = [_cells(manifest, sample, folder) for sample in manifest.samples]
    marks = [mark if row != list(map(guarded_cell, row)) else "" for row in rows]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow([*COLUMNS, column] if any(marks) else COLUMNS)
    for row, own in zip(rows, marks, strict=True):
        writer.writerow([*map(guarded_cell, row), own] if any(marks) else row)
    return stream.getvalue()


def _cells(manifest: Manifest, sample: Sample, folder: Path) -> list[str]:
    path = os.path.relpath(Path(manifest.root, sample.file), folder.absolute())
    row = [path, manifest.label(sample.target), sample.split or "", sample.group or ""]
    for cell in row:
        _check_cell(cell)
    return row


def _check_cell(cell: str) -> None:
    try:
        is_kept = cell.encode().decode().strip() == cell
    except UnicodeEncodeError:
        is_kept = False
    if not is_kept:
        hint = "Rename it: no spaces at its ends, and only valid UTF-8."
        raise DataError(f"{cell!r} cannot be written into a table", hint=hint)
