"""`fit_phases` by itself: what two epochs lose on three layouts, that it resumes, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from finetune.backbone.groups import layer_groups
from finetune.train.phases import fit_phases
from tests.train.fitting import fit_of, network, planned

# Losses of the two epochs, on this data, from these weights: alike under torch 2.6 and 2.14. Kernels round otherwise
# on other processors, hence the tolerance.
LOSSES = {
    ("full", "test_resnet"): [1.1018, 1.0676],
    ("top-k", "test_vit"): [0.9849, 0.7306],
    ("head-only", "test_convnext"): [1.1402, 1.0872],
}


@pytest.mark.parametrize(("strategy", "name"), LOSSES)
def test_two_epochs_lose_what_they_lost_when_this_was_written(strategy: str, name: str) -> None:
    model = network(name)
    end = fit_phases(fit_of(model), planned(strategy, model), fresh=network(name))
    assert [row.train_loss for row in end.history] == pytest.approx(LOSSES[strategy, name], rel=1e-2)


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_what_is_stopped_at_a_step_goes_on_to_the_same_bits(stop_after: int) -> None:
    whole = network("test_resnet")
    expected = fit_phases(fit_of(whole), planned("top-k", whole), fresh=network("test_resnet"))
    model, kept = network("test_resnet"), []
    with pytest.raises(InterruptedError):
        fit_phases(
            fit_of(model, kept=kept, stop_after=stop_after), planned("top-k", model), fresh=network("test_resnet")
        )
    again = network("test_resnet")
    resumed = fit_phases(fit_of(again), planned("top-k", again), fresh=network("test_resnet"), resumed=kept[-1])
    assert resumed.history == expected.history
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in whole.state_dict().items())


def test_what_is_frozen_stays_to_the_bit() -> None:
    model, before = network("test_resnet"), network("test_resnet").state_dict()
    fit_phases(fit_of(model), planned("head-only", model), fresh=network("test_resnet"))
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {name for group in layer_groups(model) if group.is_head for name in group.parameters}
