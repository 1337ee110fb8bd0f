"""The evidence of auto in the terminal: the probe accuracy over depth, and other numbers."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.cli.tables import table
from finetune.cli.terminal import Console, escape
from finetune.types import Evidence, Interval, Verdict

BAR = 24  # characters for a top1 of 1


def show_evidence(console: Console, evidence: Evidence, verdict: Verdict) -> None:
    """Print the verdict, the probe of every layer group as a bar, and what else was measured."""
    console.print(f"{escape(verdict.reason)}\n")
    probes = {**evidence.probe, "all together": evidence.joint}
    rows = [(group, f"{interval.value:.3f}", _ends(interval, 2), _bar(interval)) for group, interval in probes.items()]
    what, key = evidence.measure, f"#= {evidence.measure}, =- interval"
    model = "linear classifier on" if what == "top1" else "linear model on"
    console.print(table([model, what, "95 %", key], rows, words=[key], drop=[key]))
    console.print()
    console.print(table(["evidence", "value", "95 %"], list(_numbers(evidence, verdict)), words=["evidence"]))


def _bar(interval: Interval) -> str:
    """Return a bar: # up to the low end of an interval, = up to its value, - up to the high end."""
    low, value, high = (round(x * BAR) for x in (interval.low, interval.value, interval.high))
    return "#" * low + "=" * (value - low) + "-" * (high - value)


def _ends(interval: Interval, digits: int) -> str:
    return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _numbers(evidence: Evidence, verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    size = evidence.size
    yield "size (0: border of few and many)", f"{verdict.size_score.value:.2f}", ""
    similarity = verdict.similarity_score
    yield "similarity (0: border)", f"{similarity.value:.2f}", _ends(similarity, 2)
    yield "last group behind the best", f"{evidence.behind.value:.3f}", _ends(evidence.behind, 3)
    yield "probe gain from twice the images", f"{size.gain.value:.3f}", _ends(size.gain, 3)
    of = "tenth of the numbers" if evidence.measure == "r2" else "class"
    yield f"images per {of}, median", f"{size.images_per_class_median:g}", ""
    yield f"images per {of}, fewest", f"{size.images_per_class_min}", ""
    if size.num_classes_probed is not None and size.num_classes_probed < size.num_classes:
        yield "classes probed", f"{size.num_classes_probed}", ""
    yield "largest class over smallest", f"{size.imbalance:.1f}", ""
    if evidence.measure == "top1":
        yield "spread between / within classes", f"{evidence.spread:.2f}", ""
    yield "LogME", f"{evidence.logme:.3f}", ""
    if evidence.shift is not None:
        yield "shift of batch norm, in deviations", f"{evidence.shift.value:.3f}", _ends(evidence.shift, 3)
    if evidence.confidence is not None:
        yield "confidence of the pretrained classifier", f"{evidence.confidence.top:.2f}", ""
        entropy = evidence.confidence.entropy
        yield "its entropy, relative to a guess", f"{entropy.value:.2f}", _ends(entropy, 2)
    if evidence.short_side is not None and evidence.grey_share is not None:
        yield "short side of the images, median, pixels", f"{evidence.short_side:g}", ""
        yield "grey images", f"{evidence.grey_share:.0%}", ""
