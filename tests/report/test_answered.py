"""What a report shows of a model's answers, and what it advises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.report.answered import MOST_IN_MATRIX, Answered, answered
from finetune.report.diagnosis import advice
from finetune.types import EpochLine

NAMES = ("ant", "bee", "cat")
TOP1 = {"top1": {"value": 0.8, "low": 0.78, "high": 0.82}}


def logits_of(guesses: list[int], shares: list[float], *, num_classes: int = 3) -> Tensor:
    """Logits whose softmax gives each guess its share, the others what is left alike."""
    rest = [(1 - share) / (num_classes - 1) for share in shares]
    rows = torch.tensor(rest, dtype=torch.double)[:, None].repeat(1, num_classes)
    rows[torch.arange(len(guesses)), guesses] = torch.tensor(shares, dtype=torch.double)
    return rows.log()


def answers(truth: list[int], guesses: list[int], shares: list[float] | None = None, root: Path = Path()) -> Answered:
    shares = shares or [0.9] * len(truth)
    files = [f"{place}.png" for place in range(len(truth))]
    return answered(
        "val",
        logits_of(guesses, shares),
        torch.tensor(truth),
        classes=NAMES,
        files=files,
        root=root,
        num_train=[9, 5, 2],
    )


def advised(found: Answered | None, history: list[EpochLine] | None = None, **more: object) -> str:
    usual = {"data": "imgs", "is_head_alone": False, "level": "medium", "image_size": 224}
    one = advice(found, history or [], TOP1, **{**usual, **more})  # type: ignore[arg-type]
    return " ".join(f"{item.seen} {item.command}" for item in one)


def epochs(train_top1: float, val_top1: float, losses: list[float]) -> list[EpochLine]:
    return [EpochLine("full", at + 1, 0.1, 0.1, train_top1, loss, val_top1) for at, loss in enumerate(losses)]


def test_each_class_says_how_it_fares() -> None:
    found = answers([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 0])
    ant, bee, cat = found.by_class
    assert (ant.recall, ant.precision, ant.taken_for, ant.num_train) == (pytest.approx(1 / 3), 0.5, "bee", 9)
    assert (bee.recall, bee.precision, bee.taken_for) == (1.0, 0.5, "")
    assert (cat.recall, cat.precision, cat.f1) == (0.0, None, 0.0)
    assert found.matrix == ((1, 2, 0), (0, 2, 0), (1, 0, 0))
    assert found.pairs[0] == ("ant", "bee", 2)
    assert (found.num_right, found.num_images) == (3, 6)


def test_the_surest_mistakes_come_first_and_pictures_are_inlined(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "red").save(tmp_path / "1.png")
    found = answers([0, 0, 1], [0, 1, 2], [0.5, 0.7, 0.99], tmp_path)
    assert [case.file for case in found.mistakes] == ["2.png", "1.png"]
    assert [case.file for case in found.least_sure] == ["0.png", "1.png", "2.png"]
    assert found.mistakes[0].picture == ""  # the file is gone
    assert found.mistakes[1].picture.startswith("data:image/jpeg;base64,")
    assert (found.mistakes[1].truth, found.mistakes[1].guess) == ("ant", "bee")
    assert found.mistakes[1].share == pytest.approx(0.7) and found.mistakes[1].share_of_truth == pytest.approx(0.15)


def test_many_classes_have_no_matrix_but_pairs() -> None:
    count = MOST_IN_MATRIX + 1
    targets = torch.arange(count)
    logits = logits_of([1, *range(1, count)], [0.9] * count, num_classes=count)
    names, files = [str(place) for place in range(count)], [""] * count
    found = answered("val", logits, targets, classes=names, files=files, root=Path(), num_train=[1] * count)
    assert found.matrix is None and found.pairs == (("0", "1", 1),)


def test_learning_by_heart_is_seen_and_what_is_as_it_should_be_is_not() -> None:
    fine = answers([0, 1, 2] * 5, [0, 1, 2] * 5)
    assert "memorises" in advised(fine, epochs(0.99, 0.8, [0.5, 0.4, 0.6]))
    assert "augment.level=heavy" in advised(fine, epochs(0.99, 0.8, [0.5, 0.4, 0.6]))
    assert "mixup" in advised(fine, epochs(0.99, 0.8, [0.5, 0.4, 0.6]), level="heavy")
    assert advised(fine, epochs(0.99, 0.8, [0.5, 0.4, 0.41])) == ""
    assert advised(fine, epochs(0.9, 0.88, [0.5, 0.4, 0.3])) == ""
    assert advised(None) == ""


def test_a_head_that_fits_nothing_wants_deeper_layers() -> None:
    fine = answers([0, 1, 2] * 5, [0, 1, 2] * 5)
    assert "--strategy top-k" in advised(fine, epochs(0.6, 0.58, [1, 0.9, 0.8]), is_head_alone=True)
    assert advised(fine, epochs(0.6, 0.58, [1, 0.9, 0.8])) == ""


def test_a_small_split_a_weak_class_and_doubtful_labels_are_told() -> None:
    fine = answers([0, 1, 2] * 5, [0, 1, 2] * 5)
    wide = {"top1": {"value": 0.8, "low": 0.6, "high": 0.9}}
    (one,) = advice(fine, [], wide, data="imgs", is_head_alone=False, level="medium", image_size=224)
    assert "15 points off" in one.seen
    weak = advised(answers([0] * 20 + [2] * 6, [0] * 20 + [1, 1, 1, 1, 2, 2], [0.6] * 26))
    assert "cat is recognised in 33% of its 6 images, mostly taken for bee; it has 2 train images" in weak
    assert "cat is taken for bee in 4 images, 100% of all mistakes" in weak and "--image-size 320" in weak
    doubted = advised(answers([0] * 30, [0] * 28 + [1, 1], [0.97] * 30))
    assert "2 images of val are not named as labelled" in doubted and "finetune check imgs" in doubted
