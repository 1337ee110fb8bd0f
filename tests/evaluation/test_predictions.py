"""Files are read ahead by threads and named in order, a few batches at a time."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from finetune.data.asked_images import ImageSource, asked_images
from finetune.data.given_images import given_images
from finetune.data.read_ahead import AHEAD
from finetune.evaluation import predictions as of_files
from finetune.evaluation.named import Prediction
from finetune.evaluation.prediction_rows import AnswerLayout
from finetune.evaluation.predictions import Answers, Scorer, predictions
from finetune.types import Event, OnEvent, ignore


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for number in range(20):
        found.append(tmp_path / f"{number:02}.png")
        Image.new("L", (4, 4), number).save(found[-1])
    return found


def scorer(sizes: list[int]) -> Scorer[int]:
    """Name an image by its grey: class 0 at most 9, class 1 above; note the size of every batch."""

    def answers_of(images: Sequence[int]) -> Answers:
        sizes.append(len(images))
        rows = [[0.9, 0.1] if grey < 10 else [0.2, 0.8] for grey in images]
        return Answers(np.array(rows, dtype=np.float32))

    return Scorer(("low", "high"), None, lambda image: image.getpixel((0, 0))[0], answers_of)


def named(
    by: Scorer[int], images: Iterable[ImageSource], *, top: int = 1, batch_size: int, on_event: OnEvent = ignore
) -> Iterator[Prediction]:
    layout = AnswerLayout("classify", by.classes, top)
    return (one.prediction for one in predictions(by, images, layout, batch_size=batch_size, on_event=on_event))


@pytest.mark.parametrize("batch_size", [1, 3, 20, 64])
def test_every_file_is_named_in_order(files: list[Path], batch_size: int) -> None:
    sizes: list[int] = []
    said: list[Event] = []
    found = list(named(scorer(sizes), asked_images(files), batch_size=batch_size, on_event=said.append))
    assert [p.file for p in found] == list(map(str, files))
    assert [p.label for p in found] == ["low"] * 10 + ["high"] * 10
    assert found[0].probabilities == pytest.approx([0.9])
    assert max(sizes) <= batch_size and sum(sizes) == 20
    assert said[-1].facts["done"] == 20


def test_more_classes_than_there_are_and_equal_ones_keep_their_order(files: list[Path]) -> None:
    halves = np.full((1, 2), 0.5, dtype=np.float32)
    even = Scorer(("a", "b"), None, lambda image: 0, lambda images: Answers(halves))
    (found,) = named(even, asked_images(files[:1]), top=9, batch_size=4)
    assert found.classes == ("a", "b")


def test_files_that_cannot_be_read_stand_in_their_place(files: list[Path], tmp_path: Path) -> None:
    files[3].write_bytes(b"no image")
    images = asked_images(files)
    files[5].unlink()
    found = list(named(scorer([]), images, batch_size=4))
    assert [number for number, one in enumerate(found) if one.problem] == [3, 5]
    assert found[5].problem.startswith("cannot be read: No such file") and found[5].label == ""
    assert [one.label for one in found[6:8]] == ["low", "low"]


def test_a_batch_of_which_none_can_be_read_asks_for_nothing(files: list[Path]) -> None:
    images = asked_images(files)
    for file in files[:4]:
        file.unlink()
    sizes: list[int] = []
    found = list(named(scorer(sizes), images, batch_size=4))
    assert [bool(one.problem) for one in found] == [True] * 4 + [False] * 16
    assert sizes == [4, 4, 4, 4]


def test_no_more_than_three_batches_are_held(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lock, read = threading.Lock(), [0]
    examine = of_files.examine

    def counted(*args: object, **more: object) -> object:
        with lock:
            read[0] += 1
        return examine(*args, **more)

    monkeypatch.setattr(of_files, "examine", counted)
    found = named(scorer([]), asked_images(files), batch_size=2)
    for number in range(1, 21):
        next(found)
        assert read[0] <= number + 3 * 2 + 1


class Held:
    """What is made of an image: one that is alive is counted."""

    alive: ClassVar[weakref.WeakSet[Held]] = weakref.WeakSet()

    def __init__(self, image: Image.Image) -> None:
        self.grey = image.getpixel((0, 0))[0]
        Held.alive.add(self)


@pytest.mark.parametrize("is_slow", [False, True], ids=["network is quick", "network is slow"])
def test_of_a_stream_of_thousands_a_few_batches_are_alive_and_all_are_in_order(is_slow: bool) -> None:
    pulled, most = 0, 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal pulled
        for number in range(4000):
            pulled += 1
            yield np.full((2, 2), number % 256, dtype=np.uint8)

    def answers_of(images: Sequence[Held]) -> Answers:
        nonlocal most
        if is_slow and pulled < 1000:
            time.sleep(0.005)
        most = max(most, len(Held.alive))
        return Answers(np.array([[1, 0] if one.grey % 2 else [0, 1] for one in images], dtype=np.float32))

    found = named(Scorer(("odd", "even"), None, Held, answers_of), given_images(stream()), batch_size=8)
    for number, prediction in enumerate(found):
        assert pulled <= number + 8 * (AHEAD + 1)
        assert prediction.file == f"image {number}" and prediction.label == ("odd" if number % 2 else "even")
    assert (pulled, most <= 8 * (AHEAD + 1), len(Held.alive)) == (4000, True, 0)
