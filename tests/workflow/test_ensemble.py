"""Several runs as one: measured as its members are, left as one proven ONNX file, refused where they do not fit."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import finetune
from finetune.checkpoint.saved import load_run
from finetune.errors import ExportError
from finetune.exports import onnx as onnx_export
from finetune.exports.ensemble import ensemble_network
from finetune.images.transforms import normalise
from finetune.prepare.inputs import Inputs
from finetune.prepare.passes import plain_batches
from tests.support import TINY, draw_numbers, draw_sets, unfinished_files

TEST = {"test": 0.25}


@pytest.fixture(scope="module")
def three(few: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs on the same split, of two networks."""
    place = tmp_path_factory.mktemp("three")
    more = {**TINY, **TEST, "strategy": "full", "epochs": 2}
    networks = ["lenet5", "lenet5", "resnet32"]
    return [
        finetune.run(few, out=place / f"{seed}", seed=seed, **{**more, "backbone": name}).folder
        for seed, name in enumerate(networks)
    ]


def logits(run: Path, split: str) -> torch.Tensor:
    saved = load_run(run, device="cpu")
    manifest = saved.manifest()
    inputs = Inputs(saved.recipe, manifest, saved.backbone, None, saved.compute)
    with torch.no_grad():
        return torch.cat([saved.backbone.model(images) for images, _ in
                          plain_batches(inputs, manifest.split(split)).epoch()])  # fmt: skip


def test_an_ensemble_is_measured_by_the_mean_of_the_probabilities(three: list[Path]) -> None:
    found = finetune.ensemble(three, device="cpu")
    assert found.folder is None
    for name in ("val", "test"):
        mean = torch.stack([logits(run, name).softmax(dim=1) for run in three]).mean(dim=0)
        manifest = load_run(three[0], device="cpu").manifest()
        right = [sample.target.index for sample in manifest.split(name)]  # type: ignore[union-attr]
        top1 = float(
            np.mean([guess == target for guess, target in zip(mean.argmax(dim=1).tolist(), right, strict=True)])
        )
        assert found.joined.metrics[name]["top1"].value == pytest.approx(top1)
    for member, run in zip(found.joined.members, three, strict=True):
        said = json.loads((run / "metrics.json").read_text())
        assert member.metrics["test"]["top1"].value == pytest.approx(said["test"]["top1"]["value"])
    own = {member.run: member.metrics["val"]["top1"].value for member in found.joined.members}
    assert own[found.joined.best] == max(own.values())
    gap = found.joined.metrics["test"]["top1"].value - next(
        member.metrics["test"]["top1"].value for member in found.joined.members if member.run == found.joined.best
    )
    assert found.joined.gains["test"].value == pytest.approx(gap)


def test_one_onnx_file_holds_all_members_and_predict_takes_it(three: list[Path], tmp_path: Path) -> None:
    found = finetune.ensemble(three, out=tmp_path / "e", device="cpu")
    assert found.proof is not None and found.proof["is_proven"] is True
    session = onnxruntime.InferenceSession(str(tmp_path / "e" / "exports" / "model.onnx"))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        rows = [load_run(run, device="cpu").backbone.model(images).softmax(dim=1) for run in three]
    mean = torch.stack(rows).mean(dim=0).numpy()
    powers = np.exp(session.run(None, {"images": images.numpy()})[0])
    assert np.allclose(powers / powers.sum(axis=1, keepdims=True), mean, atol=1e-5)
    rows_said = list(csv.DictReader((tmp_path / "e" / "predictions.csv").open()))
    root = load_run(three[0], device="cpu").manifest().root
    from finetune.workflow.predict import predict_with

    named = list(predict_with(tmp_path / "e", [str(Path(root, row["file"])) for row in rows_said]))
    assert [one.label for one in named] == [row["predicted"] for row in rows_said]
    loaded = finetune.load(tmp_path / "e").predict([Path(root, row["file"]) for row in rows_said])
    assert loaded.labels == [row["predicted"] for row in rows_said]
    assert [float(row["confidence"]) for row in rows_said] == pytest.approx(
        loaded.probabilities.max(axis=1).tolist(), abs=1e-4
    )
    assert {place.name for place in (tmp_path / "e" / "exports").iterdir()} == {
        "model.onnx", "proof.json", "labels.txt", "README.md", "predict.py", "Dockerfile"
    }  # fmt: skip
    measured = finetune.evaluate(tmp_path / "e")
    assert (measured.split, measured.num_images) == ("test", sum(row["split"] == "test" for row in rows_said))
    assert measured.metrics["top1"].value == found.joined.metrics["test"]["top1"].value
    (tmp_path / "e" / "exports" / "model.onnx").write_bytes(b"another")
    with pytest.raises(finetune.ExportError, match="not the file that was proven"):
        list(predict_with(tmp_path / "e", [str(Path(root, rows_said[0]["file"]))]))


def test_what_greedy_leaves_out_is_not_in_the_file(three: list[Path], tmp_path: Path) -> None:
    found = finetune.ensemble(three, greedy=True, once=True, out=tmp_path / "e", device="cpu")
    taken = [member for member in found.joined.members if member.count]
    assert all(member.count <= 1 for member in found.joined.members)
    own = max(member.metrics["val"]["top1"].value for member in found.joined.members)
    assert found.joined.metrics["val"]["top1"].value >= own
    size = (tmp_path / "e" / "exports" / "model.onnx").stat().st_size
    weights = sum((member.run / "model" / "model.safetensors").stat().st_size for member in taken)
    assert size < weights * 1.5 + 200_000
    facts = json.loads((tmp_path / "e" / "ensemble.json").read_text())
    assert [member["count"] for member in facts["members"]] == [member.count for member in found.joined.members]


def test_members_that_are_standardised_otherwise_are_so_inside_the_file(three: list[Path]) -> None:
    first, second = (load_run(run, device="cpu").backbone for run in three[:2])
    other = replace(second.preprocessing, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pair = [first, replace(second, preprocessing=other)]
    network = ensemble_network(pair, (1, 1), names=["a", "b"], task="regress", average="logits")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        own = [one.model(normalise(pixels, one.preprocessing)) for one in pair]
        assert torch.allclose(network(normalise(pixels, first.preprocessing)), sum(own) / 2, atol=1e-4)
    larger = replace(second, preprocessing=replace(other, image_size=(48, 48)))
    with pytest.raises(ExportError, match=r"a and b do not see the same pixels: image_size is \(32, 32\)"):
        ensemble_network([first, larger], (1, 1), names=["a", "b"], task="regress", average="logits")


def test_an_ensemble_whose_file_differs_leaves_nothing(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx_export.write_onnx

    def write_another(network: torch.nn.Module, *args: Any) -> Any:
        network.counts = (5, 1, 1)  # type: ignore[assignment]
        written = write(network, *args)
        network.counts = (1, 1, 1)  # type: ignore[assignment]
        return written

    monkeypatch.setattr(onnx_export, "write_onnx", write_another)
    with pytest.raises(finetune.ExportError, match="does not reproduce"):
        finetune.ensemble(three, out=tmp_path / "e", device="cpu")
    assert not (tmp_path / "e").exists() and unfinished_files(tmp_path) == []


@pytest.mark.parametrize(("draw", "column"), [(draw_sets, "label"), (draw_numbers, "length")])
def test_sets_of_classes_and_numbers_are_averaged_too(draw, column: str, tmp_path: Path) -> None:
    table = draw(tmp_path / "imgs")
    more = {**TINY, **TEST, "strategy": "full", "epochs": 2, "overrides": {"data.label_column": column}}
    runs = [finetune.run(table, out=tmp_path / f"{seed}", seed=seed, **more).folder for seed in (0, 1)]
    found = finetune.ensemble(runs, out=tmp_path / "e", device="cpu")
    assert found.proof is not None and found.proof["is_proven"]
    score = next(iter(found.joined.metrics["test"]))
    assert score in ("mAP", "r2")
    own = {member.run: member.metrics["test"][score].value for member in found.joined.members}
    gap = found.joined.metrics["test"][score].value - own[found.joined.best]
    assert found.joined.gains["test"].value == pytest.approx(gap, abs=1e-9)
    soup = finetune.soup([runs[0], _again(table, tmp_path, more)], device="cpu")
    assert set(soup.joined.metrics) == {"val", "test"}


def _again(table: Path, tmp_path: Path, more: dict[str, object]) -> Path:
    return finetune.run(table, out=tmp_path / "lower", seed=0, **{**more, "lr": 0.0005}).folder  # type: ignore[arg-type]


def test_runs_that_do_not_fit_are_refused_with_the_reason(
    three: list[Path], few: Path, drawn: Path, tmp_path: Path
) -> None:
    more = {**TINY, "strategy": "full", "epochs": 1}
    other_split = finetune.run(few, out=tmp_path / "split", **more, overrides={"split.seed": 3}, **TEST).folder
    with pytest.raises(finetune.CheckpointError, match="their val images are not the same") as refused:
        finetune.ensemble([three[0], other_split])
    assert "split.seed" in refused.value.hint
    table = draw_sets(tmp_path / "sets")
    sets = finetune.run(table, out=tmp_path / "of_sets", **more, **TEST).folder
    with pytest.raises(finetune.CheckpointError, match="one gives an image one class, the other any number of classes"):
        finetune.ensemble([three[0], sets])
    with pytest.raises(finetune.RecipeError, match="is named twice"):
        finetune.ensemble([three[0], three[0]])
    with pytest.raises(finetune.RecipeError, match="name two or more"):
        finetune.ensemble([three[0]])
    with pytest.raises(finetune.RecipeError, match="once has no meaning without greedy"):
        finetune.ensemble(three, once=True)
    with pytest.raises(finetune.RecipeError, match=r"average = 'logit' .* Did you mean 'logits'"):
        finetune.ensemble(three, average="logit")  # type: ignore[arg-type]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(finetune.ResourceError, match="is not empty"):
        finetune.ensemble(three, out=tmp_path / "taken")
    for together in (finetune.ensemble, finetune.soup):
        with pytest.raises(finetune.RecipeError, match="is inside the data"):
            together(three, out=few / "new")
    assert not (few / "new").exists()


def test_refitted_runs_have_no_val_to_choose_on(few: Path, tmp_path: Path) -> None:
    more = {**TINY, **TEST, "strategy": "full", "epochs": 1, "refit": True}
    runs = [finetune.run(few, out=tmp_path / f"{lr}", lr=lr, **more).folder for lr in (0.001, 0.002)]
    assert set(finetune.ensemble(runs, device="cpu").joined.metrics) == {"test"}
    for verb in (finetune.ensemble, finetune.soup):
        with pytest.raises(finetune.CheckpointError, match="these runs have no val images"):
            verb(runs, greedy=True, device="cpu")
