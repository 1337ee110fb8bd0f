"""Rows that hold images become shards with the same bytes, names of classes and splits, or cost one clear word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from pyarrow import ipc, parquet

import finetune
from finetune.data import hub_files, sources
from finetune.errors import DataError, FinetuneError, RecipeError, ResourceError
from finetune.images.files import read_content
from tests.support import warned

Rows = Callable[..., Path]
CLASSES = ["ant", "bee"]
FEATURES = {
    "img": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": CLASSES},
    "tags": {"_type": "List", "feature": {"_type": "ClassLabel", "names": CLASSES}},
    "old_tags": [{"_type": "ClassLabel", "names": CLASSES}],
}


def table(images: list[bytes | None], features: dict[str, Any] | None = None, **columns: list[Any]) -> pa.Table:
    """Return a table as `datasets` writes it: a struct of bytes and path, and what the columns are in the schema."""
    cells = [None if content is None else {"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(images)]
    made = pa.table({"img": cells, **columns})
    features = FEATURES if features is None else features
    about = {"info": {"features": {name: features[name] for name in made.column_names if name in features}}}
    return made.replace_schema_metadata({"huggingface": json.dumps(about)})


@pytest.fixture
def contents(few: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(few.rglob("*.jpg"))[:8]]


def put(place: Path, rows: pa.Table) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".parquet":
        parquet.write_table(rows, place, row_group_size=3)
        return place
    with ipc.new_stream(place, rows.schema) as stream:
        stream.write_table(rows, max_chunksize=3)
    return place


def shown(shards: Path) -> dict[bytes, tuple[str, str | None, str | None]]:
    """Return label, split and group of every image of shards, by its bytes."""
    manifest = sources.read(f"wds:{shards}", needs_two_classes=False, needs_train=False, task="auto")
    return {
        read_content(Path(manifest.root, one.file)): (str(manifest.label(one.target)), one.split, one.group)
        for one in manifest.samples
    }


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_become_shards_with_the_bytes_classes_and_splits_that_they_had(
    contents: list[bytes], tmp_path: Path, kind: str
) -> None:
    """What `hf download` leaves names the split in the file, what `save_to_disk` leaves in the folder."""
    named = {"parquet": "data/{}-00000-of-00001.parquet", "arrow": "{}/data-00000-of-00001.arrow"}[kind]
    put(tmp_path / "set" / named.format("train"), table(contents[:6], label=[0, 1, 0, 1, 0, 1]))
    put(tmp_path / "set" / named.format("validation"), table(contents[6:], label=[1, 0]))
    written = finetune.shard(f"hfds:{tmp_path / 'set'}", out=tmp_path / "shards")
    assert written.num_images == 8
    expected = ["ant", "bee"] * 3 + ["bee", "ant"]
    assert shown(tmp_path / "shards") == {
        content: (label, "train" if place < 6 else "val", None)
        for place, (content, label) in enumerate(zip(contents, expected, strict=True))
    }
    assert {entry.name for entry in tmp_path.iterdir()} == {"set", "shards"}


def test_what_a_killed_process_left_of_the_rows_is_cleared_by_the_next(contents: list[bytes], tmp_path: Path) -> None:
    file = put(tmp_path / "x.parquet", table(contents, label=[0, 1] * 4))
    (tmp_path / ".shards.rows").mkdir()
    (tmp_path / ".shards.rows" / "old.tar").write_bytes(b"half")
    assert finetune.shard(f"hfds:{file}", out=tmp_path / "shards").num_images == 8
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.parquet", "shards"}


def test_lists_of_classes_groups_and_splits_in_columns_go_along(contents: list[bytes], tmp_path: Path) -> None:
    tags = [[0], [0, 1], [1], [0], [1], [0, 1], [0], [1]]
    rows = table(contents, tags=tags, patient=[f"p{n // 2}" for n in range(8)], part=["train"] * 6 + ["test"] * 2)
    file = put(tmp_path / "x.parquet", rows)
    overrides = {"data.label_column": "tags", "data.group_by": "patient", "data.split_column": "part"}
    finetune.shard(f"hfds:{file}", out=tmp_path / "shards", overrides=overrides)
    found = shown(tmp_path / "shards")
    assert found[contents[1]] == ("ant|bee", "train", "p0")
    assert found[contents[7]] == ("bee", "test", "p3")


def test_a_list_of_one_feature_names_classes_too(contents: list[bytes], tmp_path: Path) -> None:
    """Older versions of `datasets` wrote a list of classes so."""
    file = put(tmp_path / "x.parquet", table(contents, old_tags=[[0], [0, 1]] * 4))
    finetune.shard(f"hfds:{file}", out=tmp_path / "shards", overrides={"data.label_column": "old_tags"})
    assert {label for label, *_ in shown(tmp_path / "shards").values()} == {"ant", "ant|bee"}


def test_columns_that_must_be_meant_need_no_name(contents: list[bytes], tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": CLASSES}}
    file = put(tmp_path / "x.parquet", table(contents, features, kind=[0, 1] * 4, source=["a"] * 8))
    finetune.shard(f"hfds:{file}", out=tmp_path / "shards")
    assert {label for label, *_ in shown(tmp_path / "shards").values()} == set(CLASSES)


@pytest.mark.parametrize(
    ("columns", "overrides", "error", "said"),
    [
        ({"fine": [0] * 8, "coarse": [1] * 8}, {}, RecipeError, "no column 'label'"),
        ({"label": [0] * 8}, {"data.label_column": "lable"}, RecipeError, "Did you mean 'label'"),
        ({"label": [0] * 8}, {"data.image_column": "photo"}, RecipeError, "no column 'photo'"),
        ({"label": [0] * 7 + [5]}, {}, DataError, "row 8, label: its class is 5, but only 2 are named"),
        ({"label": [b"x"] * 8}, {}, DataError, "row 1, label: bytes is not a class"),
    ],
)
def test_columns_and_classes_that_are_none_are_one_error(
    contents: list[bytes], tmp_path: Path, columns: dict[str, Any], overrides: Any, error: type, said: str
) -> None:
    features = {**FEATURES, **dict.fromkeys(("fine", "coarse"), FEATURES["label"])}
    file = put(tmp_path / "set" / "x.parquet", table(contents, features, **columns))
    with pytest.raises(error, match=said):
        finetune.shard(f"hfds:{file}", out=tmp_path / "shards", overrides=overrides)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_rows_without_an_image_or_a_class_are_told(contents: list[bytes], tmp_path: Path) -> None:
    rows = table([*contents[:6], None, contents[7]], label=[0, 1] * 3 + [0, -1])
    file = put(tmp_path / "x.parquet", rows)
    _, told = warned(finetune.shard, f"hfds:{file}", out=tmp_path / "shards")
    assert len(shown(tmp_path / "shards")) == 6
    assert [line for line in told if "2 left out" in line and "x.tar/000000006 (has a .json, and no image)" in line]


def test_rows_of_paths_alone_and_damaged_files_are_one_error(contents: list[bytes], tmp_path: Path) -> None:
    paths = pa.table({"image": ["a.jpg", "b.jpg"], "label": ["x", "y"]})
    with pytest.raises(DataError, match="no row holds an image"):
        finetune.shard(f"hfds:{put(tmp_path / 'x.parquet', paths)}", out=tmp_path / "shards")
    whole = put(tmp_path / "y.parquet", table(contents, label=[0, 1] * 4))
    whole.write_bytes(whole.read_bytes()[:2000])
    for broken in (whole, tmp_path / "z.arrow"):
        broken.touch()
        with pytest.raises(DataError, match=f"{broken.name}: cannot be read"):
            finetune.shard(f"hfds:{broken}", out=tmp_path / "shards")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet or \.arrow file there"):
        finetune.shard(f"hfds:{tmp_path / 'none'}", out=tmp_path / "shards")


def test_a_folder_that_is_taken_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine").touch()
    with pytest.raises(ResourceError, match="not empty"):
        finetune.shard("hfds:nobody/nothing", out=tmp_path / "shards")


def test_every_other_command_names_the_one_that_writes_shards(tmp_path: Path, contents: list[bytes]) -> None:
    with pytest.raises(DataError) as refused:
        finetune.plan("hfds:a/b")
    assert "finetune shard hfds:a/b" in refused.value.hint
    file = put(tmp_path / "x.parquet", table(contents, label=[0, 1] * 4).rename_columns(["image", "label"]))
    with pytest.raises(DataError) as refused:
        sources.read(file)
    assert f"finetune shard hfds:{file}" in refused.value.hint


@pytest.fixture
def on_hub(contents: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A Hub of one data set: which Parquet files lie on which branch; what is fetched comes from a folder."""
    branches: dict[str, list[str]] = {}

    def files(_: Any, name: str, *, repo_type: str, revision: str) -> list[str]:
        assert repo_type == "dataset"
        answer = type("Answer", (), {"headers": {}, "status_code": 404, "request": None})()
        if name != "some/set":
            raise RepositoryNotFoundError("404", response=answer)
        if revision not in branches:
            raise RevisionNotFoundError("404", response=answer)
        return ["README.md", *branches[revision]]

    def fetch(name: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        place = tmp_path / "fetched" / revision
        for file in allow_patterns:
            put(place / file, table(contents[:4], label=[0, 1] * 2))
        return str(place)

    monkeypatch.setattr(hub_files, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return branches


@pytest.mark.parametrize(
    ("branches", "asked", "num_images"),
    [
        ({"main": ["data/train-00000-of-00001.parquet"]}, "some/set", 4),
        ({"main": [], hub_files.CONVERTED: ["default/train/0000.parquet"]}, "some/set", 4),
        ({"main": ["default/train.parquet", "other/train.parquet"]}, "some/set", 4),
        ({"main": ["small/train.parquet", "large/train.parquet"]}, "some/set:small", 4),
        ({"main": ["train.parquet"]}, "some/set", 4),
    ],
)
def test_the_files_of_the_hub_are_those_of_one_configuration(
    on_hub: dict[str, list[str]], tmp_path: Path, branches: dict[str, list[str]], asked: str, num_images: int
) -> None:
    on_hub.update(branches)
    assert finetune.shard(f"hfds:{asked}", out=tmp_path / "shards").num_images == num_images


@pytest.mark.parametrize(
    ("branches", "asked", "said"),
    [
        ({"main": ["small/a.parquet", "large/a.parquet"]}, "some/set", "has several configurations"),
        ({"main": ["small/a.parquet", "large/a.parquet"]}, "some/set:smal", "Did you mean 'small'"),
        ({"main": ["a.parquet"]}, "some/set:small", "no configuration 'small'"),
        ({"main": ["images.zip"]}, "some/set", "no Parquet files"),
        ({}, "some/other", "the Hub has no data set some/other"),
        ({}, "no/such/name", "not the name of a data set"),
        ({}, "images.parquet", "no such file"),
    ],
)
def test_what_the_hub_does_not_have_is_one_error(
    on_hub: dict[str, list[str]], tmp_path: Path, branches: dict[str, list[str]], asked: str, said: str
) -> None:
    on_hub.update({branch: [file for file in files if file.endswith("parquet")] for branch, files in branches.items()})
    with pytest.raises(DataError, match=said):
        finetune.shard(f"hfds:{asked}", out=tmp_path / "shards")


def test_a_data_set_of_which_the_hub_converted_a_part_is_told(on_hub: dict[str, list[str]], tmp_path: Path) -> None:
    on_hub[hub_files.CONVERTED] = ["default/partial-train/0000.parquet"]
    _, told = warned(finetune.shard, "hfds:some/set", out=tmp_path / "shards")
    assert any("converted only part of it" in line for line in told)


def test_without_a_hub_the_error_says_how_to_fetch_it_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="the Hub cannot be reached") as refused:
        finetune.shard("hfds:some/set", out=tmp_path / "shards")
    assert "hf download some/set --repo-type dataset" in refused.value.hint
