"""The strategy matrix of the notes: few or many images, similar or dissimilar to the pretraining data.

              similar                     dissimilar
    few       head-only                   linear-probe at the stage that serves best
    many      top-k, small k              full

Pure: evidence in, verdict out.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune.types import Evidence, LayerGroup, Verdict

FEW_PER_CLASS = 100  # of a class, in the median
FEW_IN_ALL = 1000
SIMILAR_GAP = 0.02  # how far the last stage may lie behind the best one and still serve
SIMILAR_GAIN = 0.5  # share of the way from chance to perfect that it must separate


def decide(evidence: Evidence, groups: Sequence[LayerGroup]) -> Verdict:
    """Yield the cell of the matrix and what to do there.

    Few: fewer than 100 images a class (median) or 1,000 in all. Similar: a linear classifier on the
    features of the last layer group is as good as on any earlier one (within two points), and
    closes half of the way from chance to perfect.
    """
    names = [group.name for group in groups if not group.is_head and group.name in evidence.probe]
    last = names[-1]
    best = max(names, key=lambda name: (evidence.probe[name].value, names.index(name)))
    at_last, at_best = evidence.probe[last].value, evidence.probe[best].value
    chance = 1 / evidence.num_classes
    gain = (at_last - chance) / (1 - chance)
    is_similar = at_best - at_last <= SIMILAR_GAP and gain >= SIMILAR_GAIN
    is_few = evidence.images_per_class_median < FEW_PER_CLASS or evidence.num_images < FEW_IN_ALL
    found = f"{_counted(evidence)}; {_compared(last, best, evidence, is_similar)}"
    if is_few and is_similar:
        return Verdict("few", "similar", "head-only", f"{found}; few images → train the head only")
    if is_few:
        reason = f"{found}; few images → linear probe at {best}"
        return Verdict("few", "dissimilar", "linear-probe", reason, probe_at=best)
    if is_similar:
        k = max(1, round(len(names) / 4))
        return Verdict("many", "similar", "top-k", f"{found}; many images → train the top {k}", top_k=k)
    return Verdict("many", "dissimilar", "full", f"{found}; many images → train everything")


def _counted(evidence: Evidence) -> str:
    return (
        f"{evidence.num_images} images, {evidence.num_classes} classes"
        f" ({evidence.images_per_class_median:g} a class in the median)"
    )


def _compared(last: str, best: str, evidence: Evidence, is_similar: bool) -> str:
    at_last = evidence.probe[last]
    spread = (at_last.high - at_last.low) / 2
    text = f"the last stage separates them at {at_last.value:.0%} ± {spread:.0%}"
    if best != last:
        text += f", {best} at {evidence.probe[best].value:.0%}"
    elif len(evidence.probe) > 1:
        text += ", earlier stages are no better"
    return text + (": similar" if is_similar else ": dissimilar")
