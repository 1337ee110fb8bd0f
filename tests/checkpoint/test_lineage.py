"""The runs whose images a model has seen."""

from __future__ import annotations

import json
from pathlib import Path

from finetune import recipe as recipes
from finetune.checkpoint.lineage import contents_seen, run_of
from finetune.checkpoint.run_folder import RunFolder
from finetune.settings import Recipe


def run_folder(place: Path, digest: str, *, weights: Path | None = None, refit: bool = False) -> RunFolder:
    place.mkdir(parents=True)
    changes = {"train.refit": refit, "backbone.weights": "none" if weights is None else str(weights)}
    (place / "recipe.toml").write_text(recipes.dump(recipes.update(Recipe(), changes)))
    rows = [f"{split}.png,a,{split},,{digest}{split}" for split in ("train", "val")]
    (place / "split.csv").write_text("\n".join(["file,label,split,group,digest", *rows]) + "\n")
    return RunFolder(place)


def test_what_the_runs_before_have_seen_counts_and_a_refit_has_seen_val(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", "a", refit=True)
    run_folder(tmp_path / "b", "b", weights=tmp_path / "a" / "exports" / "timm" / "model.safetensors")
    last = run_folder(tmp_path / "c", "c", weights=tmp_path / "b" / "model")
    assert contents_seen(last) == {"ctrain", "btrain", "atrain", "aval"}


def test_an_ensemble_has_seen_what_its_members_have(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_folder(tmp_path / "set" / "runs" / name, name)
    content = {"members": [{"run": "runs/a"}, {"run": "runs/b"}, {"run": "runs/gone"}]}
    (tmp_path / "set" / "ensemble.json").write_text(json.dumps(content))
    of = run_of(tmp_path / "set" / "exports" / "model.onnx")
    assert of is not None and contents_seen(of) == {"atrain", "btrain"}


def test_runs_that_name_each_other_or_nothing_that_is_there_end(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", "a", weights=tmp_path / "b" / "model")
    last = run_folder(tmp_path / "b", "b", weights=tmp_path / "a" / "model")
    alone = run_folder(tmp_path / "d", "d", weights=tmp_path / "gone" / "model")
    assert contents_seen(last) == {"atrain", "btrain"} and contents_seen(alone) == {"dtrain"}


def test_a_model_that_merely_lies_in_a_run_folder_is_not_its(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "a", "a")
    assert run_of(run.path / "elsewhere" / "model.onnx") is None
    assert run_of(run.path / "model") == run == run_of(run.path)
