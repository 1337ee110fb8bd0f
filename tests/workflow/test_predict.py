"""Naming what images show."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.images.transforms import normalise, plain_view
from finetune.workflow.predict import Wanted, predict_with


def test_probabilities_fall_and_sum_to_one_over_all_classes(finished: Path, drawn: Path) -> None:
    classifier = finetune.load(finished)
    found = classifier.predict(drawn / "striped-disc", top=99)
    assert len(found) == 10
    for prediction in found:
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)


def test_the_size_of_the_batch_does_not_change_the_class(finished: Path, drawn: Path) -> None:
    one = finetune.load(finished, batch_size=1).predict(drawn)
    many = finetune.load(finished, batch_size=32).predict(drawn)
    assert [p.label for p in one] == [p.label for p in many]


def test_a_picture_that_cannot_be_read_is_told_and_the_rest_is_named(
    finished: Path, drawn: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    good = next(drawn.rglob("*.jpg"))
    first, second = finetune.load(finished).predict([bad, good])
    assert "no image" in first.problem
    assert first.label == ""
    assert second.label in finetune.load(finished).classes


def test_a_missing_path_is_an_error_that_names_it(finished: Path) -> None:
    with pytest.raises(finetune.DataError, match=r"nowhere\.jpg"):
        finetune.load(finished).predict("nowhere.jpg")


def test_predictions_agree_with_evaluation(finished: Path, drawn: Path) -> None:
    names = [p.label for p in finetune.load(finished).predict(drawn)]
    truth = [path.parent.name for path in sorted(drawn.rglob("*.jpg"))]
    hits = sum(name == true for name, true in zip(names, truth, strict=True)) / len(truth)
    assert finetune.evaluate(finished, data=drawn).metrics["top1"].value == pytest.approx(hits)


def test_images_in_memory_are_named_as_their_files(finished: Path, drawn: Path) -> None:
    classifier, files = finetune.load(finished), sorted(drawn.rglob("*.jpg"))[::7]
    expected = classifier.predict(files).probabilities
    images: list[Any] = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    for given in (images, [file.read_bytes() for file in files], [Image.open(file) for file in files]):
        found = classifier.predict(given)
        assert np.array_equal(found.probabilities, expected)
    assert np.array_equal(classifier.predict(images[0]).probabilities, expected[:1])


def test_a_generator_gives_an_iterator_and_a_list_gives_all_at_once(finished: Path, drawn: Path) -> None:
    classifier, files, pulled = finetune.load(finished, batch_size=2), sorted(drawn.rglob("*.jpg")), []

    def stream() -> Iterator[Path]:
        for file in files:
            pulled.append(file)
            yield file

    found = classifier.predict(stream(), scores=True)
    assert pulled == [] and isinstance(found, Iterator)
    first = next(found)
    assert 0 < len(pulled) <= 8
    assert [first.file, *(one.file for one in found)] == list(map(str, files))
    assert list(first.scores) == list(classifier.classes) and sum(first.scores.values()) == pytest.approx(1, abs=1e-5)


def test_all_that_is_asked_for_stands_in_arrays_and_the_unread_is_nan(finished: Path, drawn: Path) -> None:
    classifier, file = finetune.load(finished), next(drawn.rglob("*.jpg"))
    found = classifier.predict([file, b"no image", file], features=True, threshold=1.0, top=2)
    assert found.probabilities.shape == (3, len(classifier.classes)) and found.features.shape[0] == 3
    for rows in (found.probabilities, found.features):
        assert np.array_equal(rows[0], rows[2]) and np.isnan(rows[1]).all() and not np.isnan(rows[0]).any()
    assert found.labels == [found[0].label, "", found[0].label]
    assert found[0].unsure == "less likely than 1" and found[1].unsure == ""
    assert np.array_equal(found[:2].features, found.features[:2], equal_nan=True)
    with pytest.raises(finetune.RecipeError, match="features were not asked for"):
        _ = classifier.predict(file).features
    shares = classifier.model.get_classifier()(torch.from_numpy(found.features[:1])).softmax(dim=1)
    assert shares.detach().numpy() == pytest.approx(found.probabilities[:1], abs=1e-5)


def test_predictions_and_classifiers_show_what_they_are(finished: Path, drawn: Path) -> None:
    classifier, file = finetune.load(finished), next(drawn.rglob("*.jpg"))
    found = classifier.predict([file, b"no image"], top=2)
    likely = f"{found[0].classes[0]} {found[0].probabilities[0]:.3f}, {found[0].classes[1]}"
    assert repr(found[0]).startswith(f"<Prediction {file}: {likely}")
    assert repr(found[1]) == "<Prediction image 1: no image in a format that can be read>"
    assert repr(found) == f"<Predictions of 2 images: 1 {found[0].label}, 1 unread>"
    assert repr(classifier) == f"<Classifier of {len(classifier.classes)} classes from {finished} on cpu>"


def test_a_data_frame_has_the_columns_of_the_command(
    finished: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = finetune.load(finished).predict([next(drawn.rglob("*.jpg")), b"no image"])
    with monkeypatch.context() as patched:
        original = builtins.__import__

        def without(name: str, *arguments: Any, **more: Any) -> Any:
            if name == "pandas":
                raise ImportError(name)
            return original(name, *arguments, **more)

        patched.setattr(builtins, "__import__", without)
        with pytest.raises(finetune.RecipeError, match="a data frame needs pandas") as caught:
            found.to_dataframe()
        assert "pip install" in caught.value.hint
    pandas = pytest.importorskip("pandas")
    frame = found.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["file", "class1", "probability1", "problem"]
    assert frame["class1"][0] == found[0].label and frame["probability1"].isna().tolist() == [False, True]


@pytest.mark.parametrize("image", [None, 7, [None], object(), np.zeros((2, 2), np.float32), {"a": 1}, [[]], iter([7])])
def test_what_is_no_image_costs_an_error_of_ours(finished: Path, image: Any) -> None:
    with pytest.raises(finetune.DataError):
        list(finetune.load(finished).predict(image))


def test_the_mean_over_mirror_images_is_that_of_the_logits_by_every_engine(
    finished: Path, drawn: Path, tmp_path: Path
) -> None:
    place, file = tmp_path / "run", next(drawn.rglob("*.jpg"))
    shutil.copytree(finished, place)
    finetune.export(place)
    classifier, image = finetune.load(place), Image.open(file).convert("RGB")
    plain = plain_view(classifier.preprocessing)(image)[None]  # (1, 3, H, W)
    with torch.no_grad():
        logits = [classifier.model(normalise(view, classifier.preprocessing)) for view in (plain, plain.flip(-1))]
    mean = classifier.predict(image, tta="flip").probabilities
    assert mean == pytest.approx(((logits[0] + logits[1]) / 2).softmax(dim=1).numpy(), abs=1e-6)
    assert np.abs(mean - classifier.predict(image).probabilities).max() > 1e-5
    image.save(tmp_path / "a.png")
    wanted = Wanted(scores=True, tta="flip")
    for engine in ("torch", "onnxruntime"):
        (found,) = predict_with(place, tmp_path / "a.png", wanted=wanted, engine=engine)
        assert list(found.scores.values()) == pytest.approx(mean[0], abs=1e-5)
    with pytest.raises(finetune.RecipeError, match=r"'flop' is not one of none, flip, 5crop\. Did you mean 'flip'"):
        classifier.predict(image, tta="flop")
    with pytest.raises(finetune.RecipeError, match="--features uses the features"):
        classifier.predict(image, tta="flip", features=True)


def test_evaluation_over_mirror_images_counts_what_prediction_says(finished: Path, drawn: Path) -> None:
    names = finetune.load(finished).predict(drawn, tta="flip").labels
    truth = [path.parent.name for path in sorted(drawn.rglob("*.jpg"))]
    hits = sum(name == true for name, true in zip(names, truth, strict=True)) / len(truth)
    found = finetune.evaluate(finished, data=drawn, tta="flip")
    assert found.metrics["top1"].value == pytest.approx(hits)
    assert found.metrics["ece"].value != finetune.evaluate(finished, data=drawn).metrics["ece"].value
