"""What a bug report needs: versions, devices, folders, and whether the model hub answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from finetune.backbone import automatic
from finetune.cache_dir import cache_folder
from finetune.environment import describe
from finetune.hub import hub_is_reachable


def doctor() -> dict[str, Any]:
    """Return what a bug report needs: versions, devices, folders, and whether the model hub answers."""
    return {
        **{key: value for key, value in describe().items() if key not in ("command", "commit")},
        "hub_is_reachable": hub_is_reachable(),
        "auto_backbone": automatic.chosen().name,
        "cache": str(cache_folder()),
        "hub_cache": str(Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()),
    }
