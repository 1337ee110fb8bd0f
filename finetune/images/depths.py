"""What is said of images with numbers deeper than 8 bits: among the data of a run, and before a finished model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune.images.levels import Range, Span
from finetune.wording import counted

DARK = 8  # a white this many times the highest number of all deep images makes them nearly black


def in_data(spans: Sequence[Span | None], value_range: Range | None) -> Iterator[str]:
    """Yield what is black and white in the deep images of data, from the spans of all its images (None: 8 bits)."""
    num_deep = sum(span is not None for span in spans)
    if value_range is None or not num_deep:
        return
    rest = len(spans) - num_deep
    others = f"; the other {rest:,} {'has' if rest == 1 else 'have'} 8 bits, white is 255" if rest else ""
    yield (
        f"{_deep(num_deep)}: {value_range[0]:g} is taken for black and {value_range[1]:g} for white"
        f" (data.value_range){others}"
    )
    yield from _outside([span for span in spans if span], value_range)


def before_model(spans: Sequence[Span | None], value_range: Range | None) -> Iterator[str]:
    """Yield how a model that was trained with a range of values (None: on 8 bits) sees images of these spans."""
    deep = [span for span in spans if span]
    if deep and value_range is None:
        yield (
            f"{_deep(len(deep))}, and the model was trained on images of 8 bits: each is scaled by its own numbers,"
            " white is the greatest of as many bits as it fills"
        )
    if value_range is None:
        return
    black, white = value_range
    if deep:
        yield f"{_deep(len(deep))}: {black:g} is black and {white:g} white, as the model was trained"
        yield from _outside(deep, value_range)
    if rest := len(spans) - len(deep):
        has = "image has" if rest == 1 else "images have"
        yield (
            f"{rest:,} {has} 8 bits, and the model was trained with {white:g} for white: taken as"
            f" {'it is' if rest == 1 else 'they are'}, 255 is white"
        )


def _deep(count: int) -> str:
    return f"{count:,} {'image has' if count == 1 else 'images have'} numbers of more than 8 bits"


def _outside(deep: Sequence[Span], value_range: Range) -> Iterator[str]:
    """Yield how many deep images a range clips, or that it makes all of them nearly black."""
    black, white = value_range
    beyond = [span for span in deep if span.low < black or span.high > white]
    if beyond:
        low, high = min(span.low for span in beyond), max(span.high for span in beyond)
        yield (
            f"{counted(len(beyond), 'image goes', 'images go')} beyond {black:g} to {white:g} (as far as {low:g} to"
            f" {high:g}), where all is black or white: were they scaled otherwise than the data of the range?"
        )
    highest = max(span.high for span in deep)
    if black < highest and (highest - black) * DARK < white - black:
        yield (
            f"no number of these images is above {highest:g}, and {white:g} is white: they are nearly black;"
            " were they scaled otherwise than the data of the range?"
        )
