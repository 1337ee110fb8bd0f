"""What a phase trains on: the tail with cached boundary tensors, or the model with images.

The trunk runs once for each image and view, whatever the number of epochs; what it yields is kept
for later phases, trials and runs (see `store`). View 0 is the plain one; the others are augmented,
each by a seed of its own, and every epoch draws one view for each image.

Letters: B batch, N images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune import ranks
from finetune.cache_entries import entries_folder, entry_name, find_entry, make_room, open_entry
from finetune.data.loaders import ImageBatches, ImageDataset, shards_of
from finetune.data.targets import target_array
from finetune.device import available_memory, is_channels_last
from finetune.errors import ResourceError
from finetune.features.divide import Trunk
from finetune.features.sources import Autocast, Boundary, CachedBatches, through_trunk, trunk_batch
from finetune.features.store import Layout, RowsInMemory, RowsOnDisk
from finetune.images.augmentation import pieces_of
from finetune.images.decode import DECODE_VERSION
from finetune.images.pixels import PixelCache
from finetune.images.transforms import augmented_view, plain_view
from finetune.randomness import derive
from finetune.sections import AugmentSection
from finetune.settings import CacheSection
from finetune.types import NEVER, Event, OnEvent, Preprocessing, Sample, StopSign
from finetune.wording import counted

MEMORY_SHARE = 0.25  # of what is free: rows beyond that are read from the file as they are needed
SELDOM = 1.0  # seconds after which rows are written: flushing the disk for every batch would take longer than the batch
MOST_UNKEPT = 1024  # rows that wait for it
FEWEST_IN_ONE_PASS = 500  # images that are worth starting workers for a single pass
Rows = RowsOnDisk | RowsInMemory


@dataclass(frozen=True, slots=True)
class Known:
    """Boundary tensors (N, ...) from another pass over the plain view of some images, by digest."""

    digests: tuple[str, ...]
    boundary: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """Where the outputs of a trunk are kept, view by view, once there is room for them."""

    trunk: Trunk
    layout: Layout
    views: tuple[Rows, ...]


@dataclass(slots=True)
class _Filling:
    """A view that is being filled: which rows are missing, and which are computed but not kept yet.

    Of several processes of a run each computes its part of the batches, and the first keeps the rows; what lies in
    memory is kept by all.
    """

    kept: Rows
    samples: Sequence[Sample]
    view: int
    task: str
    held: ExitStack  # keeps other processes out until the view is filled
    own: Sequence[Sample] = field(init=False)  # what this process computes
    num_own: int = 0
    num_done: int = 0
    digests: list[str] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    waits_since: float = 0.0
    rows: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        self.own = self.samples[ranks.rank() :: ranks.count()]

    def take(self, passes: Iterator[tuple[Boundary, int]]) -> None:
        """Take the rows of the next images from every process."""
        digests, rows = [], None
        if self.num_own < len(self.own):
            boundary, count = next(passes)
            digests = [sample.digest for sample in self.own[self.num_own : self.num_own + count]]
            rows, self.num_own = self.kept.layout.pack(boundary), self.num_own + count
        for names, part in (ranks.exchanged if self.kept.is_own else ranks.gathered)((digests, rows)):
            if part is not None:
                self.add(names, part)

    def add(self, digests: Sequence[str], rows: np.ndarray) -> None:
        """Take the rows of some images."""
        if not self.parts:
            self.waits_since = time.monotonic()
        self.digests += digests
        self.parts.append(rows)
        self.num_done += len(digests)

    def keep_seldom(self) -> None:
        """Keep the waiting rows if they have waited long, are many, or are the last."""
        is_last = self.num_done == len(self.samples)
        if is_last or time.monotonic() - self.waits_since > SELDOM or sum(map(len, self.parts)) >= MOST_UNKEPT:
            self.keep()

    def keep(self) -> None:
        """Keep what was computed."""
        if self.parts:
            self.kept.add(self.digests, np.concatenate(self.parts))
        self.digests.clear()
        self.parts.clear()

    def finish(self) -> None:
        """Map all rows of the view, and let other processes fill it."""
        ranks.agreed(self.kept.touch)  # what the first has added is there now
        if not ranks.is_first():
            self.kept.refresh()
        self.rows = self.kept.mapped()
        self.held.close()


@dataclass(slots=True)
class FeatureCache:
    """Everything that an entry's key and filling depend on, except the trunk and the samples."""

    root: Path
    preprocessing: Preprocessing
    augment: AugmentSection
    settings: CacheSection
    network: dict[str, Any]  # name and arguments, for the key and for `cache ls`
    seed: int
    device: torch.device
    precision: str
    workers: int  # for views that are drawn, by a thread where there are none
    plain_workers: int  # for plain ones, by several threads where there are none
    autocast: Autocast
    on_event: OnEvent
    stop: StopSign = NEVER  # a signal stops the filling too; what is filled stays
    pixels: PixelCache | None = None

    def room(
        self, trunk: Trunk, shapes: tuple[tuple[int, ...], ...], needs: Sequence[tuple[Sequence[Sample], int]]
    ) -> Room | None:
        """Return where rows for some samples, each with its number of views, are kept; None when they do not fit.

        `shapes` are those of the trunk's boundary tensors for one image. Rows that are on disk already
        need no room.
        """
        layout = Layout(shapes, self.settings.precision)
        count = max(views for _, views in needs)
        wanted = [
            {sample.digest for samples, views in needs if view < views for sample in samples} for view in range(count)
        ]
        keys = ranks.agreed(lambda: self._keys(trunk, layout, count))
        place = ranks.agreed(lambda: self._place(layout, wanted, keys))
        if place == "disk":
            folder = entries_folder(self.settings.folder)
            return Room(trunk, layout, tuple(RowsOnDisk(open_entry(folder, key), layout) for key in keys))
        return Room(trunk, layout, tuple(RowsInMemory(layout) for _ in keys)) if place == "memory" else None

    def _place(self, layout: Layout, wanted: Sequence[set[str]], keys: Sequence[dict[str, Any]]) -> str:
        """Return where rows are kept: "disk", "memory" or "" (nowhere); room is made for them on disk."""
        needed = sum(map(len, wanted)) * layout.row_bytes
        in_memory = "memory" if needed < MEMORY_SHARE * available_memory() else ""
        if self.settings.features == "memory":
            return in_memory
        folder = entries_folder(self.settings.folder)
        missing = layout.row_bytes * sum(
            _num_missing(folder, key, layout, digests) for key, digests in zip(keys, wanted, strict=True)
        )
        limit, own = int(self.settings.limit * 2**30), [entry_name(key) for key in keys]
        if not make_room(folder, needed=needed, limit=limit, keep=own, missing=missing):
            return ""
        try:
            for key in keys:
                open_entry(folder, key)
            return "disk"
        except ResourceError as error:
            self.on_event(Event.warning(f"{error.message}; kept in memory instead"))
            return in_memory

    def batches(
        self,
        room: Room,
        samples: Sequence[Sample],
        *,
        views: int,
        batch_size: int,
        seed: int | None,
        known: Known | None = None,
        shares: NDArray[np.float64] | None = None,
    ) -> CachedBatches:
        """Return cached batches of samples, after filling what the cache lacks.

        What is `known` is not computed again if the trunk yields the same bits for its first images.
        """
        layout = room.layout
        digests = [sample.digest for sample in samples]
        numbers = [""] if views == 1 else [f", view {view + 1} of {views}" for view in range(views)]
        rows = self._filled(room, samples, [f"cache features{number}" for number in numbers], known)
        places = [kept.places(digests) for kept in room.views[:views]]
        if sum(len(set(digests)) * layout.row_bytes for _ in rows) < MEMORY_SHARE * available_memory():
            rows = [np.ascontiguousarray(view[place]) for view, place in zip(rows, places, strict=True)]
            places = [np.arange(len(samples))] * views
        targets = torch.from_numpy(target_array(samples))
        return CachedBatches(
            rows,
            places,
            layout=layout,
            laid=room.trunk.laid,
            targets=targets,
            batch_size=batch_size,
            device=self.device,
            seed=seed,
            shares=shares,
            shards=shards_of(samples),
        )

    def _filled(
        self, room: Room, samples: Sequence[Sample], tasks: Sequence[str], known: Known | None
    ) -> list[np.ndarray]:
        """Run the trunk over what is not kept yet, view by view; waits for another process that does so.

        Returns all rows of each view that are kept, mapped before another process may remove them.
        """
        try:
            with ExitStack() as stack:
                fillings = []
                for view, (kept, task) in enumerate(zip(room.views, tasks, strict=False)):
                    held = stack.enter_context(ExitStack())
                    is_known = view == 0 and (not kept.is_own or ranks.count() == 1)  # else one process would know
                    own = known if is_known else None
                    missing = set(ranks.agreed(partial(self._missing, room.trunk, kept, samples, task, own, held)))
                    needed = {sample.digest: sample for sample in samples if sample.digest in missing}
                    fillings.append(_Filling(kept, list(needed.values()), view, task, held))
                self._compute(room.trunk, fillings)
                if any(sample.digest not in filling.kept for filling in fillings for sample in samples):
                    raise ResourceError(
                        f"the feature cache of the first process is not visible to process {ranks.rank()}",
                        hint="Name a folder that all machines share: --set cache.folder=DIR; or keep it in memory:"
                        " --set cache.features=memory.",
                    )
                return [filling.rows for filling in fillings]
        except OSError as error:
            raise ResourceError(
                f"the feature cache cannot be used: {error.strerror or error}",
                hint="Do without: --set cache.features=memory, or name another place: --set cache.folder=DIR.",
            ) from error

    def _missing(
        self,
        trunk: Trunk,
        kept: Rows,
        samples: Sequence[Sample],
        task: str,
        known: Known | None,
        held: ExitStack,
    ) -> list[str]:
        """Return the digests whose rows must be computed; other processes are kept out until `held` is closed."""
        held.enter_context(kept.filling(on_event=self.on_event, stop=self.stop))
        missing = self._unkept(kept, samples)
        if missing and known is not None:
            self._adopt(kept, trunk, missing, task, known)
        return [digest for digest in missing if digest not in kept]

    def _unkept(self, kept: Rows, samples: Sequence[Sample]) -> dict[str, Sample]:
        """Return the samples that have no row, by digest; damaged rows are forgotten and reported."""
        kept.refresh()
        damaged = kept.drop_damaged([sample.digest for sample in samples])
        if damaged:
            text = f"damaged and recomputed: {counted(len(damaged), 'row')} of the feature cache"
            self.on_event(Event.warning(text))
        return {s.digest: s for s in samples if s.digest not in kept}

    def _adopt(self, kept: Rows, trunk: Trunk, missing: dict[str, Sample], task: str, known: Known) -> None:
        """Take over the rows of another pass, if the trunk yields the same bits for a batch of its images."""
        places = {digest: place for place, digest in enumerate(known.digests) if digest in missing}
        if tuple(tuple(tensor.shape[1:]) for tensor in known.boundary) != kept.layout.shapes or not places:
            return
        rows = kept.layout.pack([tensor[list(places.values())] for tensor in known.boundary])
        digests = list(places)
        checked = digests[: trunk_batch(self.device)]
        self._compute(trunk, [_Filling(kept, [missing[digest] for digest in checked], 0, task, ExitStack())])
        if np.array_equal(kept.mapped()[kept.places(checked)], rows[: len(checked)]) and len(digests) > len(checked):
            kept.add(digests[len(checked) :], rows[len(checked) :])

    def _compute(self, trunk: Trunk, fillings: Sequence[_Filling]) -> None:
        """Fill one view after the other; the first images of the next are drawn while the last ones are computed."""
        images = (batch for filling in fillings if filling.own for batch in self._images(filling))
        with closing(through_trunk(trunk, images, autocast=self.autocast)) as passes:
            for filling in fillings:
                largest = -(-len(filling.samples) // ranks.count())  # of the parts of all processes
                for _ in range(-(-largest // trunk_batch(self.device))):
                    filling.take(passes)
                    self.stop.raise_if_asked(filling.keep)
                    filling.keep_seldom()
                    self.on_event(Event.progress(filling.task, filling.num_done, len(filling.samples)))
                filling.finish()

    def _images(self, filling: _Filling) -> Iterator[Tensor]:
        """Yield batches of the images of a view that this process computes."""
        with ranks.unshared():
            batches = self.images(filling.own, filling.view)
        yield from (batch for batch, _ in batches.epoch())

    def images(self, samples: Sequence[Sample], view: int) -> ImageBatches:
        """Return the images of a view, in order, as the cache runs the trunk over them."""
        is_plain = view == 0
        transform = plain_view(self.preprocessing) if is_plain else augmented_view(self.preprocessing, self.augment)
        seed = None if is_plain else derive(self.seed, "view", view)
        dataset = ImageDataset(self.root, samples, transform, self.preprocessing, seed=seed, pixels=self.pixels)
        workers = self.plain_workers if is_plain else self.workers
        return ImageBatches(
            dataset,
            preprocessing=self.preprocessing,
            batch_size=trunk_batch(self.device),
            device=self.device,
            workers=workers if len(samples) >= FEWEST_IN_ONE_PASS else 0,
            is_drawn_alone=True,
        )

    def _keys(self, trunk: Trunk, layout: Layout, views: int) -> list[dict[str, Any]]:
        """Return the key of each view's entry: everything that its rows depend on, except the image."""
        shared = {
            "kind": "features",
            "shapes": layout.shapes,
            "precision": layout.precision,
            "network": self.network,
            "trunk": trunk_digest(trunk),
            "preprocessing": [str(value) for value in _facts(self.preprocessing)],
            "decode": DECODE_VERSION,
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "arithmetic": self.precision,
            "batch": trunk_batch(self.device),
            "channels_last": any(map(is_channels_last, trunk.graph.parameters())),
            "versions": {"torch": torch.__version__, "timm": timm.__version__, "pillow": PIL.__version__},
        }
        if trunk.engine:
            shared["engine"] = trunk.engine
        drawn = {"augment": _pieces(self.augment), "seed": self.seed}
        plain = dict.fromkeys(drawn)
        return [{**shared, "view": view, **(drawn if view else plain)} for view in range(views)]


def _num_missing(folder: Path, key: dict[str, Any], layout: Layout, digests: set[str]) -> int:
    """Return how many of these images have no row in the entry of a key."""
    entry = find_entry(folder, key)
    if entry is None:
        return len(digests)
    entry.hold(layout.row_bytes)
    return sum(digest not in entry for digest in digests)


def trunk_digest(trunk: Trunk) -> str:
    """Return the hash of what a trunk computes: its code, its layers' arguments and its weights."""
    digest = blake2b(digest_size=16)
    digest.update(trunk.graph.code.encode())
    for name, module in trunk.graph.named_modules():
        if not any(True for _ in module.children()):
            digest.update(f"{name} {module!r}".encode())
    for name, tensor in sorted(trunk.graph.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pieces(augment: AugmentSection) -> dict[str, Any] | None:
    pieces = pieces_of(augment)
    return None if pieces is None else asdict(pieces)


def _facts(preprocessing: Preprocessing) -> tuple[object, ...]:
    own = (name for name in preprocessing.__slots__ if name != "channels")  # which the network's arguments have
    later = () if preprocessing.bands.is_full else ("depth",)  # caches are older than that
    return tuple(getattr(preprocessing, name) for name in own if name not in later)
