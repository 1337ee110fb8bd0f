"""Silence for what the libraries of other formats say while they convert a network."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def without_remarks() -> Iterator[None]:
    """Keep the remarks of onnxruntime's tools off the user's screen."""
    was_disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was_disabled)


@contextlib.contextmanager
def without_words() -> Iterator[None]:
    """Keep what the converter prints, and what its libraries log past Python, off the user's screen."""
    kept = os.dup(2)
    try:
        with contextlib.redirect_stdout(io.StringIO()), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
