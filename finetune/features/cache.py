"""What a phase trains on: the tail with cached boundary tensors, or the model with images.

The trunk runs once for each image and view, whatever the number of epochs; what it yields is kept
for later phases, trials and runs (see `store`). View 0 is the plain one; the others are augmented,
each by a seed of its own, and every epoch draws one view for each image.

Letters: B batch, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
from filelock import Timeout
from torch import Tensor

from finetune.data.decode import DECODE_VERSION
from finetune.data.loaders import ImageBatches, ImageDataset
from finetune.data.pixels import PixelCache
from finetune.data.transforms import augmented_view, plain_view
from finetune.device import available_memory, is_channels_last
from finetune.entries import entries_folder, entry_name, make_room, open_entry
from finetune.errors import ResourceError
from finetune.features.divide import Trunk
from finetune.features.sources import Autocast, CachedBatches, run_trunk, trunk_batch
from finetune.features.store import Layout, RowsInMemory, RowsOnDisk
from finetune.randomness import derive
from finetune.settings import AugmentSection, CacheSection
from finetune.types import Event, OnEvent, Preprocessing, Sample

MEMORY_SHARE = 0.25  # of what is free: rows beyond that are read from the file as they are needed
LOCK_SECONDS = 3600
FEWEST_IN_ONE_PASS = 500  # images that are worth starting workers for a single pass
Rows = RowsOnDisk | RowsInMemory


@dataclass(frozen=True, slots=True)
class Known:
    """Boundary tensors (N, ...) that another pass has yielded for the plain view of some images, by digest."""

    digests: tuple[str, ...]
    boundary: tuple[Tensor, ...]


@dataclass(slots=True)
class FeatureCache:
    """Everything that an entry's key and filling depend on, but the trunk and the samples."""

    root: Path
    preprocessing: Preprocessing
    augment: AugmentSection
    settings: CacheSection
    network: dict[str, Any]  # name and arguments, for the key and for `cache ls`
    seed: int
    device: torch.device
    precision: str
    workers: int
    autocast: Autocast
    on_event: OnEvent
    raise_if_stopped: Callable[[], None]  # a signal stops the filling too; what is filled stays
    pixels: PixelCache | None = None

    def batches(
        self,
        trunk: Trunk,
        shapes: tuple[tuple[int, ...], ...],
        samples: Sequence[Sample],
        *,
        views: int,
        batch_size: int,
        seed: int | None,
        known: Known | None = None,
    ) -> CachedBatches | None:
        """Yield cached batches of samples, the cache filled as far as it was not; None when they do not fit.

        `shapes` are those of the trunk's boundary tensors for one image. What is `known` is not computed
        again, if the trunk yields the same bits for the first images of it.
        """
        layout = Layout(shapes, self.settings.precision)
        digests = [sample.digest for sample in samples]
        rows, places = [], []
        for view in range(views):
            kept = self._kept(trunk, layout, view, needed=len(set(digests)) * layout.row_bytes * views)
            if kept is None:
                return None
            self._fill(kept, trunk, samples, view, known if view == 0 else None)
            places.append(kept.places(digests))
            rows.append(kept.mapped())
        if sum(len(set(digests)) * layout.row_bytes for _ in rows) < MEMORY_SHARE * available_memory():
            rows = [np.ascontiguousarray(view[place]) for view, place in zip(rows, places, strict=True)]
            places = [np.arange(len(samples))] * views
        targets = torch.tensor([sample.target.index for sample in samples])
        return CachedBatches(
            rows,
            places,
            layout=layout,
            laid=trunk.laid,
            targets=targets,
            batch_size=batch_size,
            device=self.device,
            seed=seed,
        )

    def _kept(self, trunk: Trunk, layout: Layout, view: int, *, needed: int) -> Rows | None:
        if self.settings.features == "memory":
            return self._in_memory(layout, needed)
        folder, key = entries_folder(self.settings.folder), self._key(trunk, layout, view)
        limit = int(self.settings.limit * 2**30)
        if not make_room(folder, needed=needed, limit=limit, keep=entry_name(key)):
            return None
        try:
            return RowsOnDisk(open_entry(folder, key), layout)
        except ResourceError as error:
            self.on_event(Event("warning", {"text": f"{error.message}; kept in memory instead"}))
            return self._in_memory(layout, needed)

    @staticmethod
    def _in_memory(layout: Layout, needed: int) -> RowsInMemory | None:
        return RowsInMemory(layout) if needed < MEMORY_SHARE * available_memory() else None

    def _fill(self, kept: Rows, trunk: Trunk, samples: Sequence[Sample], view: int, known: Known | None) -> None:
        """Run the trunk over the images that are not kept yet; another process that does so is waited for."""
        try:
            with kept.lock.acquire(timeout=LOCK_SECONDS):
                kept.refresh()
                damaged = kept.drop_damaged([sample.digest for sample in samples])
                if damaged:
                    text = f"{len(damaged)} rows of the feature cache are damaged and computed again"
                    self.on_event(Event("warning", {"text": text}))
                missing = {s.digest: s for s in samples if s.digest not in kept}
                if missing and known is not None:
                    self._adopt(kept, trunk, missing, known)
                    missing = {digest: sample for digest, sample in missing.items() if digest not in kept}
                if missing:
                    self._compute(kept, trunk, list(missing.values()), view)
                kept.touch()
        except Timeout as error:
            raise ResourceError(f"another process holds {error.lock_file} for an hour") from error
        except OSError as error:
            raise ResourceError(
                f"the feature cache cannot be used: {error.strerror or error}",
                hint="Go without: --set cache.features=memory, or name another place: --set cache.folder=DIR.",
            ) from error

    def _adopt(self, kept: Rows, trunk: Trunk, missing: dict[str, Sample], known: Known) -> None:
        """Take the rows of another pass, once the trunk has yielded the same bits for a batch of its images."""
        places = {digest: place for place, digest in enumerate(known.digests) if digest in missing}
        if tuple(tuple(tensor.shape[1:]) for tensor in known.boundary) != kept.layout.shapes or not places:
            return
        rows = kept.layout.pack([tensor[list(places.values())] for tensor in known.boundary])
        digests = list(places)
        checked = digests[: trunk_batch(self.device)]
        self._compute(kept, trunk, [missing[digest] for digest in checked], 0)
        if np.array_equal(kept.mapped()[kept.places(checked)], rows[: len(checked)]) and len(digests) > len(checked):
            kept.add(digests[len(checked) :], rows[len(checked) :])

    def _compute(self, kept: Rows, trunk: Trunk, samples: Sequence[Sample], view: int) -> None:
        transform = plain_view(self.preprocessing) if view == 0 else augmented_view(self.preprocessing, self.augment)
        seed = None if view == 0 else derive(self.seed, "view", view)
        dataset = ImageDataset(self.root, samples, transform, self.preprocessing, seed=seed, pixels=self.pixels)
        images = ImageBatches(
            dataset,
            preprocessing=self.preprocessing,
            batch_size=trunk_batch(self.device),
            device=self.device,
            workers=self.workers if len(samples) >= FEWEST_IN_ONE_PASS else 0,
        )
        task = "cache features" if view == 0 else f"cache features, view {view}"
        done = 0
        for batch, _ in images.epoch():
            boundary = run_trunk(trunk, batch, autocast=self.autocast)
            kept.add([s.digest for s in samples[done : done + len(batch)]], kept.layout.pack(boundary))
            done += len(batch)
            self.raise_if_stopped()
            self.on_event(Event("progress", {"task": task, "done": done, "total": len(samples)}))

    def _key(self, trunk: Trunk, layout: Layout, view: int) -> dict[str, Any]:
        is_augmented = view > 0
        return {
            "kind": "features",
            "shapes": layout.shapes,
            "precision": layout.precision,
            "network": self.network,
            "trunk": trunk_digest(trunk),
            "view": view,
            "augment": self.augment.model_dump() if is_augmented else None,
            "seed": self.seed if is_augmented else None,
            "preprocessing": [str(value) for value in _facts(self.preprocessing)],
            "decode": DECODE_VERSION,
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "arithmetic": self.precision,
            "batch": trunk_batch(self.device),
            "channels_last": any(map(is_channels_last, trunk.graph.parameters())),
            "versions": {"torch": torch.__version__, "timm": timm.__version__, "pillow": PIL.__version__},
        }


def trunk_digest(trunk: Trunk) -> str:
    """Yield the hash of what a trunk computes: its code, its layers' arguments and its weights."""
    digest = blake2b(digest_size=16)
    digest.update(trunk.graph.code.encode())
    for name, module in trunk.graph.named_modules():
        if not any(True for _ in module.children()):
            digest.update(f"{name} {module!r}".encode())
    for name, tensor in sorted(trunk.graph.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _facts(preprocessing: Preprocessing) -> tuple[object, ...]:
    return tuple(getattr(preprocessing, name) for name in preprocessing.__slots__)
