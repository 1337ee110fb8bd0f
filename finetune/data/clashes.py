"""Images with the same bytes, or of one group, that differ in what they must share: their split or their label."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from operator import attrgetter

from finetune.data.targets import TORN
from finetune.types import Manifest, Sample
from finetune.wording import counted


def leaks(manifest: Manifest) -> Iterator[str]:
    """Yield which images and groups straddle splits."""
    for what, key in (("images", "digest"), ("groups", "group")):
        if astray := _clashing(manifest.samples, attrgetter(key), attrgetter("split")):
            stand = f"{len(astray)} {what} are in more than one split, e.g. {astray[0].file}"
            yield f"leak: {stand}; `finetune check` lists all"


def conflicts(manifest: Manifest) -> Iterator[str]:
    """Yield how many images stand in two classes, and how many are exact copies; nothing before the scan."""
    hashed = [sample for sample in manifest.samples if sample.digest]
    digest = attrgetter("digest")
    if torn := _clashing(hashed, digest, attrgetter("target")):
        stand = counted(len(torn), "image is", "images are")
        yield f"{stand} {TORN[manifest.task]}, e.g. {torn[0].file}; `finetune check` lists all"
    if copies := len(hashed) - len(set(map(digest, hashed))):
        are = counted(copies, "image is an exact copy", "images are exact copies")
        is_divided = _clashing([sample for sample in hashed if sample.split], digest, attrgetter("split"))
        yield f"{are} of others" + ("" if is_divided else "; copies stay in one split")


def _clashing(
    samples: Iterable[Sample], key: Callable[[Sample], Hashable], value: Callable[[Sample], object]
) -> list[Sample]:
    """Return the first sample of each key whose samples differ in a value; samples with no key are passed over."""
    first: dict[Hashable, Sample] = {}
    clashing: dict[Hashable, Sample] = {}
    for sample in samples:
        if name := key(sample):
            known = first.setdefault(name, sample)
            if value(known) != value(sample):
                clashing[name] = known
    return [sample for name, sample in first.items() if name in clashing]
