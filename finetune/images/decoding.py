"""How a file becomes the image that a preprocessing is meant for, in words for other programs."""

from __future__ import annotations

from finetune.types import BRIGHTNESS, LONGEST, Preprocessing

OWN_RANGE = (
    "255 * (x - b) / (w - b), b being 0, and w the least of 255, 511, 1023, ..., 65535 that the image does not exceed"
    " (of floats the one of 1, 255 and 65535 that its greatest number is at most, and at least an eighth of; where"
    " there is none such, the greatest number itself; where a number is negative, b is the least and w the greatest)"
)


def decoding_steps(preprocessing: Preprocessing) -> tuple[str, ...]:
    """Return what another program has to do before it resizes an image, in order, and what of colours it keeps."""
    own = preprocessing
    if own.bands.is_full:
        return _of_stacks(own)
    if preprocessing.value_range is not None:
        low, high = preprocessing.value_range
        deep = f"Numbers deeper than 8 bits become round(255 * (x - {low:g}) / ({high:g} - {low:g})), clipped."
    else:
        deep = f"The images trained on had 8 bits. Numbers deeper than that become round({OWN_RANGE})."
    of_colours = (deep, "Put what is transparent on white, and convert to RGB with 8 bits a channel.")
    of_four = ("Take the four channels as they are, 8 bits each: none is transparency, each is resized by itself.",)
    steps = [
        "Turn the image as the orientation in its EXIF says.",
        *(of_four if preprocessing.channels == 4 else of_colours),
        f"Of an image more than {LONGEST} times as long as wide, keep the middle {LONGEST} widths.",
    ]
    if preprocessing.channels == 1:
        red, green, blue = BRIGHTNESS
        steps.append(f"Resized and cut out, it becomes its brightness, {red} R + {green} G + {blue} B: one channel.")
    return tuple(steps)


def _of_stacks(own: Preprocessing) -> tuple[str, ...]:
    if own.value_range is not None:
        low, high = own.value_range
        deep = f"255 * (x - {low:g}) / ({high:g} - {low:g}), clipped to 0 to 255"
    else:
        deep = OWN_RANGE
    return (
        f"Take the {own.channels} channels (H, W, C) of the file with all of their bits; none is transparency.",
        f"Numbers x of 8 bits stay as they are, others become {deep}; they are not rounded.",
        f"Of an image more than {LONGEST} times as long as wide, keep the middle {LONGEST} widths.",
        "Resize and cut each channel by itself, as float32, without rounding.",
    )
