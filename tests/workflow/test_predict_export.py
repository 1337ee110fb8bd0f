"""`finetune predict` by a run's proven ONNX export: the model's answers, and no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import ExportError
from finetune.exports.client import proven_export
from finetune.runs import answering, export_at_end
from finetune.types import Event, ignore
from finetune.workflow import predict
from finetune.workflow.predict import Wanted, predict_with
from tests.support import TINY


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "own"))


def test_answers_and_warnings_are_those_of_the_model(exported: Path, drawn: Path, tmp_path: Path) -> None:
    bad, deep = tmp_path / "bad.jpg", tmp_path / "deep.png"
    bad.write_text("no image")
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(deep)
    paths, said = [drawn, bad, deep, tmp_path / "bad.jpg"], ([], [])
    ours = finetune.load(exported).predict(paths, top=2, on_event=said[0].append)
    theirs = list(predict_with(exported, paths, wanted=Wanted(top=2), batch_size=7, on_event=said[1].append))
    assert [(p.file, p.classes, p.problem) for p in ours] == [(p.file, p.classes, p.problem) for p in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    warnings = [[event.facts["text"] for event in events if event.kind == "warning"] for events in said]
    assert warnings[0] == warnings[1] and "more than 8 bits" in str(warnings[0])
    assert said[1][-2].facts == {"task": "predict", "done": 63, "total": 63}


def test_an_export_is_loaded_and_answers_like_its_run(exported: Path, drawn: Path) -> None:
    image = Image.open(next(drawn.rglob("*.jpg")))
    expected = finetune.load(exported).predict([image]).probabilities
    for place in (exported / "exports" / "model.onnx", exported / "exports"):
        classifier = finetune.load(place)
        assert classifier.classes == finetune.load(exported).classes and "onnxruntime" in repr(classifier)
        assert classifier.predict([image, np.asarray(image)]).probabilities[0] == pytest.approx(expected[0], abs=1e-4)
        assert next(classifier.predict(one for one in [image])).label
        with pytest.raises(finetune.RecipeError, match="--features asks for features, which an export does not give"):
            classifier.predict(image, features=True)
        with pytest.raises(finetune.RecipeError, match="is an ONNX file, which runs on a CPU"):
            finetune.load(place, device="cuda")


def test_no_torch_is_imported(exported: Path, drawn: Path) -> None:
    image = next(drawn.rglob("*.jpg"))
    code = (
        "import sys; from finetune.cli.app import app\n"
        f"try: app(['predict', {str(exported)!r}, {str(image)!r}, '--csv'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(image) in done.stdout and done.stdout.splitlines()[-1] == "[]"


def changed(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "exports/proof.json").unlink(),
        lambda run: (run / "exports/proof.json").write_text("[]"),
        lambda run: (run / "exports/model.onnx").write_bytes(b"other"),
        lambda run: (run / "exports/model.onnx").unlink(),
        lambda run: (run / "model/model.safetensors").write_bytes(b"other"),
        lambda run: changed(run / "exports/proof.json", is_proven=False),
        lambda run: changed(run / "model/config.json", num_classes=7),
    ],
)
def test_what_is_not_proven_of_this_model_is_not_used(own: Path, spoil: Any) -> None:
    assert proven_export(RunFolder(own)) == own / "exports/model.onnx"
    spoil(own)
    assert proven_export(RunFolder(own)) is None


def test_the_model_itself_answers_without_an_export_or_on_another_device(
    exported: Path, finished: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    load = predict.load
    monkeypatch.setattr(predict, "load", lambda run, **more: asked.append(more["device"]) or load(run, **more))
    image = next(drawn.rglob("*.jpg"))
    assert len(list(predict_with(finished, image))) == 1
    assert asked == ["auto"]
    list(predict_with(exported, image, device="cpu"))
    assert asked == ["auto"]
    with pytest.raises(finetune.ResourceError, match="none that torch can use"):
        list(predict_with(exported, image, device="cuda"))


def test_an_export_that_is_not_used_is_named(own: Path, drawn: Path) -> None:
    image, said = next(drawn.rglob("*.jpg")), []
    list(predict_with(own, image, on_event=said.append))
    (own / "exports/proof.json").unlink()
    assert not [event for event in said if event.kind == "warning"]
    list(predict_with(own, image, on_event=said.append))
    (warning,) = [event.facts["text"] for event in said if event.kind == "warning"]
    assert "model.onnx is not proven equal to the model" in warning and f"finetune export {own}" in warning
    with pytest.raises(ExportError, match="has no ONNX export that is proven equal") as refused:
        list(predict_with(own, image, engine="onnxruntime"))
    assert f"finetune export {own}" in refused.value.hint
    said.clear()
    list(predict_with(own, image, engine="torch", on_event=said.append))
    assert not [event for event in said if event.kind == "warning"]


def test_the_engine_that_is_named_answers(exported: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by: list[str] = []
    load, client = predict.load, answering.Client
    monkeypatch.setattr(predict, "load", lambda *args, **more: by.append("torch") or load(*args, **more))
    monkeypatch.setattr(answering, "Client", lambda file: by.append("onnxruntime") or client(file))
    image = next(drawn.rglob("*.jpg"))
    for engine in ("torch", "onnxruntime", "auto"):
        list(predict_with(exported, image, engine=engine))
    assert by == ["torch", "onnxruntime", "onnxruntime"]
    with pytest.raises(finetune.RecipeError, match=r"'onnx' is not one of auto, torch, onnxruntime\."):
        list(predict_with(exported, image, engine="onnx"))
    with pytest.raises(finetune.RecipeError, match="runs on a CPU"):
        list(predict_with(exported, image, engine="onnxruntime", device="cuda"))


def test_an_interrupted_run_and_a_missing_image_are_named_without_torch(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(finetune.CheckpointError, match="no run folder"):
        list(predict_with(tmp_path / "nowhere", "x.jpg"))
    with pytest.raises(finetune.DataError, match=r"nowhere\.jpg"):
        list(predict_with(exported, "nowhere.jpg"))
    with pytest.raises(finetune.RecipeError, match="top = 0"):
        list(predict_with(exported, "nowhere.jpg", wanted=Wanted(top=0)))


@pytest.mark.parametrize(
    ("wanted", "seconds", "is_there"), [("auto", 0.0, True), ("auto", 1e9, False), (True, 1e9, True)]
)
def test_a_run_leaves_an_export_where_it_is_wanted(
    tiny_run, monkeypatch: pytest.MonkeyPatch, wanted: Any, seconds: float, is_there: bool
) -> None:
    monkeypatch.setattr(export_at_end, "WORTH", seconds)
    folder = tiny_run("head-only", overrides={"export.onnx_at_end": wanted}).folder
    assert (proven_export(RunFolder(folder)) is not None) == is_there == (folder / "exports").exists()


@pytest.mark.parametrize("error", [ExportError("no such operator"), KeyboardInterrupt()])
def test_an_export_that_fails_or_is_stopped_leaves_a_finished_run(
    tiny_run, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("finetune.exports.formats.write_in_form", write)
    said: list[Event] = []
    result = tiny_run("head-only", overrides={"export.onnx_at_end": True}, on_event=said.append)
    assert result.metrics and (result.folder / "metrics.json").is_file()
    assert [event.kind for event in said if "ONNX export" in str(event.facts.get("text"))] == ["warning"]


def test_a_comparison_exports_nothing_by_itself(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_at_end, "WORTH", 0.0)
    finetune.compare(
        few, strategies=["head-only", "linear-probe"], epochs=1, out=tmp_path / "cmp", on_event=ignore, **TINY
    )
    assert not list((tmp_path / "cmp").rglob("*.onnx"))
