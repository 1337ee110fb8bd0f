"""What an ONNX file takes and puts out in each form, and what is refused."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

import finetune
from finetune.backbone.groups import layer_groups
from finetune.backbone.saliency import Saliency
from finetune.errors import ExportError, RecipeError
from finetune.exports import formats
from finetune.exports import onnx as onnx_export
from finetune.exports.client import Client, _normalised
from finetune.exports.described import Described, preprocessing_facts
from finetune.exports.exporting import Exporting
from finetune.exports.form import OnnxForm
from finetune.exports.outputs import ExportedNetwork
from finetune.exports.proof import OnWhole, Parity, ProofImages, prove
from finetune.types import Preprocessing
from tests.support import draw_numbers, mostly_slow

ALL = {"softmax": True, "features": True, "saliency": True}


@pytest.fixture(scope="module")
def richest(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that does all preprocessing inside and gives all outputs."""
    out = tmp_path_factory.mktemp("richest") / "model.onnx"
    return finetune.export(finished, out=out, preprocessing="full", **ALL).path


def test_a_stranger_in_three_lines_gets_the_runs_answers(finished: Path, richest: Path, drawn: Path) -> None:
    session = onnxruntime.InferenceSession(str(richest), providers=["CPUExecutionProvider"])
    images = sorted(drawn.rglob("*.jpg"))[:8]
    ours = finetune.load(finished, device="cpu").predict(images, scores=True, features=True)
    for file, one in zip(images, ours, strict=True):
        outputs = session.run(None, {"images": np.asarray(Image.open(file).convert("RGB"))[None]})
        logits, probabilities, features, saliency = (rows[0] for rows in outputs)
        assert probabilities == pytest.approx(list(one.scores.values()), abs=2e-2)
        assert np.exp(logits) / np.exp(logits).sum() == pytest.approx(probabilities, abs=1e-5)
        assert features == pytest.approx(one.features, abs=0.05 * float(np.abs(one.features).max()))
        assert saliency.shape[0] == len(logits) and saliency[0].size > 1


def test_a_logit_is_the_mean_of_its_map_plus_a_bias_and_the_map_is_that_of_grad_cam() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval().requires_grad_(False)
    own = Preprocessing((64, 64), (0.5,) * 3, (0.2,) * 3)
    images = torch.randn(2, 3, 64, 64)
    logits, maps = ExportedNetwork(model, OnnxForm(saliency=True), preprocessing=own, task="classify")(images)
    assert torch.allclose(maps.mean(dim=(2, 3)) + model.get_classifier().bias, logits, atol=1e-5)
    label = int(maps[0].amax(dim=(1, 2)).argmax())
    shown = Saliency(model.requires_grad_(True), layer_groups(model), image_size=(64, 64))(images[0], label)
    assert shown is not None
    ours = maps[0, label].detach().clamp(min=0)
    sized = torch.nn.functional.interpolate(ours[None, None] / ours.max(), (64, 64), mode="bilinear")[0, 0]
    assert torch.allclose(shown, sized, atol=1e-4)


@pytest.mark.parametrize("network", ["test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_networks_without_maps_of_classes_are_refused(network: str) -> None:
    model = timm.create_model(network, num_classes=3).eval().requires_grad_(False)
    own = Preprocessing((64, 64), (0.5,) * 3, (0.2,) * 3)
    if network == "test_vit":
        own = replace(own, image_size=model.patch_embed.img_size)
    with pytest.raises(ExportError, match="does not end in an average over places"):
        ExportedNetwork(model, OnnxForm(saliency=True), preprocessing=own, task="classify")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_standardised_inside_is_standardised_outside(channels: int) -> None:
    model = torch.nn.Flatten()
    own = Preprocessing((5, 7), (0.5, 0.4, 0.3, 0.2)[:channels], (0.2, 0.3, 0.1, 0.4)[:channels], channels=channels)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, own.bands.count), dtype=np.uint8)
    (found,) = ExportedNetwork(model, OnnxForm("uint8"), preprocessing=own, task="regress")(torch.from_numpy(pixels))
    for row, one in zip(found, pixels, strict=True):
        assert row.numpy() == pytest.approx(
            _normalised(one.astype(np.float32), preprocessing_facts(own)).ravel(), abs=1e-5
        )


def test_height_and_width_are_free_where_that_is_asked(finished: Path, tmp_path: Path) -> None:
    done = finetune.export(finished, out=tmp_path / "free.onnx", dynamic_size=True)
    model = finetune.load(finished, device="cpu").model
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        ours = model(images).numpy()
    assert np.allclose(Client(done.path).run(list(images.numpy()), ["logits"])[0], ours, atol=1e-4)


def test_a_form_has_a_folder_of_its_own_and_predict_computes_by_the_plain_one(exported: Path, drawn: Path) -> None:
    before = (exported / "exports" / "model.onnx").read_bytes()
    done = finetune.export(exported, preprocessing="uint8")
    assert done.path == exported / "exports" / "uint8" / "model.onnx"
    assert (exported / "exports" / "model.onnx").read_bytes() == before
    names = {place.name for place in done.path.parent.iterdir()}
    assert names == {"model.onnx", "labels.txt", "README.md", "predict.py", "Dockerfile", "proof.json"}
    images = sorted(drawn.rglob("*.jpg"))[:4]
    found = finetune.load(done.path.parent).predict(images, tta="flip")
    assert found.labels == finetune.load(exported, device="cpu").predict(images, tta="flip").labels


def test_8_bits_are_a_quarter_of_the_size_and_lose_little(finished: Path, tmp_path: Path) -> None:
    plain = finetune.export(finished, out=tmp_path / "plain.onnx")
    done = finetune.export(finished, out=tmp_path / "int8.onnx", precision="int8", max_loss=20, force=True)
    kinds = {node.op_type for node in onnx.load(done.path).graph.node}
    assert "QuantizeLinear" in kinds and "DequantizeLinear" in kinds
    assert done.proof["bytes"] < plain.proof["bytes"] / 2  # of a larger network a quarter: scales and names stay
    assert 100 * (done.proof["whole"]["model"] - done.proof["whole"]["export"]) <= 20
    assert json.loads(onnx.load(done.path).metadata_props[0].value)
    half = finetune.export(finished, out=tmp_path / "half.onnx", precision="fp16")
    assert half.proof["bytes"] < 0.6 * plain.proof["bytes"] and half.proof["whole"]["num_same"]


def test_8_bits_that_lose_too_much_are_refused_with_the_figures(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = onnx_export.prove

    def proven(*given: Any, **more: Any) -> Parity:
        found = prove(*given, **more)
        assert found.whole is not None
        return replace(found, whole=replace(found.whole, model=0.9, export=0.885))

    monkeypatch.setattr(onnx_export, "prove", proven)
    with pytest.raises(
        ExportError, match=r"loses too much in int8: it reaches top1 0\.885 on val, and the model 0\.900"
    ):
        finetune.export(finished, out=tmp_path / "int8.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_what_it_says_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx_export.write_onnx

    def write_another(*given: Any) -> ExportedNetwork:
        network = write(*given)
        network.model.get_classifier().weight.data += 0.1  # the maps of the file are those of before
        return network

    monkeypatch.setattr(onnx_export, "write_onnx", write_another)
    with pytest.raises(ExportError, match="the ONNX file's logits differ"):
        finetune.export(finished, out=tmp_path / "model.onnx", saliency=True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"preprocessing": "some"}, "preprocessing = 'some' is not one of none, uint8, full"),
        ({"precision": "int4"}, "precision = 'int4' is not one of"),
        ({"max_loss": -1.0}, "is not a number of points"),
        ({"max_loss": 3.0}, "--max-loss is for --precision fp16 and int8"),
        ({"out": "model"}, r"model does not end in \.onnx"),
        ({"max_loss": float("nan")}, "is not a number of points"),
        ({"precision": "fp16", "force": True}, "--force is for --precision int8"),
        ({"format": "torch", "force": True}, "--force is for --precision int8"),
        ({"dynamic_size": True, "preprocessing": "full"}, "leaves preparing images to others"),
        ({"format": "timm", "softmax": True}, "--softmax has no meaning for --format timm"),
        ({"format": "torch", "preprocessing": "full"}, "--with-preprocessing has no meaning for --format torch"),
        ({"format": "openvino", "saliency": True}, "--saliency has no meaning for --format openvino"),
        ({"format": "openvino", "precision": "int8"}, "--precision int8 has no meaning for --format openvino"),
        ({"format": "coreml", "precision": "int8"}, "--precision int8 has no meaning for --format coreml"),
        ({"format": "litert", "precision": "fp16"}, "--precision has no meaning for --format litert"),
        ({"format": "timm", "layout": "triton"}, "layout = 'triton' has no meaning"),
        ({"layout": "tree"}, "layout = 'tree' has no meaning"),
        ({"push_to_hub": "me/it"}, "--push-to-hub has no meaning for --format onnx"),
        ({"format": "timm", "push_to_hub": "a/b/c"}, "--push-to-hub a/b/c"),
    ],
)
def test_what_does_not_go_together_is_refused(finished: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        finetune.export(finished, **asked)


REFUSED: list[tuple[Any, ...]] = [
    ("test_vit", {"saliency": True}, "does not end in an average over places"),
    ("test_resnet", {"preprocessing": "full", "saliency": True}, "a file that prepares images itself takes 8"),
    ("lenet5", {"format": "timm"}, "timm itself has no network lenet5"),
]


@pytest.mark.parametrize(("network", "asked", "said"), mostly_slow(REFUSED, REFUSED[2]))
def test_what_a_network_cannot_have_is_refused_before_val_is_asked_and_leaves_no_folder(
    quick_run, monkeypatch: pytest.MonkeyPatch, network: str, asked: dict[str, Any], said: str
) -> None:
    more = {"overrides": {"data.depth": "full"}} if network == "test_resnet" else {}
    run = quick_run("linear-probe", backbone=network, epochs=1, image_size=32, **more).folder
    monkeypatch.setattr("finetune.workflow.export.proof_of", None)
    with pytest.raises(ExportError, match=said):
        finetune.export(run, **asked)
    assert not (run / "exports").exists()


def test_probabilities_of_a_number_are_refused_before_val_is_asked(
    tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(data=draw_numbers(tmp_path / "numbers"), overrides={"data.label_column": "length"}, epochs=1).folder
    monkeypatch.setattr("finetune.workflow.export.proof_of", None)
    with pytest.raises(RecipeError, match="has no probabilities"):
        finetune.export(run, softmax=True)


def test_an_export_that_fails_leaves_no_empty_folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ExportError("no such operator")

    monkeypatch.setattr(formats, "write_in_form", failing)
    monkeypatch.setitem(formats.FORMATS, "torch", failing)
    for asked in ({"softmax": True}, {"layout": "triton"}, {"format": "torch"}):
        with pytest.raises(ExportError, match="no such operator"):
            finetune.export(finished, **asked)
        assert not (finished / "exports").exists()


def test_a_network_that_pads_by_size_says_so() -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=2, pad_type="same").eval()
    with pytest.raises(ExportError, match="pads by the size of its input"):
        onnx_export.write_onnx(
            model, Path("none"), Described(("a", "b"), Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)),
            OnnxForm(dynamic_size=True),
        )  # fmt: skip


def test_what_is_proven_is_what_the_numbers_say() -> None:
    good = Parity(14, (1, 2, 7), 10.0, 0.009, True)
    assert good.is_proven and not replace(good, largest_difference=0.011).is_proven
    assert not replace(good, same_top1=False).is_proven
    assert not replace(good, max_loss=1.0).is_proven  # without a whole split nothing is known
    worse = replace(good, largest_difference=5.0, max_loss=1.0, whole=OnWhole("val", 100, "top1", 0.9, 0.89, 95))
    assert worse.is_proven and not replace(worse, max_loss=0.9).is_proven


def test_the_way_into_8_bits_that_loses_least_is_taken(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove, losses = onnx_export.prove, iter([0.05, 0.01, 0.03, 0.02])
    sizes: list[int] = []

    def proven(model: Any, stranger: Client, *given: Any, **more: Any) -> Parity:
        found = prove(model, stranger, *given, **more)
        assert found.whole is not None
        return replace(found, whole=replace(found.whole, model=0.9, export=0.9 - next(losses)))

    def written(file: Path, to: Path, way: Any, images: Any) -> None:
        onnx.save(onnx.load(file), to)
        to.write_bytes(to.read_bytes() + onnx.ModelProto(producer_name=way.name).SerializeToString())
        sizes.append(to.stat().st_size)

    monkeypatch.setattr(onnx_export, "prove", proven)
    monkeypatch.setattr(onnx_export, "in_8_bits", written)
    done = finetune.export(finished, out=tmp_path / "int8.onnx", precision="int8", max_loss=2, force=True)
    assert onnx.load(done.path).producer_name == onnx_export.WAYS[1].name and len(sizes) == 4
    assert done.proof["whole"]["export"] == pytest.approx(0.89)


@pytest.fixture
def in_three_numbers(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The milliseconds that an image takes, whatever this machine is busy with."""
    took = {"model": 9.0, "export": 1.0, "fp32": 2.0}
    monkeypatch.setattr(onnx_export, "milliseconds", lambda networks: {name: took[name] for name in networks})
    return took


@pytest.mark.parametrize(
    ("size", "milliseconds", "said"),
    [
        (350, 1.9, ""),
        (
            351,
            1.9,
            r"the file has 0\.00 MB, 0\.35 of .* MB of fp32, at most 0\.35 allowed; 1\.0 points of top1 are lost",
        ),
        (350, 2.0, r"here: an image takes 2\.00 ms, 2\.00 ms in fp32; 1\.0 points of top1 are lost"),
        (900, 2.5, r"0\.35 allowed; an image takes 2\.50 ms, 2\.00 ms in fp32; 1\.0 points"),
    ],
)
def test_8_bits_that_are_no_smaller_or_no_quicker_are_refused_unless_they_are_wanted(
    size: int, milliseconds: float, said: str
) -> None:
    whole = OnWhole("val", 100, "top1", 0.9, 0.89, 95)
    parity = Parity(14, (1, 2, 7), 10.0, 0.1, True, whole=whole, max_loss=1.0, fp32_bytes=1000,
                    milliseconds={"model": 9.0, "export": milliseconds, "fp32": 2.0})  # fmt: skip
    own = Described(("a", "b"), Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3))
    what = Exporting(torch.nn.Flatten(), own, ProofImages(torch.zeros(1), []), OnnxForm(precision="int8"))
    told: list[str] = []
    formats._check_worth(replace(parity, fp32_bytes=None), 10**9, what, lambda event: told.append(str(event)))
    with pytest.raises(ExportError, match=said) if said else nullcontext() as caught:
        formats._check_worth(parity, size, what, lambda event: told.append(str(event)))
    assert told == [] and (caught is None or "--force keeps the file" in caught.value.hint)
    wanted = replace(what, form=replace(what.form, force=True))
    formats._check_worth(parity, size, wanted, lambda event: told.append(event.facts["text"]))
    assert [bool(re.search(said, text)) for text in told] == [True] * bool(said)


def test_8_bits_are_timed_beside_fp32(finished: Path, tmp_path: Path, in_three_numbers: dict[str, float]) -> None:
    done = finetune.export(finished, out=tmp_path / "int8.onnx", precision="int8", max_loss=100, force=True)
    assert done.proof["milliseconds"] == in_three_numbers and done.proof["fp32_bytes"] > 2 * done.proof["bytes"]
    assert {file.suffix for file in tmp_path.iterdir()} == {".onnx", ".txt", ".md", ".py", ".json", ".Dockerfile"}


@pytest.mark.slow
def test_a_network_that_quantises_badly_is_proven_or_refused_with_the_figures(
    quick_run, in_three_numbers: dict[str, float]
) -> None:
    run = quick_run("full", backbone="mobilenetv3_small_050", epochs=10).folder
    try:
        done = finetune.export(run, precision="int8")
    except ExportError as error:
        loses = r"loses too much in int8: it reaches top1 0\.\d+ on val, .*: \d+\.\d points are lost, at most 1 allowed"
        is_large = (
            r"not worth it here: the file has 0\.\d+ MB, 0\.\d+ of the .* fp32, at most 0\.35 allowed; .* are lost"
        )
        assert re.search(f"{loses}|{is_large}", error.message) and not (run / "exports").exists()
    else:
        whole = done.proof["whole"]
        assert 100 * (whole["model"] - whole["export"]) <= 1
        assert done.proof["bytes"] <= formats.MOST_OF_FP32 * done.proof["fp32_bytes"]


def test_a_way_into_8_bits_that_fails_is_passed_over(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, quantise, prepared, tried = onnx_export.for_8_bits, onnx_export.in_8_bits, [], []

    def once(file: Path, to: Path) -> None:
        prepared.append(file)
        prepare(file, to)

    def failing(file: Path, to: Path, way: Any, images: Any) -> None:
        tried.append(way.name)
        if len(tried) == 1:
            raise ExportError("no such operator")
        quantise(file, to, way, images)
        if len(tried) == 2:
            to.write_bytes(b"nothing that onnxruntime opens")

    monkeypatch.setattr(onnx_export, "WAYS", onnx_export.WAYS[:3])
    monkeypatch.setattr(onnx_export, "for_8_bits", once)
    monkeypatch.setattr(onnx_export, "in_8_bits", failing)
    asked: dict[str, Any] = {"precision": "int8", "max_loss": 100, "force": True, "features": True}
    done = finetune.export(finished, out=tmp_path / "int8.onnx", **asked)
    assert len(tried) == 3 and len(prepared) == 1 and done.proof["is_proven"]
    monkeypatch.setattr(onnx_export, "OUTPUTS_APART", {"int8": 1e-9})  # what is converted is compared, too
    with pytest.raises(ExportError, match="cannot be quantised to 8 bits: ") as caught:
        finetune.export(finished, out=tmp_path / "other.onnx", **asked)
    assert all(f"{way.name}: " in caught.value.message for way in onnx_export.WAYS)
    assert "the ONNX file's features differ from the model's by" in caught.value.message
    assert {file.name for file in tmp_path.iterdir() if file.name.startswith((".", "other"))} == set()


def test_float16_that_changes_the_features_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "OUTPUTS_APART", {"fp16": 1e-9})
    with pytest.raises(ExportError, match="features differ from the model's by"):
        finetune.export(finished, out=tmp_path / "half.onnx", precision="fp16", features=True)


def test_no_path_of_this_machine_goes_into_a_file(richest: Path) -> None:
    text = richest.read_bytes()
    assert str(Path(finetune.__file__).parent).encode() not in text and str(Path.home()).encode() not in text
    assert all(not node.metadata_props and not node.doc_string for node in onnx.load(richest).graph.node)


def test_probabilities_are_those_of_the_logits_in_8_bits_too(finished: Path, drawn: Path, tmp_path: Path) -> None:
    done = finetune.export(
        finished, out=tmp_path / "model.onnx", precision="int8", softmax=True, max_loss=100, force=True
    )
    client = Client(done.path)
    images = [client.read(file) for file in sorted(drawn.rglob("*.jpg"))[:8]]
    logits, probabilities = client.run(images, client.outputs)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert probabilities == pytest.approx(shares / shares.sum(axis=1, keepdims=True), abs=1e-6)


def test_an_export_that_answers_no_numbers_is_not_proven(few: Path) -> None:
    class Nothing:
        def read(self, file: Path) -> Any:
            return np.zeros(3, dtype=np.float32)

        def answer(self, images: Any) -> Any:
            return np.full((len(images), 3), np.nan, dtype=np.float32)

    files = sorted(few.rglob("*.jpg"))[:4]
    own = Described(("a", "b", "c"), Preprocessing((1, 1), (0.5,) * 3, (0.2,) * 3))
    found = prove(torch.nn.Flatten(), Nothing(), ProofImages(torch.rand(4, 3, 1, 1), files), own)
    assert not found.is_proven and "nan" in found.failure
