"""Losses against their formula and their limits."""

from __future__ import annotations

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, mse_loss, one_hot

import finetune
from finetune import recipe as recipes
from finetune.errors import RecipeError
from finetune.optim.losses import LOSSES, NUMBER_LOSSES, Criterion, shares_of
from finetune.prepare.asked import recipe_of
from finetune.settings import LossSection
from finetune.tasks import TASKS
from finetune.values import TASK_LOSSES

LOGITS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1, 2])
SETS = one_hot(TARGETS, 4).double() + one_hot((TARGETS + 1) % 4, 4)
OF_TASK = {"classify": (LOGITS, TARGETS), "multilabel": (LOGITS, SETS), "regress": (LOGITS[:, :1], SETS[:, :1])}


def test_focal_is_its_formula() -> None:
    right = LOGITS.softmax(dim=1)[range(7), TARGETS]
    expected = (-((1 - right) ** 2) * right.log()).mean()
    assert Criterion(LossSection(name="focal"))(LOGITS, TARGETS) == pytest.approx(float(expected))


def test_focal_without_focus_is_cross_entropy_with_its_smoothing() -> None:
    section = LossSection(name="focal", focal_gamma=0, label_smoothing=0.1)
    expected = cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)
    assert Criterion(section)(LOGITS, TARGETS) == pytest.approx(float(expected))


def test_what_is_surely_right_has_no_focal_loss_and_no_gradient_that_is_not_finite() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = Criterion(LossSection(name="focal"))(logits, torch.tensor([0, 1]))
    loss.backward()
    assert loss == 0 and logits.grad is not None and bool(logits.grad.isfinite().all())


def test_losses_are_those_of_torch() -> None:
    hot = one_hot(TARGETS, 4).double()
    assert Criterion(LossSection())(LOGITS, TARGETS) == pytest.approx(float(cross_entropy(LOGITS, TARGETS)))
    assert Criterion(LossSection(name="nll"))(LOGITS, TARGETS) == pytest.approx(float(cross_entropy(LOGITS, TARGETS)))
    expected = float(binary_cross_entropy_with_logits(LOGITS, hot))
    assert Criterion(LossSection(name="bce"))(LOGITS, TARGETS) == pytest.approx(expected)
    squares = float((LOGITS.softmax(dim=1) - hot).square().sum(dim=1).mean())
    assert Criterion(LossSection(name="mse"))(LOGITS, TARGETS) == pytest.approx(squares)


def test_a_squared_loss_learns_slowly_where_it_is_wrong_and_sure() -> None:
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    gradients = {}
    for name in ("mse", "cross-entropy"):
        (gradient,) = torch.autograd.grad(Criterion(LossSection(name=name))(logits, torch.tensor([1])), logits)
        gradients[name] = float(gradient.abs().max())
    assert gradients["mse"] < 1e-6 < 0.9 < gradients["cross-entropy"]


@pytest.mark.parametrize("name", LOSSES)
def test_indices_and_shares_of_one_class_give_one_loss(name: str) -> None:
    loss = Criterion(LossSection(name=name), torch.tensor([1.0, 2.0, 0.5, 1.0]))
    assert loss(LOGITS, TARGETS) == pytest.approx(float(loss(LOGITS, one_hot(TARGETS, 4).double())), rel=1e-6)


@pytest.mark.parametrize("name", ["cross-entropy", "bce", "mse"])
def test_smoothing_is_that_of_the_shares(name: str) -> None:
    smooth = shares_of(TARGETS, 4, smoothing=0.2).double()
    assert smooth.sum(dim=1) == pytest.approx([1.0] * 7) and smooth.min() == pytest.approx(0.05)
    expected = float(Criterion(LossSection(name=name))(LOGITS, smooth))
    assert Criterion(LossSection(name=name, label_smoothing=0.2))(LOGITS, TARGETS) == pytest.approx(expected)


def test_class_weights_are_the_weights_of_images() -> None:
    weights = torch.tensor([1.0, 3.0, 1.0, 1.0])
    doubled = torch.cat([LOGITS, *[LOGITS[TARGETS == 1]] * 2]), torch.cat([TARGETS, *[TARGETS[TARGETS == 1]] * 2])
    once = Criterion(LossSection(), weights)(LOGITS, TARGETS) * len(TARGETS)
    assert once == pytest.approx(float(cross_entropy(*doubled, reduction="sum")))


def test_every_loss_is_of_a_task() -> None:
    assert {name for losses in TASK_LOSSES.values() for name in losses} == {*LOSSES, *NUMBER_LOSSES}
    assert set(TASK_LOSSES) == set(TASKS) == set(OF_TASK)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASK_LOSSES for name in TASK_LOSSES[task]])
def test_every_loss_falls_by_its_gradient(task: str, name: str) -> None:
    outputs, targets = OF_TASK[task]
    logits, loss = outputs.clone().requires_grad_(), Criterion(LossSection(name=name), task=task)
    before = loss(logits, targets)
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss(logits - gradient, targets) < before


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_that_is_left_open_is_that_of_the_task(task: str) -> None:
    named = Criterion(LossSection(name=TASK_LOSSES[task][0]), task=task)
    assert Criterion(LossSection(), task=task)(*OF_TASK[task]) == named(*OF_TASK[task])


def test_losses_of_sets_and_numbers_are_those_of_torch_and_timm() -> None:
    bce = Criterion(LossSection(name="bce"), task="multilabel")(LOGITS, SETS)
    assert bce == pytest.approx(float(binary_cross_entropy_with_logits(LOGITS, SETS)))
    asymmetric = Criterion(LossSection(name="asymmetric"), task="multilabel")(LOGITS.float(), SETS.float())
    # As one row: older versions of timm sum over images and classes, newer ones divide by the number of rows.
    theirs = AsymmetricLossMultiLabel()(LOGITS.float().reshape(1, -1), SETS.float().reshape(1, -1)) / SETS.numel()
    assert asymmetric == pytest.approx(float(theirs), rel=1e-4)
    outputs, numbers = OF_TASK["regress"]
    for name, expected in (("mse", mse_loss), ("huber", huber_loss)):
        loss = Criterion(LossSection(name=name), task="regress")
        assert loss(outputs, numbers) == pytest.approx(float(expected(outputs, numbers)))


def test_a_focus_without_a_focal_loss_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"loss\.focal_gamma has no meaning"):
        recipe_of(overrides={"loss.focal_gamma": 1.0})
    kept = recipe_of(overrides={"loss.focal_gamma": 1.0, "loss.name": "focal"})
    assert recipes.loads(recipes.dump(kept), source="recipe").loss == kept.loss


def test_what_a_solved_head_does_not_use_is_said() -> None:
    settings = {"strategy": "linear-probe", "backbone": "test_resnet", "pretrained": False}
    notes = finetune.plan(overrides={"loss.name": "focal", "optim.clip": "none"}, **settings).notes
    assert [note for note in notes if "optim.clip, loss.name not used" in note]
    assert not [note for note in finetune.plan(**settings).notes if "not used" in note]
