"""Every format is used as its readers use it, gives the run's answers, and says on its page what it is."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

import finetune
from finetune.errors import CheckpointError, ExportError, ResourceError
from finetune.exports import formats
from finetune.exports.card_facts import in_markdown
from finetune.exports.coreml import convert
from finetune.exports.described import Described
from finetune.exports.formats import NEEDS
from finetune.types import Preprocessing

FORMATS = ["timm", "torch", "safetensors", "openvino", "litert"]
ALONE = "import runpy, sys; sys.modules.update(finetune=None); sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"  # noqa: E501


def is_missing(format: str) -> bool:
    return format in NEEDS and importlib.util.find_spec(NEEDS[format][0]) is None


@pytest.mark.parametrize("format", FORMATS)
def test_the_program_in_a_folder_says_what_predict_says(
    finished: Path, drawn: Path, tmp_path: Path, format: Any
) -> None:
    if is_missing(format):
        pytest.skip(f"{NEEDS[format][1]} is not installed")
    done = finetune.export(finished, format=format, out=tmp_path / "own")
    files = [str(file) for file in sorted(drawn.rglob("*.jpg"))[:6]]
    command = [sys.executable, "-I", "-c", ALONE, str(done.path / "predict.py"), *files]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    rows = list(csv.reader(said.stdout.splitlines(), delimiter="\t"))
    assert [row[1] for row in rows] == finetune.load(finished, device="cpu").predict(files).labels
    assert done.proof["is_proven"] and done.proof["whole"]["num_same"] == done.proof["whole"]["num_images"]
    assert done.proof["format"] == format and done.proof["bytes"] > 1000 and done.proof["milliseconds"]["export"] > 0
    if format == "safetensors":
        with safe_open(done.path / "model.safetensors", "pt") as opened:
            assert json.loads(opened.metadata()["classes"]) == list(finetune.load(finished).classes)
    if format == "timm":
        assert done.proof["largest_difference"] == 0


@pytest.mark.parametrize("format", NEEDS)
def test_a_library_that_is_missing_is_named_before_anything_is_computed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    monkeypatch.setattr("finetune.workflow.export.load_run", None)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=f"{NEEDS[format][1]} is not installed") as caught:
        finetune.export(finished, format=format, out=tmp_path / "own")
    assert f"pip install {NEEDS[format][1]}" in caught.value.hint and list(tmp_path.iterdir()) == []


def test_core_ml_is_refused_where_nothing_can_prove_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(formats.sys, "platform", "linux")
    with pytest.raises(ExportError, match="runs only on macOS"):
        finetune.export(finished, format="coreml")


class FakeCoreMl:
    """What of coremltools an export calls, by torch: its own library computes on macOS alone."""

    precision = SimpleNamespace(FLOAT16="half", FLOAT32="float")
    target = SimpleNamespace(iOS16="iOS16")
    ComputeUnit = SimpleNamespace(CPU_ONLY="cpu")
    offset = 0.0

    @staticmethod
    def TensorType(name: str, shape: Any = None) -> tuple[str, Any]:  # noqa: N802
        return name, shape

    def convert(self, traced: Any, *, inputs: Any, outputs: Any, compute_precision: str, **_: Any) -> Any:
        assert inputs == [("images", (1, 3, 64, 64))] and outputs == [("logits", None)]
        assert compute_precision == "float"
        return SimpleNamespace(save=lambda path: traced.save(path))

    @property
    def models(self) -> Any:
        def loaded(path: str, *, compute_units: str) -> Any:
            network = torch.jit.load(path)

            def predict(given: Any) -> Any:
                with torch.no_grad():
                    return {"logits": network(torch.from_numpy(given["images"])).numpy() + self.offset}

            return SimpleNamespace(predict=predict)

        return SimpleNamespace(MLModel=loaded)


def test_core_ml_is_proven_by_what_its_library_answers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeCoreMl()
    monkeypatch.setitem(sys.modules, "coremltools", library)
    monkeypatch.setattr("finetune.workflow.export.check_library", lambda format: None)
    done = finetune.export(finished, format="coreml", out=tmp_path / "own")
    assert done.proof["whole"]["num_same"] == done.proof["whole"]["num_images"]
    page = (done.path / "README.md").read_text()
    assert "(1, 3, 64, 64)" in page and "one image at a time" in page and "coremltools" in page
    assert {file.name for file in done.path.iterdir()} >= {"model.mlpackage", "facts.json", "labels.txt", "predict.py"}
    library.offset = 0.5
    with pytest.raises(ExportError, match="does not reproduce the model"):
        finetune.export(finished, format="coreml", out=tmp_path / "other")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="coremltools is not installed")
@pytest.mark.parametrize("network", ["test_resnet", "test_convnext"])
def test_core_ml_takes_a_network(tmp_path: Path, network: str) -> None:
    import coremltools

    model = timm.create_model(network, num_classes=3).eval().requires_grad_(False)
    own = Described(("a", "b", "c"), Preprocessing((64, 64), (0.5,) * 3, (0.2,) * 3))
    convert(model, own, tmp_path / "model.mlpackage")
    said = coremltools.utils.load_spec(str(tmp_path / "model.mlpackage")).description
    assert [part.name for part in (*said.input, *said.output)] == ["images", "logits"]
    assert list(said.input[0].type.multiArrayType.shape) == [1, 3, 64, 64]


def test_a_folder_in_exports_is_replaced_and_elsewhere_nothing_is(exported: Path, tmp_path: Path) -> None:
    for _ in range(2):
        finetune.export(exported, format="torch")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ResourceError, match="already exists"):
        finetune.export(exported, format="torch", out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_inner_probe_is_a_program_of_torch_but_no_network_of_timm(tiny_run, tmp_path: Path) -> None:
    folder = tiny_run("linear-probe", probe_at="conv2").folder
    for format in ("safetensors", "timm"):
        with pytest.raises(ExportError, match="inner layer group"):
            finetune.export(folder, format=format, out=tmp_path / format)
    done = finetune.export(folder, format="torch", out=tmp_path / "torch")
    images = torch.rand(5, 3, *finetune.load(folder).preprocessing.image_size)
    with torch.no_grad():
        ours = finetune.load(folder, device="cpu").model(images)
        theirs = torch.export.load(done.path / "model.pt2").module()(images)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_repository_for_triton(finished: Path, tmp_path: Path) -> None:
    done = finetune.export(finished, layout="triton", preprocessing="full", softmax=True, out=tmp_path / "models")
    (model,) = done.path.iterdir()
    assert {place.relative_to(model).as_posix() for place in model.rglob("*") if place.is_file()} == {
        "config.pbtxt", "labels.txt", "README.md", "proof.json", "1/model.onnx"
    }  # fmt: skip
    config = (model / "config.pbtxt").read_text()
    assert f'name: "{model.name}"' in config and "data_type: TYPE_UINT8\n    dims: [ -1, -1, 3 ]" in config
    assert config.count('label_filename: "labels.txt"') == 2 and "dims: [ 6 ]" in config
    assert "tritonserver" in (model / "README.md").read_text()


def test_the_page_is_a_model_card(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = finetune.export(finished, format="timm", out=tmp_path / "own", data_licence="CC0-1.0")
    card = ModelCard.load(done.path / "README.md")
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}
    exec(code[1], said)  # as a reader runs it beside the folder
    assert said["model"].num_classes == 6
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    assert {result.metric_name for result in card.data.eval_results} >= {"top1", "macro_f1"}
    for heading in ("Use", "Data", "Training", "Metrics", "By class", "Calibration", "Limits", "Recipe", "Versions"):
        assert re.search(rf"^##+ {heading}$", card.text, re.MULTILINE), heading
    assert "Licence: CC0-1.0." in card.text and "| dotted-ring |" in card.text
    root = str(finetune.recipe.load(finished / "recipe.toml").data.path)
    assert str(Path(root).parent) not in card.text  # no path of this machine
    values = json.loads((finished / "metrics.json").read_text())["test"]["top1"]
    assert f"{values['value']:.3f} [{values['low']:.3f}, {values['high']:.3f}]" in card.text


def test_names_of_classes_break_no_table() -> None:
    assert in_markdown("a|b\n<script>*") == r"a\|b \<script\>\*"


def test_a_folder_goes_to_the_hub_with_its_card(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
            asked.append(("create", (repo_id, exist_ok)))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            asked.append(("upload", {file.name for file in Path(folder_path).iterdir()}))
            return f"https://example.org/{repo_id}"

    monkeypatch.setattr("finetune.exports.hub.HfApi", Hub)
    done = finetune.export(finished, format="timm", out=tmp_path / "own", push_to_hub="me/it")
    assert done.address == "https://example.org/me/it" and asked[0] == ("create", ("me/it", True))
    assert {"README.md", "config.json", "model.safetensors"} <= asked[1][1]


def test_a_hub_that_cannot_be_reached_leaves_the_folder(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"the Hub cannot be reached|the Hub refuses") as caught:
        finetune.export(finished, format="timm", out=tmp_path / "own", push_to_hub="me/it")
    assert "tries again" in caught.value.hint
    assert timm.create_model(f"local-dir:{tmp_path / 'own'}", pretrained=True).num_classes == 6


def test_an_export_takes_no_place_of_other_files(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = exported / "exports" / "model.onnx"
    before, mine = plain.read_bytes(), tmp_path / "mine.onnx"
    mine.write_text("mine")
    monkeypatch.setattr("finetune.workflow.export.proof_of", None)  # it is said before a model is asked anything
    around = Path(os.path.relpath(mine, exported / "exports" / "no-folder"))
    for more, said in (
        ({"out": exported / "exports" / "no-folder" / around}, "already exists"),
        ({"out": mine, "format": "torch"}, "is a file, and torch fills a folder"),
        ({"out": plain, "softmax": True}, "is the place of the plain ONNX file"),
        ({"out": plain.parent}, "is a folder"),
    ):
        with pytest.raises(ResourceError, match=said):
            finetune.export(exported, **more)  # type: ignore[arg-type]
    assert mine.read_text() == "mine" and plain.read_bytes() == before


def test_a_page_that_cannot_be_written_leaves_no_file_and_names_may_be_any(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    out = tmp_path / "out" / "my [1] x's.onnx"
    out.parent.mkdir()
    (out.parent / f".{out.name}.new.onnx.tried").write_bytes(b"of a process that was killed")
    (run / "predictions.csv").write_text("no,table\n1,2\n")
    with pytest.raises(CheckpointError, match=r"predictions\.csv is damaged"):
        finetune.export(run, out=out)
    assert list(out.parent.iterdir()) == []
    (run / "predictions.csv").unlink()
    finetune.export(run, out=out)
    page = (out.parent / "my [1] x's.README.md").read_text()
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith(("    python", "    docker build"))]
    assert commands[0][1] == "my [1] x's.predict.py" and commands[1][4:6] == ["-f", "my [1] x's.Dockerfile"]
    lines = (out.parent / "my [1] x's.Dockerfile").read_text().splitlines()
    assert json.loads(lines[3].removeprefix("COPY ")) == [out.name, "my [1] x's.predict.py", "./"]
    assert "### By class" not in page
