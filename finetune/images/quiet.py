"""Silence for the messages of image libraries about odd files."""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache

from PIL import _imaging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Pillow, libtiff and tifffile say about odd files inside the block.

    Filters belong to the whole process: with several blocks at a time, in threads too, the first sets them and the
    last puts them back.
    """
    with _QUIET.lock:
        if not _QUIET.depth:
            _QUIET.stack.enter_context(_silence())
        _QUIET.depth += 1
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.depth -= 1
            if not _QUIET.depth:
                _QUIET.stack.close()


class _Quiet:
    """How many blocks want silence, and what ends it."""

    def __init__(self) -> None:
        self.lock, self.depth, self.stack = threading.Lock(), 0, ExitStack()


_QUIET = _Quiet()


@contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("PIL", "tifffile")]
    levels, handlers = [logger.level for logger in loggers], [setter(None) for setter in _libtiff_setters()]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for setter, handler in zip(_libtiff_setters(), handlers, strict=True):
            setter(handler)


@cache
def _libtiff_setters() -> tuple[Callable[[int | None], int | None], ...]:
    """Return the functions that set libtiff's handlers, which print to stderr; none where they have no names."""
    setters = []
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = library[name]
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setters.append(setter)
    return tuple(setters)
