"""What the system refuses of a file costs one clear error, whichever command meets it and wherever."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from finetune import cli
from finetune.cache_entries import make_room
from finetune.checkpoint.run_folder import check_new
from finetune.errors import ResourceError

LONG = "x" * 300  # more than a name may have
COMMANDS = (
    ("plan", LONG),
    ("run", "--resume", LONG),
    ("predict", LONG, "imgs"),
    ("eval", LONG),
    ("export", LONG),
    ("compare", LONG, LONG),
    ("runs", LONG),
    ("runs", "show", LONG),
    ("sample", LONG),
    ("recipes", "copy", "head-only", LONG),
)


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr("sys.argv", ["finetune", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nobody may look into, not even who may look into any."""
    folder, look = tmp_path / "closed", os.stat
    folder.mkdir()

    def stat(path: object, **more: object) -> os.stat_result:
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(folder / "inside"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return look(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_name_that_is_too_long_is_no_bug(words, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(monkeypatch, *words) in (2, 3, 5, 6)
    assert capsys.readouterr().err.replace("note:", "").startswith("error: ")


def test_a_folder_that_may_not_be_read_is_named_with_the_way_out(closed, monkeypatch, capsys) -> None:
    assert ended(monkeypatch, "runs", str(closed / "inside")) == 5
    said = capsys.readouterr().err.replace("\n", " ")
    assert "Permission denied" in said and "hint: Check its permissions" in said


def test_what_no_file_is_to_blame_for_stays_a_bug(monkeypatch) -> None:
    def wrong(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("finetune.cli.app.app", wrong)
    monkeypatch.setattr("sys.argv", ["finetune"])
    with pytest.raises(OSError, match="Invalid"):
        cli.main()


def test_a_cache_folder_that_may_not_be_looked_into_stops_nothing(closed) -> None:
    assert make_room(closed / "inside" / "entries", needed=1, limit=1)


def test_a_run_folder_in_a_place_that_may_not_be_looked_into_is_refused_before_any_work(closed, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResourceError, match=f"{closed} is not a writable folder"):
        check_new(closed / "inside" / "run")
