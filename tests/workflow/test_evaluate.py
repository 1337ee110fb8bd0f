"""Measuring a finished run again."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import finetune
from finetune.images import decode
from tests.support import watch_reading


def test_a_split_of_its_own_data_scores_as_the_run_said(finished: Path) -> None:
    said = json.loads((finished / "metrics.json").read_text())
    for split in ("val", "test"):
        found = finetune.evaluate(finished, split=split)
        assert found.metrics["top1"].value == said[split]["top1"]["value"]
        assert sum(map(sum, found.confusion)) == found.num_images


def test_test_is_measured_when_there_is_one(finished: Path) -> None:
    assert finetune.evaluate(finished).split == "test"


def test_other_data_with_fewer_classes_keeps_the_indices(finished: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "striped-disc", tmp_path / "new" / "striped-disc")
    found = finetune.evaluate(finished, data=tmp_path / "new")
    place = found.classes.index("striped-disc")
    assert sum(found.confusion[place]) == found.num_images == 10


def test_a_class_the_model_does_not_know_is_named(finished: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "striped-disc", tmp_path / "new" / "stripped-disc")
    with pytest.raises(finetune.DataError, match=r"'stripped-disc'\. Did you mean 'striped-disc'"):
        finetune.evaluate(finished, data=tmp_path / "new")


def test_other_data_may_be_a_table_of_other_columns(finished: Path, drawn: Path, tmp_path: Path) -> None:
    files = sorted(drawn.rglob("*.jpg"))[::3]
    lines = [f"{file},{file.parent.name},{number % 2}" for number, file in enumerate(files)]
    (tmp_path / "t.csv").write_text("\n".join(["file,kind,is_test", *lines]))
    columns = {"data.image_column": "file", "data.label_column": "kind"}
    for key, left in (("data.image_column", {}), ("data.label_column", {"data.image_column": "file"})):
        with pytest.raises(finetune.RecipeError, match="has no column") as caught:
            finetune.evaluate(finished, data=tmp_path / "t.csv", overrides=left)
        assert f"--set {key}=NAME" in caught.value.hint
    assert finetune.evaluate(finished, data=tmp_path / "t.csv", overrides=columns).num_images == len(files)
    found = finetune.evaluate(
        finished, data=tmp_path / "t.csv", split="test", overrides={**columns, "data.split_column": "is_test"}
    )
    assert found.num_images == len(files) // 2
    with pytest.raises(finetune.RecipeError, match=r"optim\.lr does not say how data is read"):
        finetune.evaluate(finished, data=tmp_path / "t.csv", overrides={"optim.lr": 1})
    with pytest.raises(finetune.RecipeError, match="is for other data"):
        finetune.evaluate(finished, overrides=columns)


def test_a_split_that_is_not_there_is_an_error(quick_run) -> None:
    result = quick_run(epochs=1)
    with pytest.raises(finetune.DataError, match="no test split"):
        finetune.evaluate(result.folder, split="test")


def test_images_of_classes_that_the_model_does_not_know_can_be_left_out(
    finished: Path, drawn: Path, tmp_path: Path
) -> None:
    classes, other = finetune.load(finished).classes, tmp_path / "other"
    for name in classes[:2]:
        shutil.copytree(drawn / name, other / name)
    shutil.copytree(drawn / classes[2], other / "a zebra")
    with pytest.raises(finetune.DataError, match="does not know the class 'a zebra'") as refused:
        finetune.evaluate(finished, data=other, device="cpu")
    assert "--known-only" in refused.value.hint
    notes: list[str] = []
    tell = lambda event: notes.append(str(event.facts.get("text")))  # noqa: E731
    found = finetune.evaluate(finished, data=other, known_only=True, device="cpu", on_event=tell)
    shutil.rmtree(other / "a zebra")
    assert found == finetune.evaluate(finished, data=other, device="cpu")
    assert any("10 images left out, and 20 measured" in note for note in notes)
    for name in classes[:2]:
        shutil.rmtree(other / name)
    shutil.copytree(drawn / classes[2], other / "a zebra")
    with pytest.raises(finetune.DataError, match="does not know the class 'a zebra'") as refused:
        finetune.evaluate(finished, data=other, known_only=True, device="cpu")
    assert "no image here shows one of these" in refused.value.hint
    with pytest.raises(finetune.RecipeError, match="known_only is for other data"):
        finetune.evaluate(finished, known_only=True, device="cpu")


def test_other_data_is_measured_by_the_groups_of_the_run_where_it_has_them(few: Path, tmp_path: Path, tiny_run) -> None:
    result = tiny_run(group_by=r"-(\d+)\.jpg", epochs=1)
    said: list[str] = []
    grouped = finetune.evaluate(result.folder, data=few, on_event=lambda event: said.append(str(event.facts)))
    assert not any("is in a group" in text for text in said)
    for file in few.rglob("*.jpg"):
        (tmp_path / "odd" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / file.parent.name / f"{file.stem}x.jpg").write_bytes(file.read_bytes())
    alone = finetune.evaluate(
        result.folder, data=tmp_path / "odd", on_event=lambda event: said.append(str(event.facts))
    )
    assert any("no image is in a group by" in text for text in said)
    one, other = grouped.metrics["macro_f1"], alone.metrics["macro_f1"]
    assert one.value == other.value
    assert (one.low, one.high) != (other.low, other.high)


def test_what_the_run_has_decoded_is_not_decoded_again_unless_the_file_has_changed(
    tiny_run, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(few, tmp_path / "own"))
    result = tiny_run("head-only", data=own)
    read = watch_reading(monkeypatch, decode)
    first = finetune.evaluate(result.folder, split="val")
    assert read == []
    for file in own.rglob("*.jpg"):
        Image.new("RGB", (40, 40)).save(file)
    changed = finetune.evaluate(result.folder, split="val")
    assert len(read) == changed.num_images
    assert sum(any(row) for row in zip(*changed.confusion, strict=True)) == 1  # all black: one class is named
    assert first.num_images == changed.num_images


def test_predictions_keep_the_confidence_and_the_second_guess(finished: Path) -> None:
    with (finished / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [*rows[0]] == ["file", "split", "class", "predicted", "confidence", "second", "confidence of second"]
    assert all(row["predicted"] != row["second"] for row in rows)
    assert all(1 >= float(row["confidence"]) >= float(row["confidence of second"]) >= 0 for row in rows)
    right = [row["class"] for row in rows if row["split"] == "test"]
    logs = [
        -math.log(float(row["confidence"]))
        for row in rows
        if row["split"] == "test" and row["class"] == row["predicted"]
    ]
    measured = finetune.evaluate(finished, split="test").metrics
    assert len(logs) / len(right) == pytest.approx(measured["top1"].value)
    assert sum(logs) / len(right) <= measured["nll"].value + 1e-5


def test_an_export_is_measured_as_its_run_is(exported: Path, tmp_path: Path, drawn: Path) -> None:
    ours = finetune.evaluate(exported, split="val", device="cpu")
    for model in (exported / "exports", exported / "exports" / "model.onnx"):
        theirs = finetune.evaluate(model, split="val")
        assert theirs.confusions == ours.confusions and theirs.classes == ours.classes
        assert theirs.metrics["nll"].value == pytest.approx(ours.metrics["nll"].value, abs=1e-4)
    flipped = finetune.evaluate(exported / "exports", split="val", tta="flip").metrics["nll"].value
    assert flipped == pytest.approx(
        finetune.evaluate(exported, split="val", tta="flip", device="cpu").metrics["nll"].value, abs=1e-4
    )
    assert finetune.evaluate(exported / "exports").split == "test"
    alone = Path(shutil.copy(exported / "exports" / "model.onnx", tmp_path / "alone.onnx"))
    with pytest.raises(finetune.DataError, match=r"alone\.onnx does not say what data it was trained on"):
        finetune.evaluate(alone)
    assert finetune.evaluate(alone, data=drawn).num_images == 60
    with pytest.raises(finetune.RecipeError, match="which runs on a CPU"):
        finetune.evaluate(alone, data=drawn, device="cuda")
    with pytest.raises(finetune.DataError, match="does not say what data it was trained on"):
        finetune.evaluate(exported / "model", device="cpu")


def test_every_folder_of_exports_is_measured_or_named(quick_run) -> None:
    run = quick_run("linear-probe", epochs=1, image_size=32).folder
    ours = finetune.evaluate(run).confusions
    triton = finetune.export(run, layout="triton").path
    timm = finetune.export(run, format="timm").path
    (model,) = triton.iterdir()
    for place in (triton, model / "1", timm):
        assert finetune.evaluate(place).confusions == ours, place
    told: list[str] = []
    (run / "model" / "config.json").write_text((run / "model" / "config.json").read_text() + "\n")
    finetune.evaluate(triton, on_event=lambda event: told.append(str(event.facts.get("text"))))
    assert any("was made from another model" in text for text in told)
    (model / "1" / "model.onnx").write_bytes(b"another")
    with pytest.raises(finetune.ExportError, match=r"is not the file that proof\.json says was proven"):
        finetune.evaluate(triton)
    other = run / "exports" / "torch"
    other.mkdir()
    facts = {"format": "torch", "whole": {"measure": "top1", "export": 0.5, "split": "val"}}
    (other / "proof.json").write_text(json.dumps(facts))
    with pytest.raises(finetune.CheckpointError, match="is an export in the format torch") as caught:
        finetune.evaluate(other)
    assert "it reaches: top1 0.500 on val" in caught.value.hint


def test_an_ensemble_finds_the_data_of_its_members_from_anywhere(
    tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run(out="a", epochs=1)
    tiny_run(out="b", epochs=1, seed=1)
    monkeypatch.chdir(tmp_path)
    made = finetune.ensemble(["a", "b"], out="e", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = finetune.evaluate(tmp_path / "e")
    assert found.metrics["top1"].value == made.joined.metrics["val"]["top1"].value
    facts = json.loads((tmp_path / "e" / "ensemble.json").read_text())
    facts["members"][0]["run"] = "a"  # as it was written before
    (tmp_path / "e" / "ensemble.json").write_text(json.dumps(facts))
    assert finetune.evaluate(tmp_path / "e").metrics == found.metrics
    shutil.copy(tmp_path / "e" / "exports" / "model.onnx", tmp_path / "a" / "another.onnx")
    with pytest.raises(finetune.DataError, match="does not say what data it was trained on"):
        finetune.evaluate(tmp_path / "a" / "another.onnx")


def test_images_that_are_gone_are_named(tiny_run, few: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(few, tmp_path / "data"))
    run = tiny_run(data=data, epochs=1).folder
    finetune.export(run)
    before = finetune.evaluate(run).metrics
    data.rename(tmp_path / "gone")
    for named in (run, run / "exports" / "model.onnx"):
        with pytest.raises(finetune.DataError, match=r"is not in .*data any more") as caught:
            finetune.evaluate(named)
        (tmp_path / "data").mkdir()
        with pytest.raises(finetune.DataError, match="could be read when the data was scanned and cannot now"):
            finetune.evaluate(named)
        (tmp_path / "data").rmdir()
    command = caught.value.hint.rpartition(": ")[2].replace("NEW", str(tmp_path / "gone"))
    subprocess.run(command, shell=True, check=True)
    assert finetune.evaluate(run).metrics == before


def test_other_data_that_the_model_was_trained_on_is_told_of(tiny_run, few: Path, tmp_path: Path) -> None:
    run = tiny_run(epochs=1).folder
    rows = list(csv.DictReader((run / "split.csv").open()))
    for row in rows:
        place = tmp_path / row["split"] / row["label"] / Path(row["file"]).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(few / row["file"], place)
    told: list[str] = []
    for name in ("train", "val"):
        finetune.evaluate(run, data=tmp_path / name, on_event=lambda event: told.append(str(event.facts.get("text"))))
    count = sum(row["split"] == "train" for row in rows)
    said = [text for text in told if "the model was trained on" in text]
    assert len(said) == 1 and f"trained on {count} of these {count} images" in said[0]


def test_an_export_of_another_model_says_so_and_data_that_is_gone_is_named(
    exported: Path, tmp_path: Path, drawn: Path
) -> None:
    own = Path(shutil.copytree(exported, tmp_path / "run"))
    told: list[str] = []
    finetune.evaluate(own / "exports", split="val", on_event=lambda event: told.append(str(event.facts.get("text"))))
    assert not any("was made from another model" in text for text in told)
    config = own / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    finetune.evaluate(own / "exports", split="val", on_event=lambda event: told.append(str(event.facts.get("text"))))
    assert any("was made from another model" in text for text in told)
    gone = tmp_path / "gone"
    recipe = own / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(drawn), str(gone)))
    with pytest.raises(finetune.DataError, match=str(gone)):
        finetune.evaluate(own / "exports", split="val")
