"""Parquet files, and Arrow files, read by pyarrow: what goes wrong is one error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.wording import first_line


@contextmanager
def read_by_pyarrow(path: Path, *, failed: str = "{path} cannot be read as Parquet") -> Iterator[None]:
    """Turn what pyarrow raises inside the block into one error, which begins with `failed`.

    Raises:
        DataError: the file cannot be read, or pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow", hint='pip install "finetune[parquet]", or save it as CSV.'
        ) from None
    try:
        yield
    except (OSError, ArrowException) as error:
        raise DataError(f"{failed.format(path=path)}: {first_line(error)}") from error


def open_parquet(path: Path) -> Any:
    """Return a file of pyarrow; unlike its `read_table`, it takes two columns of one name.

    Raises:
        DataError: it cannot be read, or pyarrow is not installed.
    """
    with read_by_pyarrow(path):
        from pyarrow import parquet

        return parquet.ParquetFile(path)
