"""Images sorted into a folder of each class, as copies or as links; all of them, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import RecipeError
from finetune.whole import check_vacant, new_whole_folder

A_NEW = "Name a new folder with --copy-to."
UNSURE = "unsure"  # the folder of images that should not be named


class SortedCopies:
    """A folder that images are sorted into; those that are not files on this machine are counted."""

    def __init__(self, folder: Path, *, is_linked: bool) -> None:
        self.folder, self.is_linked = folder, is_linked
        self.num_sorted = self.num_left = 0
        self._numbers: dict[Path, int] = {}  # of names that are there twice, the last number

    def add(self, file: str, label: str) -> None:
        """Put a file into the folder of a class; of two files of one name, the second is called `name-2`.

        Raises:
            OSError: it cannot be written, or the file cannot be read.
        """
        path = Path(file)
        if not path.is_file():
            self.num_left += 1
            return
        place = self._vacant(self.folder / label / path.name)
        place.parent.mkdir(exist_ok=True)
        if self.is_linked:
            place.symlink_to(path.absolute())
        else:
            shutil.copyfile(path, place)
        self.num_sorted += 1

    def _vacant(self, place: Path) -> Path:
        found = place
        while os.path.lexists(found):
            self._numbers[place] = self._numbers.get(place, 1) + 1
            found = place.with_name(f"{place.stem}-{self._numbers[place]}{place.suffix}")
        return found


def check_sortable(place: Path, classes: Collection[str], *, has_unsure: bool) -> None:
    """Check, before anything is computed, that images of these classes can be sorted into a folder.

    Raises:
        ResourceError: it holds something already. RecipeError: a class whose name cannot be that of a folder.
    """
    check_vacant(place, hint=A_NEW)
    for name in classes:
        if name in ("", ".", "..") or set(name) & set("/\\\0") or name.startswith("."):
            raise RecipeError(f"the class {name!r} cannot be a folder name", hint="Leave out --copy-to.")
    if has_unsure and UNSURE in classes:
        raise RecipeError(
            f"a class is called {UNSURE!r}, like the folder for unsure images",
            hint="Leave out --copy-to, or --unsure, --coverage and --threshold.",
        )


@contextmanager
def sorted_copies(place: Path, *, is_linked: bool = False) -> Iterator[SortedCopies]:
    """Yield the new folder to sort images into; it is filled beside its place and moved there when the block ends.

    Raises:
        ResourceError: it holds something, another process writes it, the disk is full, or it cannot be written.
    """
    with new_whole_folder(place, hint=A_NEW) as beside:
        yield SortedCopies(beside, is_linked=is_linked)
