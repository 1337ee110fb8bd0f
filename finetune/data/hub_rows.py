"""Rows that hold images, as in data sets of the Hub, laid out as tar shards.

    with as_shards("hfds:OWNER/NAME", "image", columns, near=out) as path:    # "wds:FOLDER", gone after the block

`hfds:` names a data set of the Hub, with :CONFIG behind it if it has several, or a file or folder of this machine, as
`hf download` and `datasets.save_to_disk` write them. Class numbers get the names that the schema of the file has for
them (`ClassLabel`). Splits are told from the names of files and folders, as for shards.

What is not covered: rows with the path of an image instead of the image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.hub_files import find_files
from finetune.data.parquet_files import read_by_pyarrow
from finetune.data.places import HUB, SHARDS
from finetune.data.shard_writer import add_member, new_tar
from finetune.data.shards import Columns
from finetune.errors import DataError, RecipeError, did_you_mean
from finetune.images.files import FORMS, begins_as
from finetune.types import Event, OnEvent, ignore
from finetune.whole import held, named, there_above, unwritable
from finetune.wording import listed

ROWS_AT_ONCE = 100
FAILED = "{path}: cannot be read"
ENDINGS = {"JPEG": ".jpg", "TIFF": ".tif"}  # the others end as they are called


@dataclass(frozen=True, slots=True)
class _Rows:
    """The columns of a row that are read ("" if there is none), and the names of the classes in a column of numbers."""

    image: str
    label: str
    split: str
    group: str
    classes: dict[str, tuple[str, ...]]  # by column


@contextmanager
def as_shards(
    path: str, image_column: str, columns: Columns, *, near: Path, on_event: OnEvent = ignore
) -> Iterator[str]:
    """Yield the `data.path` of shards that hold all rows of a data set, in a folder that is gone after the block.

    The .json beside each image has its label, split and group under the names in `columns`.

    Raises:
        DataError: it is not there, cannot be read, or holds no images. RecipeError: it lacks a column.
        ResourceError: the folder, which lies beside `near`, cannot be written.
    """
    root, files = find_files(path.removeprefix(HUB), on_event=on_event)
    near = named(near)
    place = there_above(near.parent) / f".{near.name}.rows"
    with held(place):
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        try:
            try:
                place.mkdir()
                num_images = sum(_laid_out(root, files, place, image_column, columns, on_event))
            except OSError as error:
                raise unwritable(near, error) from error
            if not num_images:
                raise DataError(
                    f"{path}: no row holds an image",
                    hint="If it names images by path, use it as a table: finetune run TABLE.parquet.",
                )
            yield f"{SHARDS}{place}"
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _laid_out(
    root: Path, files: Sequence[Path], folder: Path, image: str, columns: Columns, on_event: OnEvent
) -> Iterator[bool]:
    """Write each file as a shard of the same name, and yield for each row whether it has an image."""
    total, done = sum(map(_num_rows, files)), 0
    for file in files:
        rows = _columns(file, image, columns)
        place = (folder / file.relative_to(root)).with_suffix(".tar")
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_tar(place) as tar:
            for number, row in enumerate(_rows(file, rows)):
                content = _image(row[rows.image])
                if content is not None:
                    add_member(tar, f"{number:09d}{_ending(content)}", content)
                about = _about(row, rows, columns, f"{file.name}, row {number + 1}")
                add_member(tar, f"{number:09d}.json", json.dumps(about).encode())
                done += 1
                on_event(Event.progress("read rows", done, total))
                yield content is not None


def _image(cell: Any) -> bytes | None:
    """Return the bytes of an image: the cell, or those that a cell of the Hub has beside a path."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) and content else None


def _ending(content: bytes) -> str:
    form = next((form for form in FORMS if begins_as(content, form)), "JPEG")  # what is no image is found damaged later
    return ENDINGS.get(form, f".{form.lower()}")


def _about(row: dict[str, Any], rows: _Rows, columns: Columns, place: str) -> dict[str, Any]:
    """Return the content of the .json beside an image.

    Raises:
        DataError: its class is not a class, or has no name.
    """
    pairs = ((columns.label, rows.label), (columns.split, rows.split), (columns.group, rows.group))
    return {key: _named(row[name], rows.classes.get(name, ()), f"{place}, {name}") for key, name in pairs if name}


def _named(value: Any, classes: Sequence[str], place: str) -> Any:
    """Return a cell as JSON can hold it: the number of a class as its name, and -1, which means none, as None.

    Raises:
        DataError: it is not a class.
    """
    if isinstance(value, list):
        return [_named(one, classes, place) for one in value]
    if isinstance(value, bytes | dict):
        raise DataError(f"{place}: {type(value).__name__} is not a class", hint="--label-column names the column.")
    if not classes or value is None or not isinstance(value, int):
        return value if isinstance(value, str | int | float | None) else str(value)
    if value >= len(classes):
        raise DataError(f"{place}: its class is {value}, but only {len(classes)} are named")
    return classes[value] if value >= 0 else None


def _columns(file: Path, image: str, columns: Columns) -> _Rows:
    """Return the columns of a file that are read: those that are named, else the only ones that can be meant.

    Raises:
        RecipeError: there is none.
    """
    schema = _schema(file)
    features = _features(schema)
    images = [name for name, feature in features.items() if _is(feature, "Image")]
    labels = {name: names for name, feature in features.items() if (names := _class_names(feature)) is not None}
    return _Rows(
        _column(file, image, schema.names, images, "image_column"),
        _column(file, columns.label, schema.names, list(labels), "label_column"),
        columns.split if columns.split in schema.names else "",
        columns.group if columns.group in schema.names else "",
        {name: tuple(names) for name, names in labels.items()},
    )


def _column(file: Path, named: str, there: Sequence[str], likely: Sequence[str], key: str) -> str:
    if named in there:
        return named
    if len(likely) == 1 and named == key.removesuffix("_column"):
        return likely[0]
    raise RecipeError(
        f"{file} has no column {named!r}.{did_you_mean(named, there)}",
        hint=f"It has {listed(there, most=20)}. Name the right one with --set data.{key}=NAME.",
    )


def _features(schema: Any) -> dict[str, Any]:
    """Return what `datasets` has written about each column; nothing if it did not write the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _is(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of the classes in a column of class numbers or of lists of them; None for other columns."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if _is(feature, "ClassLabel"):
        return [str(name) for name in feature.get("names") or ()]
    return _class_names(feature["feature"]) if isinstance(feature, dict) and "feature" in feature else None


def _schema(file: Path) -> Any:
    with read_by_pyarrow(file, failed=FAILED):
        from pyarrow import parquet

        return parquet.read_schema(file) if file.suffix == ".parquet" else _stream(file).schema


def _num_rows(file: Path) -> int:
    with read_by_pyarrow(file, failed=FAILED):
        from pyarrow import parquet

        if file.suffix == ".parquet":
            return int(parquet.read_metadata(file).num_rows)
        return sum(batch.num_rows for batch in _stream(file))


def _rows(file: Path, rows: _Rows) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, with the columns that are read."""
    names = list(dict.fromkeys(name for name in (rows.image, rows.label, rows.split, rows.group) if name))
    with read_by_pyarrow(file, failed=FAILED):
        from pyarrow import parquet

        if file.suffix == ".parquet":
            batches = parquet.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=names)
        else:
            batches = (batch.select(names) for batch in _stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield from batch.slice(start, ROWS_AT_ONCE).to_pylist()


def _stream(file: Path) -> Any:
    from pyarrow import ipc, memory_map

    return ipc.open_stream(memory_map(str(file)))
