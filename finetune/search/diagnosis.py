"""What the curves of a run say, in sentences, and what to do about it. Letters: K classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from finetune.types import EpochLine

GAP = 0.15  # of top1 between train and val
BARELY = 0.9  # times the loss of a guess: a train loss above it has not started
FEWEST = 4  # epochs: of fewer, nothing is said of how curves run
LAST = 3  # part of the epochs that are the end of a curve
RISEN = 1.5  # times the lowest loss


def diagnosed(history: Sequence[EpochLine], *, guess: float) -> list[str]:
    """Return what is to be seen in the curves of a run by steps, the gravest first; `guess` is the loss of guessing."""
    return list(_findings(history, guess)) or ["the curves look sound: the loss falls, val follows train"]


def _findings(history: Sequence[EpochLine], guess: float) -> Iterator[str]:
    train = [row.train_loss for row in history if row.train_loss is not None]
    val = [row.val_loss for row in history if row.val_loss is not None]
    if not train or not val:
        yield "there are no curves: the head was solved, or nothing was measured on val"
        return
    if len(history) >= FEWEST:
        if train[-1] > BARELY * guess:
            yield (
                f"not started: the train loss is {train[-1]:.3f} after {len(train)} epochs, guessing gives {guess:.3f};"
                " a higher learning rate, or more epochs"
            )
            return
        if train[-1] > RISEN * min(train) or _jumps(train):
            yield "the train loss jumps or rises: the learning rate is too high"
        if val[-1] > RISEN * min(val):
            best = val.index(min(val)) + 1
            yield (
                f"the val loss is lowest after epoch {best} ({min(val):.3f}) and {val[-1]:.3f} at the end: overfitting;"
                " more augmentation, weight decay, fewer epochs or train.patience"
            )
        yield from _plateau(history)
    seen, judged = history[-1].train_top1, history[-1].val_top1
    if seen is not None and judged is not None:
        if seen - judged > GAP:
            yield (
                f"a gap: top1 is {seen:.3f} on train and {judged:.3f} on val; more images, augmentation or decay, or"
                " fewer trained layers"
            )
        elif judged - seen > GAP / 3:
            yield (
                f"val is better than train ({judged:.3f} and {seen:.3f}): train is seen augmented and while it is"
                " learned; less augmentation or more trained layers may help"
            )


def _jumps(losses: Sequence[float]) -> bool:
    """Return whether a third or more of the epochs have a higher loss than the one before."""
    rises = sum(after > 1.05 * before for before, after in pairwise(losses))
    return rises * LAST >= len(losses)


def _plateau(history: Sequence[EpochLine]) -> Iterator[str]:
    """Say that the last third of the epochs brought val nothing, or still brought much."""
    scores = [row.score for row in history if row.score is not None]
    cut = len(scores) - max(1, len(scores) // LAST)
    before, after = max(scores[:cut]), max(scores[cut:])
    if after <= before:
        yield f"a plateau: val was no better in the last {len(scores) - cut} epochs; fewer would do"
    elif scores[-1] == max(scores) and after - before > 0.02:
        yield f"still rising: val gained {after - before:.3f} in the last {len(scores) - cut} epochs; more may help"
