"""What plan.json and evidence.json of a run folder hold."""

from __future__ import annotations

from typing import Any

from finetune.prepare.inputs import describe_data
from finetune.prepare.prepared import Prepared
from finetune.settings import Recipe
from finetune.types import Evidence, Verdict, to_json


def plan_content(prepared: Prepared) -> dict[str, Any]:
    """Return plan.json: classes, layer groups, every phase with its freeze plan, and notes."""
    manifest = prepared.manifest
    return {
        "classes": list(manifest.classes),
        "data": describe_data(manifest),
        "groups": [{"name": g.name, "num_parameters": g.num_parameters} for g in prepared.backbone.groups],
        "phases": [to_json(phase) for phase in prepared.phases],
        "notes": list(prepared.notes),
        **({"scale": to_json(prepared.scale)} if prepared.scale else {}),
    }


def evidence_content(recipe: Recipe, evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """Return evidence.json: what was measured, the verdict, and the numbers it is carried out with."""
    numbers = {
        "top_k": recipe.strategy.top_k,
        "probe_at": recipe.strategy.probe_at,
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "lr": recipe.optim.lr,
        "layer_decay": recipe.optim.layer_decay,
        "weight_decay": recipe.optim.weight_decay,
    }
    return {"evidence": to_json(evidence), "verdict": {**to_json(verdict), "numbers": numbers}}
