"""What earlier scans have found, by file: a small database in the cache folder."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from finetune.bands import Bands
from finetune.cache_dir import cache_folder
from finetune.images.levels import Span
from finetune.images.names import HAS_AVIF

SCAN_VERSION = 8  # goes up when `decode` begins to accept or refuse other files
RECALL = "select found from images where path=? and size=? and changed=? and version=?"

Stamp = tuple[str, int, int]  # path, size, a number that changes with the file


@dataclass(frozen=True, slots=True)
class Scan:
    """What one file is: the hash of its bytes, and why it cannot be used, if it cannot.

    `span` is what the numbers of an image deeper than 8 bits span, `remark` what of the file is not seen.
    """

    digest: str
    problem: str = ""
    is_passing: bool = False  # the problem is the machine's, and may be gone next time
    span: Span | None = None
    remark: str = ""


class ScanMemory:
    """Earlier scans in a small database in the cache folder; nothing is kept if that cannot be written."""

    def __init__(self, bands: Bands) -> None:
        """Open it for files that are decoded into these channels: with others, other files may be usable."""
        self.version = SCAN_VERSION + (0 if bands.are_colours else 100 * bands.count) + 10_000 * bands.is_full
        self.version += 100_000 * HAS_AVIF  # else what Pillow could not read stays refused when it can
        place = cache_folder() / "scans.sqlite"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(place, timeout=30)
            self._create()
        except (OSError, sqlite3.Error):
            self.database = sqlite3.connect(":memory:")
            self._create()

    def _create(self) -> None:
        self.database.execute(
            "create table if not exists images (path blob, size integer, changed integer,"
            " version integer, found text, primary key (path))"
        )

    def recall(self, stamps: Iterable[Stamp]) -> dict[Stamp, Scan]:
        scans = {}
        try:
            for stamp in stamps:
                row = self.database.execute(RECALL, (*_row(stamp), self.version)).fetchone()
                if row and stamp[1] >= 0:
                    digest, problem, span, remark = json.loads(row[0])
                    scans[stamp] = Scan(digest, problem, span=span and Span(*span), remark=remark)
        except (sqlite3.Error, ValueError, TypeError):
            pass  # a damaged or locked file costs what was remembered, not the run
        return scans

    def remember(self, scans: dict[Stamp, Scan]) -> None:
        rows = [(*_row(stamp), self.version, _text(scan)) for stamp, scan in scans.items()]
        try:
            with self.database:
                self.database.executemany("insert or replace into images values (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error:
            pass  # so does a full disk

    def close(self) -> None:
        self.database.close()


def _row(stamp: Stamp) -> tuple[bytes, int, int]:
    """Return a stamp as it is stored: the name as bytes, since not every name is UTF-8."""
    return (os.fsencode(stamp[0]), *stamp[1:])


def _text(scan: Scan) -> str:
    return json.dumps([scan.digest, scan.problem, scan.span, scan.remark])
