"""Batches for a tail: boundary tensors from the trunk as images come, or from the cache.

Both kinds run the trunk in one fixed batch size, padding the last batch: some networks' results
depend on the batch size, but none on the content of other rows. So cached and uncached runs train on
the same bits.

Letters: B batch, N images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.loaders import ImageBatches, Order
from finetune.data.read_ahead import read_ahead
from finetune.features.divide import Trunk
from finetune.features.store import Layout
from finetune.randomness import derive
from finetune.threads import threads_at

ON_GPU, ON_CPU = 128, 16  # images that go through a trunk at once
Autocast = Callable[[], AbstractContextManager[object]]
Boundary = tuple[Tensor, ...]


def trunk_batch(device: torch.device) -> int:
    """Return the batch size in which trunks run on a device."""
    return ON_GPU if device.type == "cuda" else ON_CPU


def of_trunk_batch(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W), repeated or cut to the batch size in which trunks run."""
    size = trunk_batch(images.device)
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size]


def run_trunk(trunk: Trunk, images: Tensor, *, autocast: Autocast) -> Boundary:
    """Run a trunk over images (B, 3, H, W) in its fixed batch size and return boundary tensors (B, ...)."""
    size = trunk_batch(images.device)
    parts = []
    for chunk in torch.split(images, size):
        count = len(chunk)
        if count < size:
            chunk = torch.cat([chunk, chunk.new_zeros(size - count, *chunk.shape[1:])])
        with autocast():
            parts.append(tuple(tensor[:count].float() for tensor in trunk(chunk)))
    return joined(trunk, parts)


def through_trunk(
    trunk: Trunk, batches: Iterable[Tensor], *, autocast: Autocast
) -> Generator[tuple[Boundary, int], None, None]:
    """Yield for each batch of images (B, 3, H, W) its boundary tensors (B, ...) and B, in order.

    As many batches as the trunk's engine computes at a time run in parallel, each in a thread of its own: a batch of a
    small network keeps only one core busy.
    """
    run = partial(run_trunk, trunk, autocast=autocast)
    if trunk.at_once == 1:
        yield from ((run(images), len(images)) for images in batches)
        return
    alone = ([images] for images in _by_one_thread(batches))
    for (boundary,) in read_ahead(run, alone, num_threads=trunk.at_once, ahead=trunk.at_once + 1):
        yield boundary, len(boundary[0])


def _by_one_thread(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield batches, each made by a single thread of torch.

    A second would share its core with the engine and the workers, and the first would wait for it at every operation.
    """
    remaining = iter(batches)
    while True:
        with threads_at(1):
            images = next(remaining, None)
        if images is None:
            return
        yield images


def joined(trunk: Trunk, parts: Sequence[Boundary]) -> Boundary:
    """Return boundary tensors of several passes as one, laid out in memory as the trunk does."""
    return trunk.laid(torch.cat(column) for column in zip(*parts, strict=True))


class TrunkBatches:
    """Image batches with the trunk run on each: nothing is kept.

    The images of several small batches go through the trunk together, so that no pass but the last of
    an epoch is padded: what a row yields depends on no other row.
    """

    def __init__(self, trunk: Trunk, images: ImageBatches, *, autocast: Autocast) -> None:
        self.trunk, self.images, self.autocast = trunk, images, autocast
        self.num_images = images.num_images

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Boundary, Tensor]]:
        """Yield (boundary tensors, class indices) from batch `start` of an epoch on."""
        waiting: deque[Tensor] = deque()  # class indices of the batches whose rows are not all there
        rows: list[Boundary] = []
        passes = self._passes(self.images.epoch(epoch, phase=phase, start=start), waiting)
        for boundary, _ in through_trunk(self.trunk, passes, autocast=self.autocast):
            rows.append(boundary)
            if sum(len(part[0]) for part in rows) >= len(waiting[0]):  # whole batches are joined once
                yield from self._whole(waiting, rows)

    @staticmethod
    def _passes(batches: Iterable[tuple[Tensor, Tensor]], waiting: deque[Tensor]) -> Iterator[Tensor]:
        """Yield the images of some batches in the trunk's batch size (fewer at the end); note their targets."""
        held: Tensor | None = None
        for images, targets in batches:
            waiting.append(targets)
            size = trunk_batch(images.device)
            held = images if held is None else torch.cat([held, images])
            count = len(held) // size * size
            if count:
                yield from torch.split(held[:count], size)
                held = held[count:]
        if held is not None and len(held):
            yield held

    def _whole(self, waiting: deque[Tensor], rows: list[Boundary]) -> Iterator[tuple[Boundary, Tensor]]:
        """Yield the batches whose rows are all there; the other `rows` stay."""
        held = joined(self.trunk, rows)
        while waiting and len(waiting[0]) <= len(held[0]):
            targets = waiting.popleft()
            count = len(targets)
            yield self.trunk.laid(tensor[:count] for tensor in held), targets
            held = tuple(tensor[count:] for tensor in held)
        rows[:] = [held] if len(held[0]) else []


class CachedBatches:
    """Rows of the cache in the order that image batches would have, each of one drawn view."""

    def __init__(
        self,
        views: Sequence[np.ndarray],
        places: Sequence[np.ndarray],
        *,
        layout: Layout,
        laid: Callable[[Boundary], Boundary],
        targets: Tensor,
        batch_size: int,
        device: torch.device,
        seed: int | None,
        shares: NDArray[np.float64] | None = None,
        shards: NDArray[np.int64] | None = None,
    ) -> None:
        """Take for each view its rows (M, row_bytes) and the place (N,) of every image in them.

        `laid` puts boundary tensors into memory as the trunk does; `shares` (N,) are how often images are drawn, in the
        order that those of `shards` (N,) have without a cache.
        """
        self.laid = laid
        self.views, self.places, self.layout, self.targets = views, places, layout, targets
        self.order = Order(len(targets), batch_size=batch_size, seed=seed, shares=shares, shards=shards)
        self.device, self.seed = device, seed
        self.num_images = len(targets)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Boundary, Tensor]]:
        """Yield (boundary tensors, class indices) from batch `start` of an epoch on.

        Without a seed an epoch is one view of every image, in order.
        """
        self.order.phase, self.order.epoch, self.order.start = phase, epoch, start
        drawn = self._draw(phase, epoch)
        for keys in self.order:
            index = np.array([key[2] for key in keys])
            rows = self._rows(index, drawn[index])
            boundary = self.laid(tuple(tensor.to(self.device) for tensor in self.layout.unpack(rows)))
            yield boundary, self.targets[torch.from_numpy(index)].to(self.device)

    def _rows(self, index: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return the rows (B, row_bytes) of images, each from its view."""
        rows = np.empty((len(index), self.layout.row_bytes), dtype=np.uint8)
        for view in np.unique(views):
            here = views == view
            rows[here] = self.views[view][self.places[view][index[here]]]
        return rows

    def _draw(self, phase: int, epoch: int) -> np.ndarray:
        """Return which view each image shows in an epoch."""
        if len(self.views) == 1 or self.seed is None:
            return np.full(self.num_images, epoch % len(self.views))
        generator = np.random.default_rng(derive(self.seed, "view", phase, epoch))
        return generator.integers(len(self.views), size=self.num_images)
