"""Where the tool keeps what it may lose: the platform's cache folder, or FINETUNE_CACHE."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the tool's cache folder; it may not exist yet."""
    chosen = os.environ.get("FINETUNE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("finetune")
