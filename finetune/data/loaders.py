"""Batches of images, whose order and augmentations depend on nothing but their place.

The order is drawn from (seed, phase, epoch), an image's augmentation from (seed, phase, epoch,
content): the number of workers and what was drawn before do not matter, and an epoch can be entered
at any batch. Letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from finetune import ranks
from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.data.targets import target_array
from finetune.errors import DataError, ResourceError
from finetune.images.decode import UndecodableError, read
from finetune.images.pixels import PixelCache
from finetune.images.shards import SUFFIX
from finetune.images.transforms import View, normalise
from finetune.process import num_cores
from finetune.randomness import derive, forked
from finetune.types import Preprocessing, Sample

IN_SHARD = f"{SUFFIX}/"
WINDOW = 4096  # images: how far a drawn order may depart from their order in shards
FEWEST_FORKED, FEWEST_SPAWNED = 100, 500  # images that are worth a worker: a forked one starts at once

Key = tuple[int, int, int]  # phase, epoch, index of the sample


class Texts:
    """Many texts in one buffer: a million separate objects would be copied into every worker, page by page."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts = [os.fsencode(text) for text in texts]
        self.ends = np.cumsum([0, *map(len, parts)])
        self.content = b"".join(parts)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.content[self.ends[index] : self.ends[index + 1]])


class ImageDataset(Dataset[tuple[Tensor, Any] | DataError]):
    """Samples as (image (C, H, W), class index or row of a task's targets), fetched by (phase, epoch, index).

    What the pixel cache holds is not decoded. What cannot be read is returned as an error, not raised: torch would wrap
    it in the traceback of its worker.
    """

    def __init__(
        self,
        root: str | Path,
        samples: Sequence[Sample],
        view: View,
        preprocessing: Preprocessing,
        *,
        seed: int | None,
        pixels: PixelCache | None = None,
    ) -> None:
        self.root, self.view, self.seed = Path(root), view, seed
        self.value_range, self.bands = preprocessing.value_range, preprocessing.bands
        self.files = Texts(sample.file for sample in samples)
        self.digests = Texts(sample.digest for sample in samples)
        self.targets, self.shards = target_array(samples), shards_of(samples)
        is_served = pixels is not None and pixels.serves(preprocessing)
        self.pixels = pixels.find([sample.digest for sample in samples]) if pixels and is_served else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> tuple[Tensor, Any] | DataError:
        phase, epoch, index = key
        name = self.digests[index] or self.files[index]
        place = None if self.seed is None else derive(self.seed, "image", phase, epoch, name)
        try:
            with nullcontext() if place is None else forked(place):
                return self._tensor(index), self.targets[index]
        except UndecodableError as error:
            file = self.files[index]
            return DataError(f"{file} could be read when the data was scanned and cannot now: {error.message}")

    def _tensor(self, index: int) -> Tensor:
        kept = self.pixels.tensor(index, self.view) if self.pixels else None
        if kept is not None:
            return kept
        return self.view(read(self.root / self.files[index], value_range=self.value_range, bands=self.bands).content)


def shards_of(samples: Sequence[Sample]) -> NDArray[np.int64] | None:
    """Return the number (N,) of the shard that each sample lies in; None for data that lies in files of its own."""
    if not samples or IN_SHARD not in samples[0].file:
        return None
    numbers: NDArray[np.int64] = np.unique(
        [sample.file.partition(IN_SHARD)[0] for sample in samples], return_inverse=True
    )[1].astype(np.int64)
    return numbers


def _collate(items: list[tuple[Tensor, Any] | DataError]) -> Any:
    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(items)


class Order(Sampler[list[Key]]):
    """The batches of one epoch; evenly sized, so that from batch size 3 on none is left with a single image.

    If a run has several processes, each has its part: of every batch if the order is drawn, else of the whole.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        seed: int | None,
        shares: NDArray[np.float64] | None = None,
        shards: NDArray[np.int64] | None = None,
    ) -> None:
        """Take how many there are; with `shares` (N,) images are drawn by these probabilities, with replacement.

        Images in `shards` (N,) are drawn shard by shard, so that what is read lies together.
        """
        self.count, self.batch_size, self.seed, self.shares, self.shards = count, batch_size, seed, shares, shards
        self.rank, self.num_ranks = ranks.rank(), ranks.count()
        self.own = np.arange(count) if seed is not None else self._part(np.arange(count))
        self.phase = self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.own
        if self.seed is not None:
            generator = np.random.default_rng(derive(self.seed, "order", self.phase, self.epoch))
            drawn = self.shares is not None
            order = generator.choice(order, self.count, p=self.shares) if drawn else generator.permutation(order)
            order = order if self.shards is None else self._by_shard(order, self.shards, generator)
        for batch in np.array_split(order, max(1, len(self)))[self.start : len(self)]:
            own = batch if self.seed is None else self._part(batch)
            yield [(self.phase, self.epoch, int(index)) for index in own]

    @staticmethod
    def _by_shard(
        order: NDArray[np.int64], shards: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return drawn images as they lie in shards, themselves in a drawn order, each moved by less than `WINDOW`."""
        place = generator.permutation(shards.max() + 1)[shards[order]]
        lying: NDArray[np.int64] = order[np.lexsort((order, place))]
        moved = np.arange(len(lying)) + generator.uniform(0, WINDOW, len(lying))
        return lying[np.argsort(moved, kind="stable")]

    def _part(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the part of this process."""
        return indices if self.num_ranks == 1 else np.array_split(indices, self.num_ranks)[self.rank]


class ImageBatches:
    """Normalised batches on the device, an epoch at a time.

    `seed` draws order and augmentation, by `shares` (N,) where they are given; without one the samples come in order,
    for evaluation.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        preprocessing: Preprocessing,
        batch_size: int,
        device: torch.device,
        workers: int = 0,
        seed: int | None = None,
        shares: NDArray[np.float64] | None = None,
        is_drawn_alone: bool = False,
    ) -> None:
        """Take a data set; without workers, plain views are made by threads.

        Augmented views draw from the generators of the process: in a (single) thread only with `is_drawn_alone`,
        which says that nothing else draws from them meanwhile.
        """
        self.dataset, self.preprocessing = dataset, preprocessing
        is_plain = dataset.seed is None
        self.num_threads = 0 if workers else num_cores(most=MOST_THREADS) if is_plain else int(is_drawn_alone)
        self.device = device
        self.num_images = len(dataset)
        self.order = Order(len(dataset), batch_size=batch_size, seed=seed, shares=shares, shards=dataset.shards)
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self.order,
            collate_fn=_collate,
            generator=torch.Generator(),  # else every epoch draws from the global one
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_alone,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W), targets (B, ...)) from batch `start` of an epoch on.

        Raises:
            DataError: an image that was scanned can no longer be read.
            ResourceError: a worker process died.
        """
        self.order.phase, self.order.epoch, self.order.start = phase, epoch, start
        with lost_workers():
            for batch in self._read_ahead() if self.num_threads else self.loader:
                if isinstance(batch, DataError):
                    raise DataError(
                        batch.message, hint=batch.hint
                    )  # itself it would hold this frame, and workers, in a cycle
                images, targets = batch
                images = images.to(self.device, non_blocking=True)
                yield normalise(images, self.preprocessing), targets.to(self.device, non_blocking=True)

    def _read_ahead(self) -> Iterator[Any]:
        """Yield batches that threads have made while the one before was computed."""
        return map(_collate, read_ahead(self.dataset.__getitem__, self.order, num_threads=self.num_threads))


def _leave_signals_alone(_: int) -> None:
    """Have a worker ignore a signal to its whole process group: the run that it works for ends it.

    What comes from that run itself still ends it, so SIGTERM is not just ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_the_parent, daemon=True).start()


def _end_by_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def lost_workers() -> Iterator[None]:
    """Turn torch's report of a dead worker, which may come at any line of the block, into our error.

    Raises:
        ResourceError: a process that decodes images died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ResourceError(
            f"a process that decodes images died ({str(error).split('. ')[0].strip().rstrip('.')})",
            hint="Most often memory ran out, or /dev/shm is small: use fewer (--workers 0).",
        ) from error


def auto_workers(num_images: int, device: torch.device) -> int:
    """Return how many processes make batches: none for sets so small that starting processes would cost more."""
    cores = num_cores()
    fewest = FEWEST_FORKED if multiprocessing.get_start_method() == "fork" else FEWEST_SPAWNED
    if num_images < fewest or cores < 2:
        return 0
    return min(cores, 8) if device.type != "cpu" else max(1, min(cores // 2, 4))
