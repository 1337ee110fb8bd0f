"""What is written beside its place and renamed: whole or not at all, flushed, with the rights of the umask."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune import whole
from finetune.errors import ResourceError


@pytest.fixture
def umask() -> Callable[[int], None]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_umask_leaves_whatever_wrote_them(tmp_path, umask, mask, wanted) -> None:
    umask(mask)
    with whole.whole_file(tmp_path / "weights") as beside:
        save_file({"a": torch.zeros(2)}, beside)
    with whole.whole_folder(tmp_path / "model") as folder:
        save_file({"a": torch.zeros(2)}, folder / "weights")
        (folder / "config.json").write_text("{}")
    found = {rights(tmp_path / name) for name in ("weights", "model/weights", "model/config.json")}
    assert found == {wanted}


def test_bytes_are_flushed_before_the_name_stands_and_the_name_after_it(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    flush, replace = whole.flush, os.replace
    monkeypatch.setattr(whole, "flush", lambda path: (done.append(f"flush {path.name}"), flush(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"name {Path(b).name}"), replace(a, b)))
    whole.write_text(tmp_path / "split.csv", "a")
    assert done == ["flush .split.csv.new", "name split.csv", f"flush {tmp_path.name}"]
    done.clear()
    with whole.whole_folder(tmp_path / "last") as folder:
        (folder / "state.json").write_text("{}")
    assert done == ["flush state.json", "flush .last.new", "name last", f"flush {tmp_path.name}"]


def test_a_block_that_fails_leaves_what_stood_there_and_nothing_beside_it(tmp_path: Path) -> None:
    whole.write_text(tmp_path / "a.txt", "old")
    with whole.whole_folder(tmp_path / "model") as folder:
        (folder / "old").touch()
    with pytest.raises(ResourceError, match=r"a\.txt cannot be written: full"), whole.whole_file(tmp_path / "a.txt"):
        raise OSError("full")
    with pytest.raises(ResourceError, match="model cannot be written: full"), whole.whole_folder(tmp_path / "model"):
        raise OSError("full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "model"]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "model" / "old").exists()


def test_a_folder_is_vacant_whatever_is_hidden_in_it_and_what_is_hidden_stays(tmp_path: Path) -> None:
    place = tmp_path / "net"
    assert whole.is_vacant(place)
    place.mkdir()
    (place / ".DS_Store").touch()
    assert whole.is_vacant(place)
    with whole.whole_folder(place) as folder:
        (folder / "config.json").touch()
    assert sorted(path.name for path in place.iterdir()) == [".DS_Store", "config.json"]
    assert not whole.is_vacant(place)
    assert not whole.is_vacant(place / "config.json")


def test_a_copy_that_fails_names_one_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in "xy":
        (tmp_path / "a" / name).symlink_to(tmp_path / "gone")
    place = tmp_path / "b"
    with pytest.raises(ResourceError) as refused, whole.whole_folder(place) as beside:
        shutil.copytree(tmp_path / "a", beside, dirs_exist_ok=True)
    assert str(refused.value).count("No such file") == 1 and str(refused.value).startswith(f"{place} cannot be")


def test_the_folder_that_one_stands_in_is_filled_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    with whole.new_whole_folder(Path(), hint="") as folder:
        (folder / "a.tar").touch()
    assert [file.name for file in Path.cwd().iterdir()] == ["a.tar"]
    assert [file.name for file in tmp_path.iterdir()] == ["here"]


def test_a_place_that_another_process_writes_is_refused_and_what_it_writes_stays(tmp_path: Path) -> None:
    out = tmp_path / "new" / "shards"
    with whole.new_whole_folder(out, hint="Name another.") as beside:
        (beside / "a.tar").write_text("first")
        with pytest.raises(ResourceError, match="another process is writing"), whole.new_whole_folder(out, hint=""):
            pass
        assert (beside / "a.tar").read_text() == "first"
    assert [file.name for file in out.iterdir()] == ["a.tar"]
    with pytest.raises(ResourceError, match="is not empty"), whole.new_whole_folder(out, hint="Name another."):
        pass
    assert [file.name for file in out.parent.iterdir()] == ["shards"]
