"""What was timed or counted on this machine, kept on disk, so that a choice based on it is made once.

    CACHE/timings.json      the numbers, by a hash of everything that they depend on

It may be lost at any time; then it is timed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from finetune.cache_dir import cache_folder
from finetune.errors import ResourceError
from finetune.whole import whole_file

MOST = 1000  # of what was timed last


def remembered(about: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Return the times of what is described, by name; None if it was not timed here."""
    times = _read().get(_key(about))
    return times if isinstance(times, dict) and all(_is_time(value) for value in times.values()) else None


def remember(about: Mapping[str, Any], times: Mapping[str, float | None]) -> None:
    """Keep the times of what is described, if the disk allows."""
    kept = _read()
    kept.pop(_key(about), None)
    kept[_key(about)] = dict(times)
    newest = dict(list(kept.items())[-MOST:])
    with suppress(ResourceError), whole_file(_file(), is_shared=True) as beside:
        beside.write_text(json.dumps(newest), encoding="utf-8")


def _is_time(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and value >= 0)


def _key(about: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=12).hexdigest()


def _file() -> Path:
    return cache_folder() / "timings.json"


def _read() -> dict[str, Any]:
    try:
        timings = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return timings if isinstance(timings, dict) else {}
