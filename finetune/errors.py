"""Every error that the tool raises on purpose, in one tree.

    FinetuneError            1   a message (what is wrong, and where) and a hint (the way out)
    ├── RecipeError          2   the recipe or a flag: all problems at once
    ├── DataError            3   the images, the labels, the split
    ├── BackboneError        4   unknown name, no weights, no network
    ├── ResourceError        5   memory, disk, a place that cannot be written
    ├── CheckpointError      6   a run folder or checkpoint that cannot be used
    ├── ExportError          7   an export that was not proven equal to the model
    ├── TrainingError        8   the loss is not finite, training diverged
    ├── FindingsError        9   a check found what would spoil a result
    └── Interrupted        130   Ctrl-C or SIGTERM (143), after a checkpoint was written

The library raises; only `finetune.cli` prints and picks the exit code.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class FinetuneError(Exception):
    """What is wrong (`message`) and what to do about it (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(FinetuneError):
    """When a recipe or a flag is not what it should be; holds every problem found."""

    exit_code = 2

    def __init__(self, problems: str | list[str], *, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        message = self.problems[0]
        if len(self.problems) > 1:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems in the recipe:\n{lines}"
        super().__init__(message, hint=hint)


class DataError(FinetuneError):
    """When the images, labels or splits cannot be used."""

    exit_code = 3


class BackboneError(FinetuneError):
    """When a backbone is unknown, its weights are missing or do not fit, or it cannot do what is asked."""

    exit_code = 4


class ResourceError(FinetuneError):
    """When memory or disk are short, or a folder cannot be written."""

    exit_code = 5


class CheckpointError(FinetuneError):
    """When a run folder or a checkpoint is missing, incomplete, damaged or of another kind."""

    exit_code = 6


class ExportError(FinetuneError):
    """When an export could not be made, or did not reproduce the model."""

    exit_code = 7


class TrainingError(FinetuneError):
    """When the loss stops being finite."""

    exit_code = 8


class FindingsError(FinetuneError):
    """When a check found what would spoil a result."""

    exit_code = 9


class Interrupted(FinetuneError):
    """When a signal stopped a run after its checkpoint was written."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


REFUSED = {
    errno.EACCES: "Check its permissions, or name another place.",
    errno.EPERM: "Check its permissions, or name another place.",
    errno.EROFS: "Name a place that can be written.",
    errno.ENOSPC: "Free some disk, or name a place on another one.",
    errno.EDQUOT: "Free some disk, or name a place on another one.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.ELOOP: "Its links form a loop: check where they point.",
    errno.EMFILE: "Too many files are open: `ulimit -n` allows more, fewer --workers need less.",
    errno.ENFILE: "Too many files are open on this machine.",
    errno.EIO: "Check the disk or the network drive.",
    errno.ESTALE: "Check that the network drive is still there.",
}  # what a machine says no to, and what then helps: no bugs of ours


def refused(error: OSError) -> ResourceError | None:
    """Return the error for what the system refuses of a file, of no rights or no room, say; None for other faults."""
    hint = REFUSED.get(error.errno or 0)
    if hint is None:
        return None
    place = f"{printable(str(error.filename))}: " if error.filename else ""
    return ResourceError(f"{place}{error.strerror}", hint=hint)


def printable(text: str) -> str:
    """Return a text with what a terminal would obey, or cannot show, as escapes: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return " Did you mean 'x' or 'y'?" for the names nearest to `word`, or nothing."""
    near = get_close_matches(word, list(choices), n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def check_count(name: str, value: object) -> None:
    """Check that what counts things is a whole number from 1 on.

    Raises:
        RecipeError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise RecipeError(f"{name} = {value!r}: must be a whole number of 1 or more")
