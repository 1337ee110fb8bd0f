"""What processes of a run tell each other, and how one learns that another has ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

import finetune
from finetune import ranks
from finetune.data.loaders import Order
from finetune.process import num_cores
from finetune.train.shared_statistics import shared_statistics
from tests.launching import launched, values


def test_one_process_shares_nothing_and_asks_torch_for_nothing() -> None:
    with ranks.together():
        assert (ranks.count(), ranks.rank(), ranks.is_first(), ranks.place()) == (1, 0, True, ())
        assert ranks.agreed(lambda: 3) == 3
        assert ranks.gathered("own") == ranks.exchanged("own") == ["own"]
        assert not ranks.is_together()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0, 1)),
        ({"RANK": "x", "WORLD_SIZE": "2"}, (0, 1, 0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": ""}, (0, 1, 0, 1)),
    ],
)
def test_the_environment_tells_which_process_this_is(monkeypatch, names: dict[str, str], expected: Any) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **names}.items():
        monkeypatch.setenv(name, value)
    here = ranks.launched()
    assert (here.rank, here.count, here.local_rank, here.local_count) == expected


def test_two_processes_agree_gather_sum_and_fail_alike() -> None:
    def refuse() -> None:
        raise finetune.RecipeError(["one", "two"], hint="the way out")

    def work(rank: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with ranks.together():
            found["agreed"] = ranks.agreed(lambda: ("of", ranks.count(), rank))
            found["gathered"], found["exchanged"] = ranks.gathered(rank), ranks.exchanged(rank)
            rows = [(torch.full((2, 3), float(rank)), torch.tensor([rank, rank]))] if rank == 0 else []
            found["rows"] = ranks.joined_rows(rows)
            parts = [torch.full((2, 2), 1.0 + rank).t(), torch.tensor(float(rank))]
            ranks.sum_up(parts)
            found["summed"] = parts
            model = nn.BatchNorm1d(2)
            model.running_mean.fill_(rank)
            ranks.share_model(model)
            found["shared"] = model.running_mean
            with ranks.unshared():
                found["apart"] = ranks.count(), ranks.agreed(lambda: rank), ranks.is_first()
            found["launcher"] = ranks.launcher()
            found["cores"] = num_cores(), ranks.agreed(num_cores)
            with pytest.raises(finetune.RecipeError) as refused:
                ranks.agreed(refuse)
            found["refused"] = refused.value.problems, refused.value.hint
        with ranks.together():  # a second run of the same process
            found["again"] = ranks.agreed(lambda: rank)
        return found

    first, second = values(launched(2, work))
    assert first["agreed"] == second["agreed"] == ("of", 1, 0)  # who decides is alone meanwhile
    assert (first["gathered"], second["gathered"]) == ([0, 1], [])
    assert first["exchanged"] == second["exchanged"] == [0, 1]
    assert [part.shape for part in first["rows"]] == [(2, 3), (2,)]
    assert [part.shape for part in second["rows"]] == [(0, 3), (0,)]
    for found in (first, second):
        assert torch.equal(found["summed"][0], torch.full((2, 2), 3.0))
        assert found["summed"][1] == 1
        assert found["shared"].tolist() == [0, 0]
        assert found["launcher"] == "torchrun --nproc-per-node 2 -m "
        assert found["cores"] == (max(1, num_cores() // 2), num_cores())  # who decides has those of who waits
        assert found["refused"] == (["one", "two"], "the way out")
        assert found["again"] == 0
    assert (first["apart"], second["apart"]) == ((1, 0, True), (1, 1, False))


def test_who_loses_another_process_is_told_and_one_alone_speaks() -> None:
    def work(rank: int) -> bool:
        with ranks.together():
            try:
                if rank == 1:
                    raise finetune.DataError("an image is gone")
                ranks.agreed(lambda: None)
                ranks.gathered(None)
            except finetune.FinetuneError:
                (Path(os.environ["FINETUNE_CACHE"]) / f"{rank}-{ranks.speaks()}").touch()
                raise
        return True

    first, second = launched(2, work)
    assert isinstance(first.error, ranks.LostProcessError)
    assert "another process of this run has ended" in first.error.message
    assert second.error is not None and second.error.message == "an image is gone"
    said = sorted(path.name for path in Path(os.environ["FINETUNE_CACHE"]).iterdir())
    assert said == ["0-False", "1-True"]


def test_a_connection_that_was_there_is_used_and_left(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[int, bool]:
        torch.distributed.init_process_group("gloo")
        with ranks.together():
            agreed = ranks.agreed(lambda: rank)
        return agreed, torch.distributed.is_initialized()

    assert values(launched(2, work)) == [(0, True), (0, True)]


def test_a_launcher_that_divides_the_network_is_refused(monkeypatch) -> None:
    there = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**there, "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(finetune.ResourceError, match="FSDP"), ranks.together():
        pass


@pytest.mark.parametrize("count", [2, 3])
def test_each_image_of_a_batch_and_of_a_pass_is_in_one_process(monkeypatch, count: int) -> None:
    def orders(seed: int | None) -> list[list[list[int]]]:
        found = []
        for rank in range(count):
            monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
            found.append([[key[2] for key in batch] for batch in Order(17, batch_size=5, seed=seed)])
        return found

    whole = [[key[2] for key in batch] for batch in Order(17, batch_size=5, seed=0)]
    monkeypatch.setattr(ranks, "count", lambda: count)
    drawn = orders(0)
    assert [[index for part in parts for index in part] for parts in zip(*drawn, strict=True)] == whole
    in_order = orders(None)
    assert [index for part in in_order for batch in part for index in batch] == list(range(17))


def test_batch_norm_of_two_parts_is_that_of_the_whole() -> None:
    whole = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    factors = torch.linspace(-1, 1, whole.numel()).view_as(whole)

    def normalised(values: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        model = nn.Sequential(nn.BatchNorm2d(3)).train()
        values = values.clone().requires_grad_()
        with shared_statistics(model):
            out = model(values)
        (out * factors).sum().backward()
        norm = model[0]
        slopes = [norm.weight.grad, norm.bias.grad]
        ranks.sum_up(slopes)
        return out.detach(), values.grad, *slopes, norm.running_mean, norm.running_var

    def work(rank: int) -> tuple[Tensor, ...]:
        own = slice(0, 4) if rank == 0 else slice(4, 7)
        with ranks.together():
            return normalised(whole[own], factors[own])

    expected, parts = normalised(whole, factors), values(launched(2, work))
    for place, tensor in enumerate(expected):
        found = torch.cat([part[place] for part in parts]) if place < 2 else parts[0][place]
        torch.testing.assert_close(found, tensor, rtol=1e-5, atol=1e-5)


def test_a_network_whose_statistics_stand_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    images = torch.randn(4, 3, 2, 2)
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm).eval()
    with shared_statistics(model):
        found = model(images)
    assert torch.equal(found, batch_norm(images, norm.running_mean, norm.running_var, norm.weight, norm.bias))
