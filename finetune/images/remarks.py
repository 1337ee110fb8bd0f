"""What is not seen of files, in sentences: each kind once, with its count and an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune.wording import counted


class Remarks:
    """The remarks on any number of files; the first file of each kind is kept by name."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, file: str, remark: str) -> None:
        """Note what is not seen of a file; "" if all is."""
        if remark:
            count, first = self._kinds.get(remark, (0, file))
            self._kinds[remark] = (count + 1, first)

    def notes(self) -> Iterator[str]:
        """Yield one sentence for each kind."""
        for remark, (count, first) in self._kinds.items():
            yield f"{counted(count, 'image has', 'images have')} {remark}, e.g. {first}"


def remarks_of(files: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield sentences on what is not seen of some files, from their names and remarks."""
    remarks = Remarks()
    for file, remark in files:
        remarks.add(file, remark)
    yield from remarks.notes()
