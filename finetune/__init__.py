"""Transfer learning on images that decides by measuring, and proves what it claims.

    import finetune

    result = finetune.run("imgs", strategy="head-only")
    finetune.load(result.folder).predict("new/")

Importing this costs nothing: torch is imported with the first call.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from finetune.errors import (
    BackboneError,
    CheckpointError,
    DataError,
    ExportError,
    FindingsError,
    FinetuneError,
    Interrupted,
    RecipeError,
    ResourceError,
    TrainingError,
)

if TYPE_CHECKING:
    from finetune.data.sample import write_sample
    from finetune.data.shard_writer import Shards
    from finetune.evaluation.named import LabelsPrediction, NumberPrediction, Predictions
    from finetune.exports.exporting import Export
    from finetune.prepare.candidates import Ranked
    from finetune.report.side_by_side import SideBySide
    from finetune.runs.single import RunResult
    from finetune.search.outcome import Tuned
    from finetune.settings import Recipe
    from finetune.types import Event
    from finetune.workflow.check import Check, check
    from finetune.workflow.compare import Comparison, compare, resume_comparison
    from finetune.workflow.compare_runs import compare_runs
    from finetune.workflow.doctor import doctor
    from finetune.workflow.ensemble import Ensemble, ensemble
    from finetune.workflow.evaluate import Evaluation, evaluate
    from finetune.workflow.export import export
    from finetune.workflow.find_lr import RateSearch, find_lr
    from finetune.workflow.plan import Plan, plan
    from finetune.workflow.predict import Classifier, Prediction, load
    from finetune.workflow.rank import rank
    from finetune.workflow.run import resume, run
    from finetune.workflow.several import Several, resume_several, run_several
    from finetune.workflow.shard import shard
    from finetune.workflow.soup import Soup, soup
    from finetune.workflow.tune import resume_tuning, tune

    __version__: str

__all__ = [
    "BackboneError",
    "Check",
    "CheckpointError",
    "Classifier",
    "Comparison",
    "DataError",
    "Ensemble",
    "Evaluation",
    "Event",
    "Export",
    "ExportError",
    "FindingsError",
    "FinetuneError",
    "Interrupted",
    "LabelsPrediction",
    "NumberPrediction",
    "Plan",
    "Prediction",
    "Predictions",
    "Ranked",
    "RateSearch",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "RunResult",
    "Several",
    "Shards",
    "SideBySide",
    "Soup",
    "TrainingError",
    "Tuned",
    "__version__",
    "check",
    "compare",
    "compare_runs",
    "doctor",
    "ensemble",
    "evaluate",
    "export",
    "find_lr",
    "load",
    "plan",
    "rank",
    "resume",
    "resume_comparison",
    "resume_several",
    "resume_tuning",
    "run",
    "run_several",
    "shard",
    "soup",
    "tune",
    "write_sample",
]

_LATER = {
    "Check": "finetune.workflow.check",
    "Classifier": "finetune.workflow.predict",
    "Comparison": "finetune.workflow.compare",
    "Ensemble": "finetune.workflow.ensemble",
    "Evaluation": "finetune.workflow.evaluate",
    "Event": "finetune.types",
    "Export": "finetune.exports.exporting",
    "LabelsPrediction": "finetune.evaluation.named",
    "NumberPrediction": "finetune.evaluation.named",
    "Plan": "finetune.workflow.plan",
    "Prediction": "finetune.workflow.predict",
    "Predictions": "finetune.evaluation.named",
    "Ranked": "finetune.prepare.candidates",
    "RateSearch": "finetune.workflow.find_lr",
    "Recipe": "finetune.settings",
    "RunResult": "finetune.runs.single",
    "Several": "finetune.workflow.several",
    "Shards": "finetune.data.shard_writer",
    "SideBySide": "finetune.report.side_by_side",
    "Soup": "finetune.workflow.soup",
    "Tuned": "finetune.search.outcome",
    "check": "finetune.workflow.check",
    "compare": "finetune.workflow.compare",
    "compare_runs": "finetune.workflow.compare_runs",
    "doctor": "finetune.workflow.doctor",
    "ensemble": "finetune.workflow.ensemble",
    "evaluate": "finetune.workflow.evaluate",
    "export": "finetune.workflow.export",
    "find_lr": "finetune.workflow.find_lr",
    "load": "finetune.workflow.predict",
    "plan": "finetune.workflow.plan",
    "rank": "finetune.workflow.rank",
    "resume": "finetune.workflow.run",
    "resume_comparison": "finetune.workflow.compare",
    "resume_several": "finetune.workflow.several",
    "resume_tuning": "finetune.workflow.tune",
    "run": "finetune.workflow.run",
    "run_several": "finetune.workflow.several",
    "shard": "finetune.workflow.shard",
    "soup": "finetune.workflow.soup",
    "tune": "finetune.workflow.tune",
    "write_sample": "finetune.data.sample",
}


def __getattr__(name: str) -> Any:
    if name != "__version__" and name not in _LATER:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    value = _version() if name == "__version__" else getattr(import_module(_LATER[name]), name)
    if _in_notebook() and name.islower() and name != "__version__":
        value = import_module("finetune.cli.notebook").drawing(value)
    globals()[name] = value
    return value


def _in_notebook() -> bool:
    """Return whether this may be a notebook, without reading anything for it."""
    return "ipykernel" in sys.modules and import_module("finetune.cli.notebook").in_notebook()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("finetune")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def __dir__() -> list[str]:
    return sorted(__all__)
