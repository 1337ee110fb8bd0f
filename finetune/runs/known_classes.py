"""The classes that the weights of a run knew before: their val top1 by the old classifier, and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune.backbone import load as backbones
from finetune.data.split import units_of
from finetune.device import in_fast_layout
from finetune.evaluation.intervals import share
from finetune.prepare.inputs import Inputs, at_range
from finetune.prepare.passes import logits_of
from finetune.prepare.prepared import Prepared
from finetune.tasks import AnyTarget
from finetune.wording import counted


def before_and_after(prepared: Prepared, guesses: Sequence[AnyTarget]) -> str | None:
    """Return a sentence: how val's images of the known classes were named before, and how `guesses` name them now.

    None if no class was known, or val has no image of one. The old classifier could name only the old classes.
    """
    manifest, of = prepared.manifest, prepared.backbone.architecture
    known = set(prepared.backbone.known)
    val = manifest.split("val")
    shown = [manifest.label(sample.target) for sample in val]
    places = [place for place, name in enumerate(shown) if name in known]
    if not places:
        return None
    samples = [val[place] for place in places]
    old = backbones.load(of, num_classes=None)
    in_fast_layout(old.model, prepared.compute.device)
    seen = replace(manifest, samples=tuple(samples))
    logits, _ = logits_of(Inputs(prepared.recipe, seen, at_range(old, manifest), None, prepared.compute), samples)
    names = [shown[place] for place in places]
    said = [of.classes[place] for place in logits.argmax(dim=1).tolist()]
    now = [manifest.label(guesses[place]) for place in places]
    was, is_now = (share(np.array(names) == np.array(words), units_of(samples)) for words in (said, now))
    return (
        f"of {counted(len(samples), 'val image')} of the {counted(len(known), 'class', 'classes')} known before, top1"
        f" was {was.value:.3f} and is {is_now.value:.3f} [{is_now.low:.3f}, {is_now.high:.3f}]"
    )
