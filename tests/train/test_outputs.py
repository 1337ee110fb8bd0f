"""How what a network puts out in training mode becomes one loss."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune.backbone.classics import CLASSICS
from finetune.train.outputs import aux_weight, loss_of

TARGETS = torch.tensor([0, 2, 1])
LOSS = partial(cross_entropy, target=TARGETS)


def drawn(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator) for _ in range(count)]


def test_logits_alone_have_their_loss() -> None:
    (logits,) = drawn(1)
    loss, judged = loss_of(logits, LOSS, aux_weight=0.3)
    assert torch.equal(loss, LOSS(logits))
    assert torch.equal(judged, logits)


def test_auxiliary_losses_count_their_weight_each() -> None:
    logits, first, second = drawn(3)
    loss, judged = loss_of((logits, first, second), LOSS, aux_weight=0.3)
    assert loss.item() == pytest.approx(float(LOSS(logits) + 0.3 * LOSS(first) + 0.3 * LOSS(second)))
    assert torch.equal(judged, logits)


def test_twins_are_judged_by_their_mean() -> None:
    one, other = drawn(2)
    loss, judged = loss_of((one, other), LOSS, aux_weight=None)
    assert torch.equal(judged, (one + other) / 2)
    assert torch.equal(loss, LOSS(judged))


def test_half_precision_is_judged_in_float32() -> None:
    for output in (drawn(1)[0].bfloat16(), tuple(logits.bfloat16() for logits in drawn(2))):
        loss, judged = loss_of(output, LOSS, aux_weight=None)
        assert loss.dtype == judged.dtype == torch.float32


@pytest.mark.parametrize("name", CLASSICS)
def test_the_weight_is_that_of_the_paper_and_only_googlenet_has_one(name: str) -> None:
    with torch.device("meta"):
        assert aux_weight(timm.create_model(name)) == (0.3 if name == "googlenet" else None)
    assert aux_weight(nn.Linear(2, 2)) is None


def test_the_gradient_of_an_auxiliary_classifier_of_googlenet_is_three_tenths_of_its_own() -> None:
    torch.manual_seed(0)
    model = timm.create_model("googlenet", num_classes=4)
    model.train()
    output = model(torch.randn(3, 3, 32, 32))
    own = torch.autograd.grad(LOSS(output[1]), model.aux1.fc2.weight, retain_graph=True)[0]
    loss, _ = loss_of(output, LOSS, aux_weight=aux_weight(model))
    found = torch.autograd.grad(loss, model.aux1.fc2.weight)[0]
    assert own.abs().max() > 0
    assert torch.allclose(found, 0.3 * own)
