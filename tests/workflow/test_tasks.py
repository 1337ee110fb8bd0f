"""Images with several classes, and with a number, end to end: trained, resumed, judged, asked, exported, checked."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import finetune
from finetune import recipe as recipes
from finetune.exports.client import Client
from finetune.types import to_json
from finetune.workflow.predict import Wanted, predict_with
from tests.support import QUICK, assert_same, draw_numbers, draw_sets, last_weights, mostly_slow, stop_after

SMALL: dict[str, Any] = {**QUICK, "image_size": 48, "batch_size": 16, "backbone": "test_resnet"}
LENGTH = {"data.label_column": "length"}
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sets(tmp_path_factory.mktemp("sets") / "data", count=90)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_numbers(tmp_path_factory.mktemp("numbers") / "data", count=90)


@pytest.fixture(scope="module")
def of_sets(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: the head solved, then every layer trained."""
    place = tmp_path_factory.mktemp("of_sets") / "run"
    finetune.run(sets, strategy="lp-ft", epochs=3, test=0.2, out=place, **SMALL)
    assert finetune.export(place).proof["is_proven"]
    return place


@pytest.fixture(scope="module")
def of_numbers(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("of_numbers") / "run"
    finetune.run(numbers, strategy="linear-probe", test=0.2, out=place, overrides=LENGTH, **SMALL)
    assert finetune.export(place).proof["is_proven"]
    return place


@pytest.fixture
def printed(finetune_cli: Callable[..., Any]) -> Callable[..., str]:
    def run(*words: str) -> str:
        done = finetune_cli(*words)
        assert done.code == 0, done.err
        return done.out

    return run


def test_sets_of_classes_are_learned_and_judged_by_their_task(of_sets: Path) -> None:
    metrics = json.loads((of_sets / "metrics.json").read_text())
    assert list(metrics["test"]) == ["mAP", "macro_f1", "micro_f1"]
    assert metrics["test"]["mAP"]["value"] > 0.9
    lines = [json.loads(line) for line in (of_sets / "metrics.jsonl").read_text().splitlines()]
    assert all(line["val_top1"] is None and list(line["scores"]) == ["mAP"] for line in lines)
    recipe = recipes.load(of_sets / "recipe.toml")
    assert (recipe.data.task, recipe.loss.name) == ("multilabel", "bce")
    config = json.loads((of_sets / "model" / "config.json").read_text())
    assert config["task"] == "multilabel" and config["activation"] == "sigmoid"
    assert len(config["thresholds"]) == 3 and config["label_names"] == list(CLASSES)
    page = (of_sets / "report.html").read_text()
    assert "val mAP" in page and "average precision" in page and "top1" not in page


def test_a_number_is_learned_and_what_the_model_puts_out_is_the_number(of_numbers: Path, numbers: Path) -> None:
    metrics = json.loads((of_numbers / "metrics.json").read_text())
    assert list(metrics["test"]) == ["r2", "mae", "rmse"]
    assert metrics["test"]["r2"]["value"] > 0.7 and metrics["test"]["mae"]["value"] < 20
    model = timm.create_model(f"local-dir:{of_numbers / 'model'}", pretrained=True).eval()
    said = finetune.load(of_numbers).predict(numbers.parent / "000.png")[0].value
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(model, use_test_size=True))
    from finetune.images.decode import read_rgb

    with torch.no_grad():
        (output,) = model(view(read_rgb(numbers.parent / "000.png"))[None])[0].tolist()
    assert output == pytest.approx(said, rel=1e-4) and 90 < output < 230
    assert "val r2" in (of_numbers / "report.html").read_text()


@pytest.mark.parametrize("kind", ["sets", "numbers"])
def test_eval_says_again_what_the_run_said(
    kind: str, request: pytest.FixtureRequest, printed: Callable[..., str]
) -> None:
    run, table = request.getfixturevalue(f"of_{kind}"), request.getfixturevalue(kind)
    kept = json.loads((run / "metrics.json").read_text())
    for split in ("val", "test"):
        again = finetune.evaluate(run, split=split, device="cpu")
        assert {name: one.value for name, one in again.metrics.items()} == pytest.approx(
            {name: one["value"] for name, one in kept[split].items()}, rel=1e-4
        )
    whole = finetune.evaluate(run, data=table, device="cpu")
    assert whole.num_images == 90 and whole.confusion == []
    if kind == "sets":
        assert [one.name for one in whole.by_class] == list(CLASSES)
    text = printed("eval", str(run), "--device", "cpu")
    assert ("average precision" in text) == (kind == "sets")
    assert json.loads(printed("eval", str(run), "--device", "cpu", "--json"))["task"] != "classify"


def test_predictions_of_sets_are_those_of_the_thresholds_with_torch_and_without(of_sets: Path, sets: Path) -> None:
    folder = sets.parent
    config = json.loads((of_sets / "model" / "config.json").read_text())
    by_torch = finetune.load(of_sets).predict(folder)
    exported = list(predict_with(of_sets, folder, device="cpu"))
    right = {row["image"]: row["label"] for row in csv.DictReader(sets.open())}
    kept = {row["file"]: row["predicted"] for row in csv.DictReader((of_sets / "predictions.csv").open())}
    for one, other in zip(by_torch, exported, strict=True):
        assert set(one.classes) == {
            name for name, least in zip(CLASSES, config["thresholds"], strict=True) if one.scores[name] >= least
        }
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
        assert one.classes == other.classes and one.scores == pytest.approx(other.scores, abs=1e-4)
        name = Path(one.file).name
        assert name not in kept or set(filter(None, kept[name].split("|"))) == set(one.classes)
    hits = [set(one.classes) == set(filter(None, right[Path(one.file).name].split("|"))) for one in by_torch]
    assert np.mean(hits) > 0.8


def test_predict_prints_sets_and_numbers_as_csv_and_json(
    of_sets: Path, of_numbers: Path, sets: Path, numbers: Path, tmp_path: Path, printed: Callable[..., str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for run, table, columns in (
        (of_sets, sets, ["classes", *(f"probability of {name}" for name in CLASSES)]),
        (of_numbers, numbers, ["number"]),
    ):
        words = ("predict", str(run), str(tmp_path / "broken.png"), str(table.parent / "000.png"), "--device", "cpu")
        rows = list(csv.DictReader(io.StringIO(printed(*words, "--csv"))))
        assert list(rows[0]) == ["file", *columns, "problem"]
        assert rows[0]["problem"] and not any(rows[0][column] for column in columns)
        assert not rows[1]["problem"] and float(rows[1][columns[-1]]) == pytest.approx(float(rows[1][columns[-1]]))
        unread, known = json.loads(printed(*words, "--json"))
        assert unread["problem"] and not known["problem"]
        assert ("scores" if run == of_sets else "value") in known
        assert columns[0] in printed(*words).splitlines()[0]


def test_more_than_one_answer_is_refused_where_it_means_nothing(of_sets: Path, of_numbers: Path, sets: Path) -> None:
    for run in (of_sets, of_numbers):
        for ask in (
            lambda run=run: list(predict_with(run, sets.parent, wanted=Wanted(top=2), device="cpu")),
            lambda run=run: finetune.load(run, device="cpu").predict(sets.parent, top=2),
        ):
            with pytest.raises(finetune.RecipeError, match="--top 2 is for models with one class per image"):
                ask()


def test_sets_and_numbers_are_predicted_without_torch(of_sets: Path, of_numbers: Path, sets: Path) -> None:
    for run in (of_sets, of_numbers):
        code = (
            "import sys; from finetune.workflow.predict import Wanted, predict_with;"
            f"print([one.label for one in predict_with({str(run)!r}, {str(sets.parent / '000.png')!r}, device='cpu')],"
            "[name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        label = finetune.load(run, device="cpu").predict(sets.parent / "000.png")[0].label
        assert done.stdout.strip().endswith(" []")
        if run == of_sets:
            assert done.stdout.startswith(f"['{label}']")


def test_the_export_says_task_activation_and_thresholds(of_sets: Path, of_numbers: Path) -> None:
    client = Client(of_sets / "exports" / "model.onnx")
    config = json.loads((of_sets / "model" / "config.json").read_text())
    assert (client.task, client.activation) == ("multilabel", "sigmoid")
    assert list(client.thresholds) == config["thresholds"]
    number = Client(of_numbers / "exports" / "model.onnx")
    assert (number.task, number.activation, number.classes) == ("regress", "none", ["length"])
    deviation = json.loads((of_numbers / "exports" / "proof.json").read_text())["deviation"]
    plan = json.loads((of_numbers / "plan.json").read_text())
    assert deviation == plan["scale"]["deviation"] == pytest.approx(33, abs=8)


STOPPED: list[tuple[str, int, dict[str, Any]]] = [
    ("sets", 3, {}),
    ("sets", 8, {"loss.name": "asymmetric", "regularise.mixup": 0.2, "train.micro_batch": 8}),
    ("numbers", 8, LENGTH),
    ("numbers", 3, {**LENGTH, "loss.name": "huber", "regularise.mixup": 0.2, "optim.schedule": "plateau"}),
]


@pytest.mark.parametrize(("kind", "steps", "keys"), mostly_slow(STOPPED, STOPPED[1], STOPPED[3]))
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    kind: str, steps: int, keys: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    table = request.getfixturevalue(kind)
    asked: dict[str, Any] = {**SMALL, "strategy": "top-k", "top_k": 2, "epochs": 3, "overrides": keys}
    finetune.run(table, out=tmp_path / "whole", **asked)
    with pytest.raises(finetune.Interrupted):
        finetune.run(table, out=tmp_path / "stopped", on_event=stop_after(steps), **asked)
    finetune.resume(tmp_path / "stopped")
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_number_head_is_delivered_in_numbers_and_kept_in_deviations(of_numbers: Path) -> None:
    scale = json.loads((of_numbers / "plan.json").read_text())["scale"]
    kept, delivered = last_weights(of_numbers), load_file(of_numbers / "model" / "model.safetensors")
    assert torch.allclose(delivered["fc.weight"], kept["fc.weight"] * scale["deviation"], rtol=1e-5)
    assert torch.allclose(delivered["fc.bias"], kept["fc.bias"] * scale["deviation"] + scale["mean"], rtol=1e-5)
    assert all(torch.equal(delivered[name], kept[name]) for name in kept if not name.startswith("fc."))


def test_a_refit_keeps_thresholds_and_scale_of_the_first_fit(sets: Path, numbers: Path, tmp_path: Path) -> None:
    first = finetune.run(sets, strategy="linear-probe", test=0.2, out=tmp_path / "first", **SMALL)
    again = finetune.run(sets, strategy="linear-probe", test=0.2, refit=True, out=tmp_path / "again", **SMALL)
    configs = [json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ("first", "again")]
    assert configs[0]["thresholds"] == configs[1]["thresholds"]
    assert first.metrics["test"] == again.metrics["test, first fit"] and "test" in again.metrics
    number = finetune.run(
        numbers, strategy="linear-probe", test=0.2, refit=True, out=tmp_path / "number", overrides=LENGTH, **SMALL
    )
    assert number.metrics["test"]["r2"]["value"] > 0.7


@pytest.mark.parametrize("kind", ["sets", "numbers"])
def test_the_feature_cache_changes_no_bit(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table = request.getfixturevalue(kind)
    of = LENGTH if kind == "numbers" else {}
    for name in ("auto", "none"):
        keys = {**of, "cache.features": name, "cache.engine": "torch", "augment.level": "none"}
        finetune.run(table, strategy="head-only", epochs=3, out=tmp_path / name, overrides=keys, **SMALL)
    assert_same(tmp_path / "auto", tmp_path / "none", ["model/model.safetensors", "metrics.json"])


EVERY = list(product(["sets", "numbers"], ["auto", "gradual", "scratch", "race", "lora"]))


@pytest.mark.parametrize(
    ("kind", "strategy"), mostly_slow(EVERY, ("sets", "auto"), ("numbers", "auto"), ("numbers", "lora"))
)
def test_every_strategy_runs(kind: str, strategy: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table = request.getfixturevalue(kind)
    of = LENGTH if kind == "numbers" else {}
    result = finetune.run(table, strategy=strategy, epochs=4, out=tmp_path / "run", overrides=of, **SMALL)
    assert next(iter(result.metrics["val"])) == ("r2" if kind == "numbers" else "mAP")
    if strategy in ("auto", "race"):
        evidence = json.loads((tmp_path / "run" / "evidence.json").read_text())["evidence"]
        assert evidence["measure"] == ("r2" if kind == "numbers" else "mAP")
        page = (tmp_path / "run" / "report.html").read_text()
        assert f"{evidence['measure']} of a linear model on" in page and "top1" not in page


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss.name": "focal"}, "loss.name = 'focal' has no meaning where an image has any number of classes"),
        ({"loss.name": "mse"}, "loss.name = 'mse' has no meaning where an image has any number of classes"),
        ({"loss.label_smoothing": 0.1}, "loss.label_smoothing = 0.1 has no meaning"),
        ({"regularise.cutmix": 1.0}, "regularise.cutmix = 1.0 has no meaning where an image has any number of classes"),
        ({"train.balance": "sampling"}, "train.balance = 'sampling' has no meaning"),
        ({"data.task": "regress"}, "is not a number"),
        (
            {"data.task": "classify", "loss.name": "asymmetric"},
            "loss.name = 'asymmetric' has no meaning where an image has one class",
        ),
    ],
)
def test_what_a_task_cannot_do_is_refused_before_anything_is_made(
    keys: dict[str, Any], message: str, sets: Path, tmp_path: Path
) -> None:
    with pytest.raises(finetune.FinetuneError, match=message):
        finetune.run(sets, overrides=keys, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_network_whose_head_takes_no_scale_is_refused_for_numbers(numbers: Path, tmp_path: Path) -> None:
    asked = {**SMALL, "backbone": "deit_tiny_distilled_patch16_224", "image_size": 32, "strategy": "head-only"}
    with pytest.raises(finetune.BackboneError, match="cannot estimate a number"):
        finetune.run(numbers, overrides=LENGTH, out=tmp_path / "run", **asked)


@pytest.mark.parametrize("task", ["multilabel", pytest.param("regress", marks=pytest.mark.slow)])
def test_strategies_are_compared_by_the_score_of_the_task(sets: Path, numbers: Path, tmp_path: Path, task: str) -> None:
    data, metric, of = (sets, "mAP", {}) if task == "multilabel" else (numbers, "r2", LENGTH)
    asked: dict[str, Any] = {**SMALL, "epochs": 2, "overrides": of, "test": 0.2, "seeds": 2}
    who = ["linear-probe", "head-only"]
    found = finetune.compare(data, strategies=who, out=tmp_path / "compared", **asked)
    assert not found.failed and {one.label for one in found.standings} == set(who)
    for one in found.standings:
        folders = [found.folder / "runs" / f"{one.label}-seed{seed}" for seed in one.seeds]
        values = [json.loads((folder / "metrics.json").read_text())["test"][metric]["value"] for folder in folders]
        assert one.metric == metric and one.score.value == pytest.approx(sum(values) / 2)
        assert one.score.low <= one.score.value <= one.score.high
    best, *others = found.standings
    for one in others:
        assert one.difference.value == pytest.approx(best.score.value - one.score.value)
    page = (found.folder / "compare.html").read_text()
    assert f"val {metric} over epochs" in page and "top1" not in page


def test_backbones_are_ranked_by_the_score_of_the_task(sets: Path, numbers: Path) -> None:
    more: dict[str, Any] = {"device": "cpu", "image_size": 48}
    for data, metric, of in ((sets, "map", {}), (numbers, "r2", LENGTH)):
        given = ["embedded", "test_resnet"] if metric == "map" else ["embedded"]
        ranked = finetune.rank(data, given, overrides={**of, "backbone.pretrained": False}, **more)
        facts = ranked.to_json()
        for one in facts["candidates"]:
            predicted = one[f"predicted_{metric}"]
            assert predicted["low"] <= predicted["value"] <= predicted["high"] and predicted["value"] > 0.3
            assert one["knn_top1"] is None and one["h_score"] is None
        assert facts["recommended"] in {one["name"] for one in facts["candidates"]}
        assert f"predicted {ranked.metric}" in facts["reason"] or len(given) == 1


def test_labels_that_were_changed_are_doubted(sets: Path, numbers: Path, tmp_path: Path) -> None:
    for table, wrong, of in (
        (sets, "{},blue|green|red,1,1,1", {}),
        (numbers, "{},1000", LENGTH),
    ):
        lines = table.read_text().splitlines()
        place = next(n for n, line in enumerate(lines) if n and (table == numbers or line.endswith(",0,0,0")))
        name = lines[place].split(",")[0]
        lines[place] = wrong.format(name)
        other = table.with_name(f"wrong-{table.name}")
        other.write_text("\n".join(lines) + "\n")
        found = finetune.check(other, overrides={**of, "backbone.model_args": {}}, backbone="embedded", image_size=64,
                               device="cpu", workers=0)  # fmt: skip
        other.unlink()
        assert found.judged is not None and found.judged.top1 is None and found.judged.scores
        doubted = {one.file for finding in found.findings if finding.kind == "label" for case in finding.cases
                   for one in case.files}  # fmt: skip
        assert name in doubted


def test_a_run_folder_of_before_there_were_tasks_is_read(finished: Path, tmp_path: Path) -> None:
    import shutil

    old = tmp_path / "old"
    shutil.copytree(finished, old)
    lines = (old / "recipe.toml").read_text().splitlines()
    gone = ("task = ", "label_separator = ")
    (old / "recipe.toml").write_text("\n".join(line for line in lines if not line.startswith(gone)))
    before = finetune.evaluate(finished, device="cpu")
    assert to_json(finetune.evaluate(old, device="cpu")) == to_json(before)
    assert before.task == "classify" and "task" not in json.loads((old / "model" / "config.json").read_text())


def test_a_class_that_other_data_has_only_in_test_or_only_beside_an_unknown_one_is_no_damage(
    of_sets: Path, sets: Path
) -> None:
    table = sets.parent / "other.csv"
    table.write_text("image,label,split\n000.png,green,train\n001.png,red,test\n002.png,blue|grey,train\n")
    found = finetune.evaluate(of_sets, data=table, split="test", known_only=True, device="cpu")
    assert (found.split, found.num_images) == ("test", 1)
    table.unlink()


def test_a_run_goes_on_from_the_model_of_another(
    of_sets: Path, of_numbers: Path, sets: Path, numbers: Path, tmp_path: Path
) -> None:
    """Rows of known classes are kept, but not where they say a number or are of another task."""
    asked = {key: value for key, value in SMALL.items() if key not in ("backbone", "pretrained")}
    again = finetune.run(
        sets, weights=of_sets / "model", strategy="head-only", epochs=1, out=tmp_path / "sets", **asked
    )
    assert again.metrics["val"]["mAP"]["value"] > 0.9  # an epoch alone would not come so far
    number = finetune.run(
        numbers, weights=of_numbers / "model", strategy="linear-probe", out=tmp_path / "n", overrides=LENGTH, **asked
    )
    assert number.metrics["val"]["r2"]["value"] > 0.5
    stepped = finetune.run(
        numbers,
        weights=of_numbers / "model",
        strategy="head-only",
        epochs=1,
        out=tmp_path / "h",
        overrides=LENGTH,
        **asked,
    )
    assert stepped.metrics["val"]["r2"]["value"] > -1
