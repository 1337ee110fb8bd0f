"""How each phase of a run began, on the feature cache or without it: written down before it computes anything.

What fits depends on the disk and the memory that are free at the moment. A run that is stopped, before its
first checkpoint too, goes on as it began, or not at all.
"""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from finetune.checkpoint.run_folder import RunFolder, read_json, write_json
from finetune.checkpoint.state import check_format
from finetune.errors import CheckpointError
from finetune.settings import FORMAT_VERSION

CHOICES = TypeAdapter(dict[str, bool])


class BeganCached:
    """cached.json of a run folder, by the number of a phase."""

    def __init__(self, folder: RunFolder) -> None:
        """Read what was written down.

        Raises:
            CheckpointError: it is damaged, or of a version that this one does not read.
        """
        self.file = folder.cached
        self.choices: dict[str, bool] = {}
        if self.file.is_file():
            content = read_json(self.file)
            try:
                check_format(self.file, content["format_version"])
                self.choices = CHOICES.validate_python(content["phases"], strict=True)
            except (LookupError, TypeError, ValidationError) as error:
                raise CheckpointError(
                    f"{self.file} does not say of each phase whether it is cached", hint="Start a new run."
                ) from error

    def get(self, phase: int) -> bool | None:
        """Tell whether a phase began on the cache; None for one that has not begun."""
        return self.choices.get(str(phase))

    def set(self, phase: int, is_cached: bool) -> None:
        """Write down how a phase begins.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        if self.get(phase) is not is_cached:
            self.choices[str(phase)] = is_cached
            write_json(self.file, {"format_version": FORMAT_VERSION, "phases": self.choices})
