"""What each task trains for: the score of val, the loss that is said of it, and targets as training sees them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.evaluation.labels import mean_average_precision
from finetune.tasks import TASKS, Scale
from finetune.train.objectives import objective_of

LOGITS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
SETS = (torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) < 0.4).float()
NUMBERS = 1000 + 50 * LOGITS[:, :1]


def test_each_task_is_scored_by_its_own() -> None:
    targets = LOGITS.argmax(dim=1)
    assert objective_of("classify").score(LOGITS, targets) == 1
    assert objective_of("multilabel").score(LOGITS, SETS) == mean_average_precision(LOGITS, SETS)
    assert objective_of("regress").score(NUMBERS, NUMBERS) == 1
    assert [objective_of(task).name for task in TASKS] == ["top1", "mAP", "r2"]


def test_the_score_of_numbers_is_the_same_in_every_unit() -> None:
    objective, noisy = objective_of("regress"), NUMBERS + 20 * LOGITS[:, 1:2]
    assert objective.score((noisy - 1000) / 50, (NUMBERS - 1000) / 50) == pytest.approx(
        objective.score(noisy, NUMBERS), abs=1e-5
    )


def test_training_sees_numbers_in_deviations_from_the_mean_and_classes_as_they_are() -> None:
    seen = objective_of("regress", Scale(1000.0, 50.0)).seen(NUMBERS)
    assert torch.allclose(seen, LOGITS[:, :1], atol=1e-4)
    assert objective_of("multilabel").seen(SETS) is SETS


def test_the_loss_of_many_images_is_the_mean_times_their_number() -> None:
    targets = LOGITS.argmax(dim=1)
    assert objective_of("classify").summed(LOGITS, targets) == pytest.approx(20 * float(cross_entropy(LOGITS, targets)))
    expected = 20 * float(binary_cross_entropy_with_logits(LOGITS, SETS))
    assert objective_of("multilabel").summed(LOGITS, SETS) == pytest.approx(expected, rel=1e-5)


def test_hits_are_counted_where_an_image_has_one_class() -> None:
    assert int(objective_of("classify").hits(LOGITS, LOGITS.argmax(dim=1))) == 20
    assert int(objective_of("multilabel").hits(LOGITS, SETS)) == 0
