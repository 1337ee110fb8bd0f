"""Files sorted into a folder of each class: all of them or none, and nothing of what is there is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.sorted_copies import check_sortable, sorted_copies
from finetune.errors import RecipeError, ResourceError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / folder / "1.jpg" for folder in "abc"]
    for file in found:
        file.parent.mkdir()
        file.write_text(file.parent.name)
        file.chmod(0o400)
    return found


@pytest.mark.parametrize("is_linked", [False, True])
def test_files_of_one_name_are_numbered_and_those_that_are_none_are_counted(
    files: list[Path], tmp_path: Path, is_linked: bool
) -> None:
    with sorted_copies(tmp_path / "out", is_linked=is_linked) as copies:
        for file in files:
            copies.add(str(file), "ant")
        copies.add("http://127.0.0.1/x.png", "ant")
        assert not (tmp_path / "out").exists()
    found = sorted((tmp_path / "out" / "ant").iterdir())
    assert [(file.name, file.read_text()) for file in found] == [("1-2.jpg", "b"), ("1-3.jpg", "c"), ("1.jpg", "a")]
    assert (copies.num_sorted, copies.num_left) == (3, 1)
    assert all(file.is_symlink() == is_linked for file in found)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o400] * 3


def test_nothing_is_left_of_what_breaks_off(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), sorted_copies(tmp_path / "out") as copies:
        copies.add(str(files[0]), "ant")
        raise KeyboardInterrupt
    with pytest.raises(ResourceError, match="cannot be written"), sorted_copies(files[0] / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", "/etc", ".hidden"])
def test_a_class_that_is_no_name_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be a folder name"):
        check_sortable(tmp_path / "out", ["ant", name], has_unsure=False)


def test_a_folder_that_holds_something_and_a_class_called_unsure_are_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="is not empty"):
        check_sortable(tmp_path, ["ant"], has_unsure=False)
    check_sortable(tmp_path / "out", ["unsure"], has_unsure=False)
    with pytest.raises(RecipeError, match="a class is called 'unsure'"):
        check_sortable(tmp_path / "out", ["unsure"], has_unsure=True)
