"""The strategy matrix of the notes: few or many images, similar or dissimilar to the pretraining data.

              similar                                   dissimilar
    few       linear-probe: the head; from 45 images    linear-probe on all stages together
              on all stages together
    many      top-k: the later half                     the same, of plenty of images everything

A linear-probe is a head that is solved to convergence. Where the last stage already tells similar images apart, the
head alone is trained, however many they are: by steps (head-only), which are cheaper where there are many.

Pure: evidence in, verdict out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from finetune.settings import ALL_STAGES
from finetune.tasks import TASKS
from finetune.types import FEWEST_PROBED, Evidence, Interval, Verdict
from finetune.wording import apart

FOR_ALL_STAGES = 45  # images: with fewer similar ones, a classifier that sees all stages learns chance patterns
# Fewer images than these are few: per class in the median, and in all. Where images are dissimilar, training inner
# layers pays much sooner: benchmarks/strategy, docs/bench.md.
CELLS = {  # what is trained, by size and similarity
    ("few", "similar"): (
        f"the head, solved to convergence; from {FOR_ALL_STAGES} images a linear classifier on all stages"
    ),
    ("few", "dissimilar"): "a linear classifier on all stages",
    ("many", "similar"): "the head and the later half; little left to gain: the head",
    ("many", "dissimilar"): "the head and the later half; with plenty of images everything",
}
FEW = {"similar": (30.0, 100.0), "dissimilar": (3.0, 8.0)}
PLENTY = 300.0  # images per class: enough to train everything where images are dissimilar
SOLVED = 0.98  # top1 of the last stage's probe: on similar images at most 2 points are left to gain
MOST_SOLVED = 20_000  # images times classes: what solving a head takes grows with it, to half a minute about here
FAR_SHIFT = 0.19  # shift of the inputs of batch norm, in stored deviations
FAR_ENTROPY = 0.58  # entropy of the pretrained classifier, as a share of that of a guess
NEAR_GAIN = 0.5  # share of the way from chance to perfect that a probe closes, less twice what it is behind


def decide(evidence: Evidence, *, assume: Iterable[str] = ()) -> Verdict:
    """Return the cell of the matrix and what to do there; `assume` overrides what was measured.

    Similar: `similarity_score` is not below 0. Few: fewer than 30 images per class (median) or 100 in all
    where they are similar, than 3 or 8 where they are not. Where the interval of the score holds 0 and the two columns
    have other strategies, the verdict names both and takes the cheaper.
    """
    assumed = set(assume) - {"none"}
    verdict, similarity = _decided(evidence, assumed), similarity_score(evidence)
    if assumed & {"similar", "dissimilar"} or not similarity.low < 0 < similarity.high:
        return verdict
    other = _decided(evidence, assumed | {"dissimilar" if verdict.similarity == "similar" else "similar"})
    if _strategy_of(other) == _strategy_of(verdict):
        return verdict
    cheaper, dearer = sorted((verdict, other), key=_work)
    doubt = (
        f"; but it is not certain that they are {verdict.similarity}: if {other.similarity}, it would be"
        f" {_named(other)}; the cheaper is taken, {_named(cheaper)}; --strategy race, or a --time with room for"
        " both, tries both"
    )
    strategy, top_k, probe_at = _strategy_of(cheaper)
    return replace(
        verdict,
        strategy=strategy,
        top_k=top_k,
        probe_at=probe_at,
        reason=verdict.reason + doubt,
        rival=_named(dearer),
    )


def _decided(evidence: Evidence, assumed: set[str]) -> Verdict:
    similarity = similarity_score(evidence)
    is_similar = "similar" in assumed or ("dissimilar" not in assumed and similarity.value >= 0)
    size = size_score(evidence, is_similar=is_similar)
    is_many = "many" in assumed or ("few" not in assumed and size.value >= 0)
    row: Literal["few", "many"] = "many" if is_many else "few"
    column: Literal["similar", "dissimilar"] = "similar" if is_similar else "dissimilar"
    strategy, what, top_k, probe_at = _cell(evidence, is_many, is_similar)
    said = ["assumed " * (word in assumed) + word for word in (column, row)]
    reason = f"{_counted(evidence)}; {_compared(evidence)}{_seen(evidence)}: {said[0]}; {said[1]} → {what}"
    return Verdict(row, column, strategy, reason, size, similarity, top_k=top_k, probe_at=probe_at)


def _strategy_of(verdict: Verdict) -> tuple[str, int | None, str | None]:
    return verdict.strategy, verdict.top_k, verdict.probe_at


def _work(verdict: Verdict) -> int:
    """Return a number that grows with what a choice of the matrix costs: the layer groups that are trained."""
    if verdict.strategy == "full":
        return sys.maxsize
    return verdict.top_k or 0


def _named(verdict: Verdict) -> str:
    """Return a choice as a flag would say it: "top-k 4"."""
    number = verdict.top_k or verdict.probe_at
    return f"{verdict.strategy} {number}" if number else verdict.strategy


def size_score(evidence: Evidence, *, is_similar: bool) -> Interval:
    """Return the size as a score: 0 at the cut-off, 1 at ten times as many images. It is counted, not estimated."""
    of_a_class, in_all = FEW["similar" if is_similar else "dissimilar"]
    size = evidence.size
    score = math.log10(min(size.images_per_class_median / of_a_class, _num_independent(evidence) / in_all))
    return Interval(score, score, score)


def _num_independent(evidence: Evidence) -> int:
    return evidence.size.num_independent or evidence.size.num_images


def similarity_score(evidence: Evidence) -> Interval:
    """Return how similar the images are to what the backbone has seen: above 0 near, below 0 far.

    With batch norm: how often the shift of its inputs goes into the shift at the cut-off, in doublings.
    Without: how far the entropy of the pretrained classifier stays under its cut-off; where there is no
    classifier: how well the last layer group separates the classes.
    """
    if evidence.shift is not None:
        shift = evidence.shift
        value, low, high = (math.log2(FAR_SHIFT / max(x, 1e-6)) for x in (shift.value, shift.high, shift.low))
        return Interval(value, low, high)
    if evidence.confidence is not None:
        entropy = evidence.confidence.entropy
        value, low, high = (1 - x / FAR_ENTROPY for x in (entropy.value, entropy.high, entropy.low))
        return Interval(value, low, high)
    chance, last = evidence.of_a_guess, evidence.probe[evidence.last]
    behind = 2 * max(0.0, evidence.behind.value)
    value, low, high = ((x - chance) / (1 - chance) - behind - NEAR_GAIN for x in (last.value, last.low, last.high))
    return Interval(value, low, high)


def _cell(evidence: Evidence, is_many: bool, is_similar: bool) -> tuple[str, str, int | None, str | None]:
    """Return the strategy, its words, and its number."""
    if is_many and not is_similar and evidence.size.images_per_class_median >= PLENTY:
        return "full", "train everything", None, None
    if is_similar and is_many and evidence.probe[evidence.last].value >= SOLVED:
        return "head-only", "train the head only, as little is left to gain", None, None
    if is_many:
        k = max(1, round(len(evidence.probe) / 2))
        return "top-k", f"train the head and the top {k}", k, None
    if is_similar and evidence.size.num_images * evidence.size.num_classes > MOST_SOLVED:
        return "head-only", "train the head only, by steps, as solving it would take longer", None, None
    if is_similar and _num_independent(evidence) < FOR_ALL_STAGES:
        return "linear-probe", "train the head only, solved to convergence", None, None
    if len(evidence.probe) == 1:  # for a network whose inner groups cannot be reached
        return "linear-probe", "linear probe on the last stage", None, None
    return "linear-probe", "linear probe on all stages together", None, ALL_STAGES


def _counted(evidence: Evidence) -> str:
    size = evidence.size
    among = apart(size.num_images, _num_independent(evidence))
    if evidence.measure == TASKS["regress"].score:
        return f"{size.num_images} images{among} with a number ({size.images_per_class_median:g} in a tenth of them)"
    many = f"{size.num_images} images{among}, {size.num_classes} classes"
    return f"{many} (median {size.images_per_class_median:g} per class)"


def _compared(evidence: Evidence) -> str:
    last, best = evidence.last, evidence.best
    is_alone = evidence.measure == TASKS["classify"].score and evidence.size.images_per_class_median < 2
    if evidence.size.num_probed < FEWEST_PROBED or is_alone:
        return "too few to see how well they can be separated"
    at_last, size = evidence.probe[last], evidence.size
    if evidence.measure != TASKS["classify"].score:
        half = (at_last.high - at_last.low) / 2
        text = f"a linear model on the last stage has {evidence.measure} {at_last.value:.2f} ± {half:.2f}"
        return text if best == last else f"{text}, on {best} {evidence.probe[best].value:.2f}"
    probed = size.num_classes_probed or size.num_classes
    them = "them" if probed == size.num_classes else f"{probed} of them"
    text = f"the last stage separates {them} at {at_last.value:.0%} ± {(at_last.high - at_last.low) / 2:.0%}"
    if best != last:
        return f"{text}, {best} at {evidence.probe[best].value:.0%}"
    return text + (", earlier stages are no better" if len(evidence.probe) > 1 else "")


def told_apart(value: float, border: float, *, digits: int) -> tuple[str, str]:
    """Return two numbers with enough digits to show which is larger, at least `digits` and at most 6."""
    while digits < 6 and value != border and f"{value:.{digits}f}" == f"{border:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}", f"{border:.{digits}f}"


def _seen(evidence: Evidence) -> str:
    """Return what decided whether the images are similar, if the probe did not."""
    if evidence.shift is not None:
        value, border = told_apart(evidence.shift.value, FAR_SHIFT, digits=2)
        return f"; batch norm finds them {value} deviations off (similar below {border})"
    if evidence.confidence is not None:
        share = evidence.confidence.entropy.value
        value, border = told_apart(100 * share, 100 * FAR_ENTROPY, digits=0)
        return f"; the pretrained classifier is {value}% as unsure as a guess (similar below {border}%)"
    return ""
