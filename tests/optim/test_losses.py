"""Losses against their formula and their limits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import finetune
from finetune import recipe as recipes
from finetune.errors import RecipeError
from finetune.optim.losses import LOSSES, criterion_of, focal
from finetune.prepare.asked import recipe_of
from finetune.settings import TASK_LOSSES, LossSection
from finetune.tasks import TASKS

LOGITS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1, 2])
SETS = torch.nn.functional.one_hot(TARGETS, 4).double() + torch.nn.functional.one_hot((TARGETS + 1) % 4, 4)
OF_TASK = {"classify": (LOGITS, TARGETS), "multilabel": (LOGITS, SETS), "regress": (LOGITS[:, :1], SETS[:, :1])}


def test_focal_is_its_formula() -> None:
    right = LOGITS.softmax(dim=1)[range(7), TARGETS]
    expected = (-((1 - right) ** 2) * right.log()).mean()
    assert criterion_of(LossSection(name="focal"))(LOGITS, TARGETS) == pytest.approx(float(expected))


def test_focal_without_focus_is_cross_entropy_with_its_smoothing() -> None:
    section = LossSection(name="focal", focal_gamma=0, label_smoothing=0.1)
    expected = cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)
    assert criterion_of(section)(LOGITS, TARGETS) == pytest.approx(float(expected))


def test_what_is_surely_right_has_no_focal_loss_and_no_gradient_that_is_not_finite() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = focal(logits, torch.tensor([0, 1]), gamma=2.0, label_smoothing=0.0)
    loss.backward()
    assert loss == 0 and logits.grad is not None and bool(logits.grad.isfinite().all())


def test_every_loss_is_of_one_task() -> None:
    names = [name for losses in TASK_LOSSES.values() for name in losses]
    assert sorted(names) == sorted(LOSSES)
    assert set(TASK_LOSSES) == set(TASKS) == set(OF_TASK)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASK_LOSSES for name in TASK_LOSSES[task]])
def test_every_loss_falls_by_its_gradient(task: str, name: str) -> None:
    outputs, targets = OF_TASK[task]
    logits, loss = outputs.clone().requires_grad_(), criterion_of(LossSection(name=name))
    before = loss(logits, targets)
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss(logits - gradient, targets) < before


def test_the_asymmetric_loss_is_its_formula_as_a_mean() -> None:
    probability = LOGITS.float().sigmoid()
    lacking = (1 - probability + 0.05).clamp(max=1)
    of_shown = (1 - probability) * probability.log()
    of_lacking = (1 - lacking) ** 4 * lacking.log()
    expected = -torch.where(SETS > 0, of_shown, of_lacking).mean()
    assert criterion_of(LossSection(name="asymmetric"))(LOGITS, SETS) == pytest.approx(float(expected), rel=1e-5)


def test_a_focus_without_a_focal_loss_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"loss\.focal_gamma has no meaning"):
        recipe_of(overrides={"loss.focal_gamma": 1.0})
    kept = recipe_of(overrides={"loss.focal_gamma": 1.0, "loss.name": "focal"})
    assert recipes.loads(recipes.dump(kept), source="recipe").loss == kept.loss


def test_what_a_solved_head_does_not_use_is_said() -> None:
    settings = {"strategy": "linear-probe", "backbone": "test_resnet", "pretrained": False}
    notes = finetune.plan(overrides={"loss.name": "focal", "optim.clip": "none"}, **settings).notes
    assert [note for note in notes if "not used is loss.name, optim.clip" in note]
    assert not [note for note in finetune.plan(**settings).notes if "not used" in note]
