"""Data sets of the Hub, and others whose Parquet or Arrow files hold the images themselves, laid out as tar shards.

    with as_shards("hfds:OWNER/NAME", columns, near=out) as path:   # "wds:FOLDER", there for as long as the block lasts

`hfds:` names a data set of the Hub, with :CONFIG behind it where it has several, or a file or folder of this machine:
what `hf download` or `datasets.save_to_disk` has left. Classes that are numbers get the names that the schema of the
file has for them (`ClassLabel`). Splits go by the names of files and folders, as those of shards do.

What is not covered: rows that hold paths of images, and not the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune.data.listing import holds
from finetune.data.places import HUB, SHARDS
from finetune.data.shard_writer import add_member, new_tar
from finetune.data.shards import Columns
from finetune.errors import DataError, RecipeError, did_you_mean
from finetune.hub import hub_is_reachable
from finetune.images.files import FORMS, begins_as
from finetune.types import Event, OnEvent, ignore
from finetune.whole import there_above, unwritable
from finetune.wording import counted, first_line, listed

KINDS = (".parquet", ".arrow")
CONVERTED = "refs/convert/parquet"  # the branch on which the Hub keeps any data set as Parquet
PARTIAL = "partial-"  # how the Hub's folders of a split begin of which it converted a part
ROWS_AT_ONCE = 100
ENDINGS = {"JPEG": ".jpg", "TIFF": ".tif"}  # the others end as they are called
NOT_HERE = (
    "Where there is a network: hf download {name} --repo-type dataset --local-dir FOLDER (add --revision"
    f" {CONVERTED} where it is not Parquet). Then hfds:FOLDER reads it anywhere."
)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What of a row is read: the columns of image, label, split and group, and the names of classes that are numbers.

    A column that is not there is "".
    """

    image: str
    label: str
    split: str
    group: str
    classes: dict[str, tuple[str, ...]]  # by column


@contextmanager
def as_shards(
    path: str, image_column: str, columns: Columns, *, near: Path, on_event: OnEvent = ignore
) -> Iterator[str]:
    """Yield data.path of tar shards with all rows of a data set, in a folder that is gone after the block.

    A .json beside each image has its label, split and group under the names that `columns` gives them.

    Raises:
        DataError: it is not there, cannot be read, or holds no images. RecipeError: it lacks a column.
        ResourceError: the folder, on the disk that `near` will be on, cannot be written.
    """
    root, files = _found(path.removeprefix(HUB), on_event)
    with ExitStack() as stack:
        try:
            folder = TemporaryDirectory(prefix=f".{near.name}.rows-", dir=there_above(near.parent))
            place = Path(stack.enter_context(folder))
            num_images = sum(_laid_out(root, files, place, image_column, columns, on_event))
        except OSError as error:
            raise unwritable(near, error) from error
        if not num_images:
            raise DataError(
                f"{path}: no row has the bytes of an image",
                hint="Images that a table names by their paths are read from it: finetune run TABLE.parquet.",
            )
        yield f"{SHARDS}{place}"


def _laid_out(
    root: Path, files: Sequence[Path], folder: Path, image: str, columns: Columns, on_event: OnEvent
) -> Iterator[bool]:
    """Write every file as a shard of the same name, and yield of each row whether it has an image."""
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
    """Return the bytes of an image: a cell, or what a cell of the Hub has beside a path."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) and content else None


def _ending(content: bytes) -> str:
    form = next((form for form in FORMS if begins_as(content, form)), "JPEG")  # what is none is found to be damaged
    return ENDINGS.get(form, f".{form.lower()}")


def _about(row: dict[str, Any], rows: _Rows, columns: Columns, place: str) -> dict[str, Any]:
    """Return what is written beside an image.

    Raises:
        DataError: its class is none of those that are named, or no class.
    """
    pairs = ((columns.label, rows.label), (columns.split, rows.split), (columns.group, rows.group))
    return {key: _named(row[name], rows.classes.get(name, ()), f"{place}, {name}") for key, name in pairs if name}


def _named(value: Any, classes: Sequence[str], place: str) -> Any:
    """Return a cell as JSON takes it, a number of a class as its name; -1, which stands for none, as None.

    Raises:
        DataError: it is no class.
    """
    if isinstance(value, list):
        return [_named(one, classes, place) for one in value]
    if isinstance(value, bytes | dict):
        raise DataError(f"{place}: {type(value).__name__} is no class", hint="--label-column names the column.")
    if not classes or value is None or not isinstance(value, int):
        return value if isinstance(value, str | int | float | None) else str(value)
    if value >= len(classes):
        raise DataError(f"{place}: its class is {value}, and {len(classes)} are named")
    return classes[value] if value >= 0 else None


def _columns(file: Path, image: str, columns: Columns) -> _Rows:
    """Return what of a file is read: the columns that are named, else the one that must be meant.

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
    """Return what `datasets` says of each column, nothing where it has not written the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _is(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of classes that a column holds the numbers of, one or a list in each row."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if _is(feature, "ClassLabel"):
        return [str(name) for name in feature.get("names") or ()]
    return _class_names(feature["feature"]) if isinstance(feature, dict) and "feature" in feature else None


@contextmanager
def _as_data_error(file: Path) -> Iterator[None]:
    """Turn what reading a file raises into one error.

    Raises:
        DataError: it is damaged, or the library for it is missing.
    """
    try:
        from pyarrow import ArrowException
    except ImportError:
        raise DataError(f"{file}: reading it needs pyarrow", hint='pip install "finetune[parquet]"') from None
    try:
        yield
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: cannot be read: {first_line(error)}") from error


def _schema(file: Path) -> Any:
    with _as_data_error(file):
        from pyarrow import parquet

        return parquet.read_schema(file) if file.suffix == ".parquet" else _stream(file).schema


def _num_rows(file: Path) -> int:
    with _as_data_error(file):
        from pyarrow import parquet

        if file.suffix == ".parquet":
            return int(parquet.read_metadata(file).num_rows)
        return sum(batch.num_rows for batch in _stream(file))


def _rows(file: Path, rows: _Rows) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, of the columns that are read."""
    names = list(dict.fromkeys(name for name in (rows.image, rows.label, rows.split, rows.group) if name))
    with _as_data_error(file):
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


def _found(where: str, on_event: OnEvent) -> tuple[Path, list[Path]]:
    """Return the files of a data set, and the folder that they are relative to.

    Raises:
        DataError: there are none.
    """
    place = Path(where).expanduser()
    if not holds(place.exists):
        place, files = _fetched(where, on_event)
        return place, files
    if place.is_file():
        files = [place] if place.suffix in KINDS else []
        root = place.parent
    else:
        hidden = (file for file in place.rglob("*") if file.suffix in KINDS)
        files = sorted(file for file in hidden if not any(p.startswith(".") for p in file.relative_to(place).parts))
        root = place
    if not files:
        raise DataError(f"{HUB}{where}: no {' or '.join(KINDS)} file there", hint="A folder of images needs no hfds:.")
    return root, files


def _fetched(where: str, on_event: OnEvent) -> tuple[Path, list[Path]]:
    """Return the files of a data set of the Hub, fetched unless they are here, and their folder.

    Raises:
        DataError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name, _, config = where.partition(":")
    try:
        validate_repo_id(name)
        if not hub_is_reachable():
            raise ConnectionError("no answer")
        revision, names = _files_on_hub(name, config)
        parts = [file for file in names if any(part.startswith(PARTIAL) for part in file.split("/"))]
        if parts:
            on_event(
                Event.warning(f"{name}: the Hub has converted a part of it alone, which is read ({parts[0]}, ...)")
            )
        on_event(Event.message(f"{name}: {counted(len(names), 'file')} of the Hub, fetched unless they are here"))
        root = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=names))
    except HFValidationError as error:
        raise DataError(
            f"{HUB}{where}: no such file or folder, and no name of a data set",
            hint="hfds:OWNER/NAME, hfds:OWNER/NAME:CONFIG or hfds:FOLDER.",
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{HUB}{where}: no such file or folder, and the Hub has no data set {name}",
            hint="One that is private asks for a login: hf auth login.",
        ) from error
    except DataError:
        raise
    except Exception as error:  # what finds no way has classes of its own in every version of the library
        raise DataError(
            f"{HUB}{where}: no such file or folder, and the Hub cannot be reached: {first_line(error)}",
            hint=NOT_HERE.format(name=name),
        ) from error
    return root, [root / file for file in names]


def _files_on_hub(name: str, config: str) -> tuple[str, list[str]]:
    """Return on which branch the Parquet files of a data set lie, and their names.

    Raises:
        DataError: there are none, or several sets of them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    for revision in ("main", CONVERTED):
        try:
            names = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        except RevisionNotFoundError:
            continue
        names = sorted(file for file in names if file.endswith(".parquet"))
        if names:
            return revision, _of_config(name, config, names)
    raise DataError(f"{HUB}{name}: the Hub has no Parquet files of it", hint="Fetch its images, and name their folder.")


def _of_config(name: str, config: str, names: Sequence[str]) -> list[str]:
    """Return the files of one configuration: those in its folder."""
    configs = sorted({file.split("/")[0] for file in names if "/" in file})
    wanted = config or ("default" if "default" in configs else "")
    if wanted in configs:
        return [file for file in names if file.startswith(f"{wanted}/")]
    if config or len(configs) > 1:
        what = (
            f"has no configuration {config!r}.{did_you_mean(config, configs)}"
            if config
            else "has several configurations"
        )
        raise DataError(
            f"{HUB}{name} {what}", hint=f"Name one of {listed(configs, most=20)}: hfds:{name}:{configs[0]}."
        )
    return list(names)
