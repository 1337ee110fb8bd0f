"""report.html of several runs of one recipe, on folds or seeds: their joint result, and each one's own report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.report.page import render
from finetune.tasks import NUM_FIRST


def write_together(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page; `content` holds title, data, folder and what several.json says of the results and failures."""
    of_runs = (metrics for run in content["runs"].values() for metrics in run.values())
    names = list(dict.fromkeys(name for metrics in of_runs for name in metrics))
    together = {f"{name}, mean": values for name, values in content["mean"].items()}
    if content["out_of_fold"]:
        together["out of fold"] = content["out_of_fold"]
    if content["ensemble"]:
        together["test, all as one"] = content["ensemble"]
    render(path, "several.html.j2", {**content, "names": names, "together": together, "num_first": NUM_FIRST})
