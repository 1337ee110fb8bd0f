"""Which backbone is nearest to some data: one frozen pass of each over a sample of train, then scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from finetune.arguments import Settings, each_of, typed
from finetune.backbone.shortlist import on_this_machine
from finetune.errors import RecipeError
from finetune.prepare.asked import recipe_of
from finetune.prepare.candidates import Ranked, fewest_ranked, labelled, ranked
from finetune.prepare.inputs import computing_as, list_data, read_data
from finetune.settings import Recipe
from finetune.types import MOST_RANKED, Manifest, OnEvent, ignore


@typed
def rank(
    data: str | Path | None = None,
    candidates: Sequence[str | Path] = (),
    *,
    sample: int = MOST_RANKED,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Ranked:
    """Rank backbones for a data set by what a linear model on their features reaches: top1, mAP or R2, by the task.

        finetune.rank("imgs", ["resnet18.a1_in1k", "weights/mobilenetv2_100", "resnet18.a1_in1k@160"])

    A candidate is a timm name, `hf-hub:OWNER/NAME` or a weights folder, with `@PIXELS` for another
    image size. Without candidates: those of a short list whose weights are on this machine. One that
    cannot be used is reported with its reason and does not stop the others.

    Raises:
        BackboneError: none of the candidates can be used.
        DataError, RecipeError, ResourceError: what cannot be used, and the way out.
    """
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    with computing_as(chosen, on_event=on_event):
        called = labelled([str(candidate) for candidate in each_of(candidates)] or on_this_machine())
        manifest = read_data(chosen, list_data(chosen), on_event=on_event)
        most = _checked_size(sample, manifest)
        return ranked(chosen, called, manifest=manifest, most=most, on_event=on_event)


def _checked_size(sample: int, manifest: Manifest) -> int:
    needed, count = fewest_ranked(manifest), len(manifest.classes)
    if sample < needed:
        what = "a number needs" if manifest.task == "regress" else f"{count} classes need"
        raise RecipeError(
            f"--sample {sample}: {what} {needed} images or more",
            hint=f"Each image is judged by the others{' of its class' * (manifest.task != 'regress')}.",
        )
    return sample
