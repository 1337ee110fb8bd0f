"""Batches through a trunk that keeps nothing: no pass is padded but the last, and no number depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, fx, nn

from finetune.features import sources
from finetune.features.divide import Trunk
from finetune.features.sources import TrunkBatches, run_trunk


class Images:
    """Batches of sizes that no trunk has."""

    def __init__(self, *counts: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [torch.rand(count, 3, 8, 8, generator=generator) for count in counts]
        self.num_images = sum(counts)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for number, images in enumerate(self.batches[start:], start):
            yield images, torch.full((len(images),), number)


@pytest.fixture
def trunk() -> Trunk:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            maps = self.network(images)
            return maps, maps.mean(dim=(2, 3))

    return Trunk(fx.symbolic_trace(Both()), [1, 1])


@pytest.mark.parametrize("counts", [(7, 7, 6), (16, 16), (5,), (40, 3), (1, 1, 1), (15, 2, 15), (8, 8, 8, 9)])
@pytest.mark.parametrize("start", [0, 1])
def test_batches_are_those_of_a_trunk_that_runs_on_each(trunk: Trunk, counts: tuple[int, ...], start: int) -> None:
    images = Images(*counts)
    found = list(TrunkBatches(trunk, images, autocast=nullcontext).epoch(start=start))
    expected = list(images.epoch(start=start))
    assert len(found) == len(expected)
    for (rows, targets), (pixels, wanted) in zip(found, expected, strict=True):
        alone = run_trunk(trunk, pixels, autocast=nullcontext)
        assert torch.equal(targets, wanted)
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(rows, alone, strict=True))


def test_small_batches_go_through_together(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def counted(trunk: Trunk, images: Tensor, **more: object) -> tuple[Tensor, ...]:
        passes.append(len(images))
        return run_trunk(trunk, images, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "run_trunk", counted)
    list(TrunkBatches(trunk, Images(*[4] * 9), autocast=nullcontext).epoch())
    assert passes == [16, 16, 4]


def test_rows_lie_in_memory_as_the_trunk_puts_them(trunk: Trunk) -> None:
    trunk.to(memory_format=torch.channels_last)
    images = Images(7, 7, 6)
    images.batches = [batch.to(memory_format=torch.channels_last) for batch in images.batches]
    for rows, _ in TrunkBatches(trunk, images, autocast=nullcontext).epoch():
        assert rows[0].is_contiguous(memory_format=torch.channels_last) and not rows[0].is_contiguous()


def test_nothing_yields_nothing(trunk: Trunk) -> None:
    assert list(TrunkBatches(trunk, Images(), autocast=nullcontext).epoch()) == []
