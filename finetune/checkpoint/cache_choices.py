"""How each phase of a run began, with the feature cache or without it: written down before it computes anything.

What fits depends on the disk and memory that are free at the time. A stopped run, even before its first
checkpoint, goes on as it began, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import StrictBool

from finetune.checkpoint.contents import read_as
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.settings import FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Choices:
    """cached.json: whether a phase is cached, and what runs its trunk, by its number."""

    phases: dict[str, StrictBool]
    engines: dict[str, str] = field(default_factory=dict)


class BeganCached:
    """cached.json of a run folder, read and added to."""

    def __init__(self, folder: RunFolder) -> None:
        """Read what was written down.

        Raises:
            CheckpointError: it is damaged, or of a version that this one does not read.
        """
        self.file = folder.cached
        there = self.file.is_file()
        choices = read_as(Choices, self.file, has_format=True) if there else Choices({})
        self.choices, self.engines = dict(choices.phases), dict(choices.engines)

    def get(self, phase: int) -> bool | None:
        """Return whether a phase began on the cache; None for one that has not begun."""
        return self.choices.get(str(phase))

    def set(self, phase: int, is_cached: bool) -> None:
        """Write down how a phase begins.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        if self.get(phase) is not is_cached:
            self.choices[str(phase)] = is_cached
            self._write()

    def engine(self, phase: int) -> str | None:
        """Return what runs the trunk of a phase; None for one that has not begun."""
        return self.engines.get(str(phase)) or (None if self.get(phase) is None else "torch")

    def set_engine(self, phase: int, name: str) -> None:
        """Write down what runs the trunk of a phase.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        if self.engines.get(str(phase)) != name:
            self.engines[str(phase)] = name
            self._write()

    def _write(self) -> None:
        content = {"format_version": FORMAT_VERSION, "phases": self.choices, "engines": self.engines}
        write_json(self.file, content)
