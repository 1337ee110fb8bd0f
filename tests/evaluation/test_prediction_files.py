"""Predictions as CSV, TSV, JSON lines and Parquet: the same rows, as they come."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from pyarrow import parquet

from finetune.evaluation.named import LabelsPrediction, NumberPrediction, Prediction
from finetune.evaluation.prediction_files import WRITERS
from finetune.evaluation.prediction_rows import AnswerLayout

FEATURES = np.array([0.5, 1 / 3], dtype=np.float32)
SCORES = {"ant": 0.75, "-bee": 0.25}
OF_CLASSES = [
    Prediction("bad.jpg", problem="no image", scores=dict.fromkeys(SCORES)),
    Prediction("=1.jpg", ("ant", "-bee"), (0.75, 0.25), unsure="between classes", scores=SCORES, features=FEATURES),
    Prediction("\udcff.jpg", ("-bee",), (0.5,), scores=SCORES, features=FEATURES),
]
ALL = AnswerLayout("classify", ("ant", "-bee"), 2, has_scores=True, has_features=True, has_unsure=True)


def written(form: str, layout: AnswerLayout = ALL, predictions: list[Prediction] = OF_CLASSES) -> bytes:
    stream = io.BytesIO()
    WRITERS[form](predictions, layout, stream)
    assert not stream.closed
    return stream.getvalue()


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_delimited_file_has_a_column_for_all_that_was_asked_for(form: str, delimiter: str) -> None:
    text = written(form).decode(errors="surrogateescape")
    head, bad, first, second = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    assert head == [
        "file", "class1", "probability1", "class2", "probability2", "probability of ant", "probability of -bee",
        "feature1", "feature2", "unsure", "problem",
    ]  # fmt: skip
    assert bad == ["bad.jpg", *[""] * 9, "no image"]
    assert first[:5] == ["'=1.jpg", "ant", "0.750000", "'-bee", "0.250000"]
    assert first[7:] == ["0.5", "0.3333333", "between classes", ""]
    assert second[:5] == ["\udcff.jpg", "'-bee", "0.500000", "", ""]


def test_json_lines_hold_an_object_each() -> None:
    bad, first, second = map(json.loads, written("jsonl").splitlines())
    assert bad["problem"] == "no image" and "features" not in bad and bad["scores"] == {"ant": None, "-bee": None}
    assert first["classes"] == ["ant", "-bee"] and first["features"] == FEATURES.tolist() and first["scores"] == SCORES
    assert second["file"] == "\udcff.jpg"
    (plain,) = map(json.loads, written("jsonl", predictions=[Prediction("a.jpg", ("ant",), (0.5,))]).splitlines())
    assert plain == {"file": "a.jpg", "classes": ["ant"], "probabilities": [0.5], "problem": "", "unsure": ""}


def test_parquet_has_typed_columns_and_one_of_features() -> None:
    table = parquet.read_table(io.BytesIO(written("parquet")))
    assert {name: str(table.schema.field(name).type) for name in ("file", "probability1", "features")} == {
        "file": "string",
        "probability1": "float",
        "features": "list<element: float>",
    }
    bad, first, second = table.to_pylist()
    assert bad["class1"] is None and bad["features"] is None and first["features"] == FEATURES.tolist()
    assert first["file"] == "=1.jpg" and second["file"] == "\\xff.jpg"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_several_classes_and_numbers_have_columns_of_their_own(form: str) -> None:
    several = AnswerLayout("multilabel", ("ant", "bee"), has_scores=True)
    sets: list[Prediction] = [LabelsPrediction("1.jpg", ("bee", "ant"), (0.9, 0.8), scores={"ant": 0.8, "bee": 0.9})]
    number: list[Prediction] = [
        NumberPrediction("1.jpg", value=1234567.8901234),
        NumberPrediction("2.jpg", problem="x"),
    ]
    of_sets, of_numbers = written(form, several, sets), written(form, AnswerLayout("regress", ("length",)), number)
    if form == "csv":
        assert of_sets.decode().splitlines()[1] == "1.jpg,bee|ant,0.800000,0.900000,"
        assert of_numbers.decode().splitlines()[1:] == ["1.jpg,1234567.8901234,", "2.jpg,,x"]
    elif form == "jsonl":
        assert json.loads(of_sets)["scores"] == {"ant": 0.8, "bee": 0.9}
        assert [json.loads(line)["value"] for line in of_numbers.splitlines()] == [1234567.8901234, None]
    else:
        assert parquet.read_table(io.BytesIO(of_sets)).column_names[1:3] == ["classes", "probability of ant"]
        assert parquet.read_table(io.BytesIO(of_numbers))["number"].to_pylist() == [1234567.8901234, None]


class Sink(io.RawIOBase):
    """Takes what is written and keeps nothing of it."""

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        return memoryview(content).nbytes  # type: ignore[arg-type]


@pytest.mark.parametrize("form", list(WRITERS))
def test_what_is_held_does_not_grow_with_the_number_of_images(form: str) -> None:
    def many(count: int) -> Iterator[Prediction]:
        for number in range(count):
            yield Prediction(
                f"{number:060}.jpg", ("ant", "-bee"), (0.75, 0.25), scores=SCORES, features=FEATURES.copy()
            )

    def peak(count: int) -> int:
        tracemalloc.start()
        WRITERS[form](many(count), ALL, io.BufferedWriter(Sink()))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # imports
    assert peak(6000) < peak(2000) + 500_000  # 4,000 names alone are as much, with what is said of them four times that
