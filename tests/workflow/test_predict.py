"""Naming what images show."""

from __future__ import annotations

from pathlib import Path

import pytest

import finetune


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
