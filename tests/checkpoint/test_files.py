"""The JSON files of run folders: read back as they were written, and what is damaged costs one error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoint.cache_choices import BeganCached
from finetune.checkpoint.comparison import Clock, open_comparison, seconds_by_epoch
from finetune.checkpoint.contents import Beginning, read_as, read_problems
from finetune.checkpoint.race_file import RaceRecord, open_race
from finetune.checkpoint.run_folder import RunFolder, check_new, is_unwritten, open_unfinished, read_classes, slug
from finetune.errors import CheckpointError, ResourceError
from finetune.settings import FORMAT_VERSION
from finetune.types import Event, Problem

RACE = {
    "format_version": FORMAT_VERSION, "starts": ["full", "head-only"], "rungs": [2], "winner": None,
    "work": {name: {"epochs": [1.0], "num_images": 3} for name in ("full", "head-only")},
}  # fmt: skip
COMPARISON = {"strategies": ["full"], "seeds": [0], "classes": ["a"], "data": "d", "failed": {}, "standings": None}


def test_how_phases_began_is_read_back_and_only_changes_are_written(tmp_path: Path) -> None:
    began = BeganCached(RunFolder(tmp_path))
    assert began.get(0) is None
    began.set(0, True)
    began.set(1, False)
    again = BeganCached(RunFolder(tmp_path))
    assert [again.get(phase) for phase in range(3)] == [True, False, None]
    stamp = RunFolder(tmp_path).cached.stat().st_mtime_ns
    again.set(1, False)
    assert RunFolder(tmp_path).cached.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("content", ["", "[]", '{"phases": {"0": 1}}', '{"format_version": 99, "phases": {}}'])
def test_damaged_choices_are_refused_by_name(tmp_path: Path, content: str) -> None:
    RunFolder(tmp_path).cached.write_text(content)
    with pytest.raises(CheckpointError, match=r"cached\.json"):
        BeganCached(RunFolder(tmp_path))


def race(tmp_path: Path, **changes: Any) -> RaceRecord:
    RunFolder(tmp_path).race.write_text(json.dumps(RACE | changes))
    return open_race(RunFolder(tmp_path))


def test_a_race_is_read_back(tmp_path: Path) -> None:
    assert race(tmp_path, winner="full").winner == "full"


@pytest.mark.parametrize(
    "changes",
    [{"starts": ["../full", "head-only"]}, {"starts": []}, {"winner": "scratch"}, {"rungs": [0]}, {"rungs": []},
     {"work": {}}, {"starts": ["."]}],
)  # fmt: skip
def test_a_race_that_none_was_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="does not hold a race"):
        race(tmp_path, **changes)


def test_a_comparison_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(CheckpointError, match="is not a comparison folder"):
        (tmp_path / "file").write_text("x")
        open_comparison(tmp_path)
    folder.comparison.write_text(json.dumps({"format_version": FORMAT_VERSION, **COMPARISON}))
    found, record = open_comparison(tmp_path)
    assert record.seeds == [0] and found.run("full-0").path == tmp_path / "runs" / "full-0"
    record.model_copy(update={"seeds": []}).write(found)
    with pytest.raises(CheckpointError, match="does not hold a comparison"):
        open_comparison(tmp_path)


def test_a_clock_goes_on_where_it_stopped_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    place = tmp_path / "clocks" / "full-0.jsonl"
    place.parent.mkdir()
    place.write_text('{"epoch": 1, "seconds": 100.0}\n{"epoch": 2, "sec')
    assert seconds_by_epoch(place) == {1: 100.0}
    place.write_text('{"epoch": 1, "seconds": 100.0}\n')
    Clock(place)(Event("epoch", {"epoch": 2}))
    assert seconds_by_epoch(place)[2] >= 100.0


def test_a_beginning_names_what_is_wrong_in_it(tmp_path: Path) -> None:
    good = {"recipe": {"train": {}}, "versions": {}, "weights": "", "threads": 1, "allowed": []}
    place = tmp_path / "began.json"
    place.write_text(json.dumps(good))
    assert read_as(Beginning, place).threads == 1
    for change, where in (({"threads": "many"}, "threads"), ({"recipe": {"train": 1}}, "recipe.train")):
        place.write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=rf"began\.json .*{where}"):
            read_as(Beginning, place)


def test_problems_are_read_back_with_their_formulas(tmp_path: Path) -> None:
    place = tmp_path / "problems.csv"
    place.write_text("file,reason\n'=a.jpg,damaged\n")
    assert read_problems(place) == [Problem("=a.jpg", "damaged")]
    place.write_text("name,reason\n")
    with pytest.raises(CheckpointError, match="its columns differ"):
        read_problems(place)


def test_classes_are_those_of_the_plan(tmp_path: Path) -> None:
    RunFolder(tmp_path).plan.write_text('{"classes": ["a", "b"]}')
    assert read_classes(RunFolder(tmp_path)) == ("a", "b")
    RunFolder(tmp_path).plan.write_text('{"classes": []}')
    with pytest.raises(CheckpointError, match="names no classes"):
        read_classes(RunFolder(tmp_path))


def test_a_new_run_wants_an_empty_place_and_hidden_files_are_nothing(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    check_new(tmp_path)
    assert is_unwritten(RunFolder(tmp_path))
    with pytest.raises(CheckpointError, match="stopped before it wrote anything"):
        open_unfinished(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ResourceError, match="is not empty"):
        check_new(tmp_path)
    with pytest.raises(ResourceError, match="not a writable folder"):
        check_new(tmp_path / "mine.txt" / "run")


@pytest.mark.parametrize(
    ("word", "name"), [("my images", "my_images"), ("../..", "x"), ("été", "t"), ("a.b_C1", "a.b_C1")]
)
def test_a_word_in_the_name_of_a_folder_is_plain(word: str, name: str) -> None:
    assert slug(word) == name
