"""Checkpoints: they come back as they were written, whole or from the one before, and a stranger's is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.checkpoint import state
from finetune.checkpoint.state import Best, TrainState
from finetune.errors import CheckpointError
from finetune.types import EpochLine, Event

MODEL = {"weight": torch.arange(6.0).reshape(2, 3)}
LINE = EpochLine("head", 1, 0.1, 1.0, 0.5, None, None)
NOW = TrainState(phase=1, epoch=2, step=3, loss_sum=0.1 + 0.2, best=Best(0.5, 1.5, 0, 1), history=[LINE])


def save(place: Path, *, step: int = 3) -> None:
    state.save(place, MODEL, {"0.exp_avg": torch.ones(2)}, TrainState(step=step))


def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    state.save(tmp_path / "last", MODEL, {"0.exp_avg": torch.tensor([1e-38])}, NOW)
    found = state.load(tmp_path / "last")
    assert found is not None and found.state == NOW
    assert torch.equal(found.model["weight"], MODEL["weight"])
    assert torch.equal(found.optimiser["0.exp_avg"], torch.tensor([1e-38]))
    assert state.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("file", [state.MODEL, state.OPTIMISER, state.STATE, state.COMPLETE])
def test_of_a_damaged_one_the_one_before_is_taken_aloud_and_the_damaged_is_removed(tmp_path: Path, file: str) -> None:
    place = tmp_path / "last"
    save(place, step=1)
    save(place, step=2)
    content = (place / file).read_bytes()
    (place / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said: list[Event] = []
    found = state.load(place, on_event=said.append)
    assert found is not None and found.state.step == 1
    assert "is damaged; the one before it is used" in said[0].facts["text"]
    assert not place.exists() and state.load_whole(place) is None


def test_where_none_is_whole_the_error_names_the_recipe(tmp_path: Path) -> None:
    place = tmp_path / "run" / "checkpoints" / "last"
    save(place)
    (place / state.MODEL).unlink()
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        state.load(place)
    assert f"--recipe {tmp_path / 'run' / 'recipe.toml'}" in caught.value.hint


def test_one_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "last")
    said = json.loads((tmp_path / "last" / state.COMPLETE).read_text())
    (tmp_path / "last" / state.COMPLETE).write_text(json.dumps({**said, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version 99"):
        state.load(tmp_path / "last")


def stepped(name: str) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    kinds = {"adamw": torch.optim.AdamW, "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)}
    return model, kinds[name](model.parameters(), lr=0.1)


def step(model: nn.Linear, optimiser: torch.optim.Optimizer) -> None:
    model(torch.ones(4, 3)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    model, optimiser = stepped(name)
    step(model, optimiser)
    kept, weights = state.optimiser_tensors(optimiser), {k: t.clone() for k, t in model.state_dict().items()}
    step(model, optimiser)
    other, again = stepped(name)
    state.restore_model(other, weights)
    state.restore_optimiser(again, kept)
    step(other, again)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("key", ["9.exp_avg", "x.exp_avg", "0"])
def test_the_state_of_another_optimiser_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match="another optimiser"):
        state.restore_optimiser(stepped("adamw")[1], {key: torch.ones(1)})


def test_the_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="another model's"):
        state.restore_model(nn.Linear(3, 2), {"strange": torch.ones(1)})


def test_a_new_phase_begins_at_its_first_step_and_keeps_what_was_found() -> None:
    now = TrainState(phase=0, epoch=3, step=2, num_seen=7, num_without_better=2, is_initialised=True, best=NOW.best)
    now.enter_phase(1)
    assert now == TrainState(phase=1, best=NOW.best)
