"""What each phase of a run trains on: the tail with the feature cache where there is a trunk, else images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.freeze import freezing
from finetune.checkpoint.cache_choices import BeganCached
from finetune.data.loaders import ImageBatches
from finetune.errors import ResourceError
from finetune.features.cache import Room
from finetune.features.divide import Divided, Tail, agrees, divide
from finetune.features.engines import equip
from finetune.features.folding import folded_run, num_folded, trains_alike
from finetune.features.graphs import IndivisibleError
from finetune.features.sources import TrunkBatches, of_trunk_batch
from finetune.prepare.passes import augmented_batches, feature_cache, plain_batches, shares_drawn
from finetune.prepare.prepared import Prepared
from finetune.randomness import derive, forked
from finetune.settings import Recipe
from finetune.train.fit import Batches, Work
from finetune.types import NEVER, Event, OnEvent, Phase, Sample, Split, StopSign
from finetune.wording import counted

AUTO_VIEWS = 4


class Feeder:
    """Makes what each phase of a run trains on; phases with the same trunk share what is cached."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        on_event: OnEvent,
        stop: StopSign = NEVER,
        began: BeganCached | None = None,
    ) -> None:
        """Take a run, and how its phases began: each goes on that way, cached or not."""
        self.prepared, self.on_event, self.began = prepared, on_event, began
        num_images = len(prepared.manifest.split("train"))
        self.cache = feature_cache(prepared, num_images=num_images, on_event=on_event, stop=stop)
        self.said: list[str] = []  # how each phase computed, for the report
        self.divided: Divided | None = None  # of the last phase that has a trunk
        self.room: Room | None = None
        self.has_begun = False

    def work_of(self, phase: Phase) -> Work:
        """Return what a phase runs; the model must be held to the phase's freeze plan."""
        self.has_begun = True
        try:
            divided, engine = self._divide(phase)
        except IndivisibleError as error:
            self.divided = self.room = None
            why = error if phase.plan.frozen else "every layer is trained"
            engine = self.prepared.recipe.cache.engine
            unused = "" if engine in ("auto", "torch") else f"; cache.engine = {engine!r} has nothing to run"
            whole = self.prepared.backbone.model
            tail, folded = self._folded(phase, whole, self._first_images)
            run = tail or whole
            self._say(f"phase {phase.name}: no feature cache, {why}{unused}{folded}")
            if phase.solver == "lbfgs":
                return self._solved(phase, run, lambda images: images)
            return Work(run, self._drawn(), self._val())
        self.divided, self.room = divided, None
        views = num_views(self.prepared.recipe, phase)
        if views and (room := self._room(divided, phase, views)):
            self.room = room
            return self._cached(divided, phase, room, views, engine)
        is_solved = phase.solver == "lbfgs"
        how = "once for each view" if is_solved else "every epoch, on freshly drawn views"
        self._say(f"phase {phase.name}: frozen layers run {how}{engine}")
        return self._uncached(divided, phase)

    def judged(self, split: Split) -> tuple[nn.Module, Batches]:
        """Return what is to be run over a split for its logits, and on what: of the last phase its tail and its trunk.

        The trunk of the last phase is frozen in all of them. A run that was resumed behind its last step has not asked
        for the work of that phase yet: it is asked for here, so that both measure alike.
        """
        return self.judged_on(self._of(split))

    def judged_on(self, samples: Sequence[Sample]) -> tuple[nn.Module, Batches]:
        """Return the same for some images of any split, as evaluation sees them, in order.

        What the cache holds of train and val, whose first view is the plain one, is not computed again.
        """
        self._begin()
        if self.divided is None:
            return self.prepared.backbone.model, plain_batches(self.prepared, samples)
        if self.room is None or any(sample.split == "test" for sample in samples):
            return self.divided.tail, self._through_trunk(plain_batches(self.prepared, samples))
        size = int(self.prepared.recipe.train.batch_size)
        return self.divided.tail, self.cache.batches(self.room, samples, views=1, batch_size=size, seed=None)

    def _begin(self) -> None:
        if not self.has_begun:
            prepared, last = self.prepared, self.prepared.phases[-1]
            with freezing(prepared.backbone.model, last.plan, prepared.backbone.groups):
                self.work_of(last)

    def _room(self, divided: Divided, phase: Phase, views: int) -> Room | None:
        """Return where a phase keeps its trunk's outputs; None if they do not fit, or the phase began without.

        The choice is written down before anything is computed.

        Raises:
            ResourceError: the phase began on the cache, other bits would come without, and it no longer fits.
        """
        place = self.prepared.phases.index(phase)
        was_cached = ranks.agreed(lambda: self.began.get(place) if self.began else None)
        if was_cached is False:
            return None
        needs = [(samples, count) for samples, count in ((self._of("train"), views), (self._of("val"), 1)) if samples]
        room = self.cache.room(divided.trunk, divided.shapes, needs)
        if room is None:
            is_exact = _is_exact(self.prepared.recipe, phase)
            if was_cached and not is_exact:
                raise ResourceError(
                    f"phase {phase.name} began on the feature cache, which no longer fits",
                    hint="Free disk (or memory, with cache.features=memory), put cache.limit back if it was changed;"
                    " or go on without, no longer exactly: --set cache.features=none --allow recipe.",
                )
            other = "" if is_exact else "; the results differ from a run with enough room"
            text = f"phase {phase.name}: no feature cache, it would not fit (cache.limit, free disk or memory){other}"
            self._say(text, kind="warning")
        if self.began and ranks.is_first():
            self.began.set(place, room is not None)
        return room

    def _divide(self, phase: Phase) -> tuple[Divided, str]:
        """Return the model in two parts, and what runs the trunk, in words.

        Raises:
            IndivisibleError: it cannot be cut.
        """
        backbone = self.prepared.backbone
        size = backbone.preprocessing.image_size
        divided = divide(backbone.model, phase.plan, backbone.groups, image_size=size)
        images = self._first_images()
        if not ranks.agreed(lambda: agrees(backbone.model, divided, images, fork=self._fork)):
            raise IndivisibleError("its two parts do not reproduce the whole bit for bit")
        tail, folded = self._folded(phase, divided.tail, lambda: divided.trunk(images))
        return replace(divided, tail=tail or divided.tail), self._equip(divided, phase, images) + folded

    def _folded(self, phase: Phase, run: nn.Module, inputs: Callable[[], Any]) -> tuple[Tail | None, str]:
        """Return what a phase runs with norms folded into convolutions, and that in words, if this is asked for.

        `inputs` yields a batch of what it takes, on which it is shown to train alike.
        """
        recipe, groups = self.prepared.recipe, self.prepared.backbone.groups
        is_asked = recipe.train.fold_norms is True and phase.solver == "gradient"
        folded = folded_run(run, phase.plan, groups) if is_asked else None
        if folded is None:
            return None, ""
        batch = inputs()
        told = f"{counted(num_folded(folded), 'batch norm')} computed with the convolutions before them"
        if not ranks.agreed(lambda: trains_alike(run, folded, batch, fork=self._fork)):
            return None, f"; with {told} its outputs would differ, so they stay apart"
        return folded, f"; {told}"

    def _first_images(self) -> Tensor:
        with ranks.unshared():
            images, _ = next((self._val() or self._plain("train")).epoch())
        return of_trunk_batch(images)

    def _fork(self) -> AbstractContextManager[None]:
        return forked(derive(0, "agrees"), devices=(self.prepared.compute.device,))

    def _equip(self, divided: Divided, phase: Phase, images: Tensor) -> str:
        """Choose what runs a trunk, write it down before anything is computed, and return a description.

        The choice is by the views that a cache would keep, whether there is one or not: both see the same bits.
        """
        prepared, place = self.prepared, self.prepared.phases.index(phase)
        name, text = equip(
            divided.trunk,
            images,
            asked=prepared.recipe.cache.engine,
            num_images=len(self._of("train")) * drawn_views(prepared.recipe, phase) + len(self._of("val")),
            precision=prepared.compute.precision,
            about={"network": self.cache.network, "shapes": divided.shapes},
            kept=self.began.engine(place) if self.began else None,
        )
        if self.began and ranks.is_first():
            self.began.set_engine(place, name)
        return text and f", {text}"

    def _cached(self, divided: Divided, phase: Phase, room: Room, views: int, engine: str) -> Work:
        recipe, train, val = self.prepared.recipe, self._of("train"), self._of("val")
        seed = None if phase.solver == "lbfgs" else recipe.train.seed
        fill = partial(self.cache.batches, room, batch_size=int(recipe.train.batch_size))
        known = self.prepared.tapped.known(self.prepared.backbone.model) if self.prepared.tapped else None
        shares = None if seed is None else shares_drawn(self.prepared, train)
        batches = fill(train, views=views, seed=seed, known=known, shares=shares)
        judged = fill(val, views=1, seed=None) if val else None
        values = sum(torch.Size(shape).numel() for shape in divided.shapes)
        shown = "1 view" if views == 1 else f"{views} views"
        text = f"frozen layers run once for each image ({shown}){engine}; {values:,} values kept of each"
        self._say(f"phase {phase.name}: {text}")
        return Work(divided.tail, batches, judged, views=views if phase.solver == "lbfgs" else 1)

    def _uncached(self, divided: Divided, phase: Phase) -> Work:
        if phase.solver == "lbfgs":
            return self._solved(phase, divided.tail, self._through_trunk)
        val = self._val()
        return Work(divided.tail, self._through_trunk(self._drawn()), val and self._through_trunk(val))

    def _solved(self, phase: Phase, run: nn.Module, through: Callable[[ImageBatches], Batches]) -> Work:
        """Return what a head is solved on without a cache: the bits that a cache would hold."""
        val, views = self._val(), drawn_views(self.prepared.recipe, phase)
        seen = [through(self.cache.images(self._of("train"), view)) for view in range(views)]
        return Work(run, ViewBatches(seen), val and through(val), views=views)

    def _through_trunk(self, images: ImageBatches) -> TrunkBatches:
        assert self.divided is not None  # of the phase that asks
        return TrunkBatches(self.divided.trunk, images, autocast=self.prepared.compute.autocast)

    def _of(self, split: Split) -> tuple[Sample, ...]:
        return self.prepared.manifest.split(split)

    def _val(self) -> ImageBatches | None:
        return self._plain("val") if self._of("val") else None

    def _drawn(self) -> ImageBatches:
        return augmented_batches(self.prepared, self._of("train"))

    def _plain(self, split: Split) -> ImageBatches:
        return plain_batches(self.prepared, self._of(split))

    def _say(self, text: str, *, kind: Literal["message", "warning"] = "message") -> None:
        self.said.append(text)
        self.on_event(Event(kind, {"text": text}))


class ViewBatches:
    """Batches of some views of the same images, none kept: every epoch is one view."""

    def __init__(self, views: Sequence[Batches]) -> None:
        self.views, self.num_images = views, views[0].num_images

    def __len__(self) -> int:
        return len(self.views[0])

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """Yield (boundary tensors or images, class indices) of one view from batch `start` on."""
        yield from self.views[epoch % len(self.views)].epoch(start=start)


def num_views(recipe: Recipe, phase: Phase) -> int:
    """Return how many views of each train image a phase keeps; 0 if nothing would be read twice."""
    if recipe.cache.features == "none":
        return 0
    is_used_again = phase.solver == "lbfgs" or recipe.augment.level == "none" or phase.epochs > AUTO_VIEWS
    return _views(recipe) if is_used_again or recipe.cache.views != "auto" else 0


def drawn_views(recipe: Recipe, phase: Phase) -> int:
    """Return how many views of each train image a phase sees at most, assuming the cache had room for them.

    A head is solved on all of them, the plain one first; each epoch of steps draws one for each image.
    """
    return _views(recipe) if phase.solver == "lbfgs" else min(phase.epochs, _views(recipe))


def _views(recipe: Recipe) -> int:
    if recipe.augment.level == "none":
        return 1
    return AUTO_VIEWS if recipe.cache.views == "auto" else recipe.cache.views


def _is_exact(recipe: Recipe, phase: Phase) -> bool:
    """Return whether a phase trains on the same bits with the cache and without it."""
    is_alike = phase.solver == "lbfgs" or recipe.augment.level == "none"
    return is_alike and recipe.cache.precision == "float32"
