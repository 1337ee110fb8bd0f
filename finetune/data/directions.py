"""Whether a left-right flip may change what an image shows, told from the names of classes and files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetune.types import Manifest
from finetune.wording import listed

SIDED = re.compile(
    r"(?<![a-z])(left|right|links|rechts|gauche|droite|clockwise|anticlockwise|counterclockwise)(?![a-z])"
)
SIGN = re.compile(r"(?:(?:digit|letter|char|number|class)[ _-]*)?[0-9a-zA-Z]")
MARKED = re.compile(r"(?<![a-z])(x-?rays?|xr|cxr|radiographs?|mammo\w*)(?![a-z])")


def flip_hints(manifest: Manifest) -> Iterator[str]:
    """Yield why images of this data may not be flipped left to right."""
    sided = [name for name in manifest.classes if SIDED.search(name.casefold())]
    if sided:
        yield f"{listed(sided)} {'says' if len(sided) == 1 else 'say'} a side, which a left-right flip changes"
    if len(manifest.classes) > 1 and all(SIGN.fullmatch(name) for name in manifest.classes):
        yield f"classes that are digits or letters ({listed(manifest.classes, most=3)}) are different when flipped"
    text = f"{manifest.root} {manifest.samples[0].file if manifest.samples else ''}".casefold()
    if MARKED.search(text):
        yield "X-rays have a side, and often a marker that shows it"
