"""Notes on images with numbers deeper than 8 bits: in the data of a run, and as the input of a finished model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from finetune.bands import COLOURS, Bands
from finetune.images.levels import Range, Span
from finetune.wording import counted

SHALLOW = ", with 8 bits between; data.depth = 'full' keeps all"
DARK = 8  # a white this many times the highest number of all deep images makes them nearly black


def in_data(spans: Sequence[Span | None], value_range: Range | None, bands: Bands = COLOURS) -> Iterator[str]:
    """Yield what is black and white in the deep images of data, from the spans of all its images (None: 8 bits)."""
    num_deep = sum(span is not None for span in spans)
    if value_range is None or not num_deep:
        return
    rest = len(spans) - num_deep
    others = f"; the other {rest:,} {'has' if rest == 1 else 'have'} 8 bits, white is 255" if rest else ""
    yield (
        f"{_deep(num_deep)}: {value_range[0]:g} is taken for black and {value_range[1]:g} for white"
        f" (data.value_range){'' if bands.is_full else SHALLOW}{others}"
    )
    deep = _Deep(value_range)
    for span in filter(None, spans):
        deep.add(span)
    yield from deep.outside()


def before_model(spans: Iterable[Span | None], value_range: Range | None) -> Iterator[str]:
    """Yield how a model that was trained with a range of values (None: on 8 bits) sees images of these spans."""
    seen = DepthsSeen(value_range)
    for span in spans:
        seen.add(span)
    yield from seen.notes()


class DepthsSeen:
    """The notes on the depths of any number of images as the input of a model; see `before_model`."""

    def __init__(self, value_range: Range | None) -> None:
        self.value_range = value_range
        self.num_images = 0
        self.deep = _Deep(value_range)

    def add(self, span: Span | None) -> None:
        """Take note of what an image spans; None: it has 8 bits."""
        self.num_images += 1
        if span is not None:
            self.deep.add(span)

    def notes(self) -> Iterator[str]:
        """Yield the notes on the images so far."""
        if self.deep.count and self.value_range is None:
            yield (
                f"{_deep(self.deep.count)}, and the model was trained on images of 8 bits: each is scaled by its own"
                " numbers, white is the greatest of as many bits as it fills"
            )
        if self.value_range is None:
            return
        black, white = self.value_range
        if self.deep.count:
            yield f"{_deep(self.deep.count)}: {black:g} is black and {white:g} white, as the model was trained"
            yield from self.deep.outside()
        if rest := self.num_images - self.deep.count:
            has = "image has" if rest == 1 else "images have"
            yield (
                f"{rest:,} {has} 8 bits, and the model was trained with {white:g} for white: taken as"
                f" {'it is' if rest == 1 else 'they are'}, 255 is white"
            )


class _Deep:
    """How many deep images there are, and how far they exceed a range of values."""

    def __init__(self, value_range: Range | None) -> None:
        self.value_range = value_range
        self.count = self.num_beyond = 0
        self.low, self.high, self.highest = math.inf, -math.inf, -math.inf  # of those beyond; of all

    def add(self, span: Span) -> None:
        self.count += 1
        self.highest = max(self.highest, span.high)
        if self.value_range is not None and (span.low < self.value_range[0] or span.high > self.value_range[1]):
            self.num_beyond += 1
            self.low, self.high = min(self.low, span.low), max(self.high, span.high)

    def outside(self) -> Iterator[str]:
        """Yield how many deep images the range clips, or that it makes all of them nearly black."""
        if self.value_range is None or not self.count:
            return
        black, white = self.value_range
        if self.num_beyond:
            yield (
                f"{counted(self.num_beyond, 'image goes', 'images go')} beyond {black:g} to {white:g} (as far as"
                f" {self.low:g} to {self.high:g}), where all is black or white: were they scaled differently from the"
                " data of the range?"
            )
        if black < self.highest and (self.highest - black) * DARK < white - black:
            yield (
                f"no number of these images is above {self.highest:g}, and {white:g} is white: they are nearly black;"
                " were they scaled differently from the data of the range?"
            )


def _deep(count: int) -> str:
    return f"{count:,} {'image has' if count == 1 else 'images have'} numbers of more than 8 bits"
