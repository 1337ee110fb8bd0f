"""Images behind addresses on the web: fetched into memory, within a limit of time and of size."""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError

from finetune.images.decode import UndecodableError

SCHEMES = ("http://", "https://")
PAGES = ("text/html", "application/json")  # what servers send that have no image at the address
SILENCE = 20.0  # seconds that a server may say nothing
MOST_SECONDS = 120.0  # that one image may take as a whole
LARGEST = 2**28  # bytes
CHUNK = 2**16


def is_address(name: str) -> bool:
    """Return whether a name is an address that an image can be fetched from."""
    return name.lower().startswith(SCHEMES)


def fetched(address: str) -> bytes:
    """Return the bytes that lie behind an address.

    Raises:
        UndecodableError: there is no answer, or it is an error, too slow or too large.
    """
    try:
        asked = request.Request(address, headers={"User-Agent": "finetune", "Accept": "image/*,*/*;q=0.5"})
        with _opener().open(asked, timeout=SILENCE) as answer:
            return _body(answer)
    except HTTPError as error:
        error.close()
        raise UndecodableError(f"cannot be fetched: the server says {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise UndecodableError(_silent()) from error
    except URLError as error:
        why = _silent() if isinstance(error.reason, TimeoutError) else f"cannot be fetched: {error.reason}"
        raise UndecodableError(why) from error
    except (OSError, HTTPException, ValueError) as error:
        raise UndecodableError(f"cannot be fetched: {str(error) or type(error).__name__}") from error


def _opener() -> request.OpenerDirector:
    """Return an opener for http and https, with redirects, and nothing else: urllib's own would follow one to ftp."""
    opener = request.OpenerDirector()
    handlers = (
        request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler, request.HTTPErrorProcessor, request.UnknownHandler,
    )  # fmt: skip
    for handler in handlers:
        opener.add_handler(handler())
    return opener


def _body(answer: Any) -> bytes:
    """Return what an answer holds.

    Raises:
        UndecodableError: no image, too much, or too slow.
    """
    if (kind := answer.headers.get_content_type()) in PAGES:
        raise UndecodableError(f"it is {kind}, not an image")
    begun, parts, size = time.monotonic(), [], 0
    told = int(answer.headers.get("Content-Length") or 0)
    while part := answer.read1(CHUNK) if told <= LARGEST else b"":
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            break
        if time.monotonic() - begun > MOST_SECONDS:
            raise UndecodableError(f"cannot be fetched: not complete after {MOST_SECONDS:g} seconds")
    if max(size, told) > LARGEST:
        raise UndecodableError(f"cannot be fetched: more than {LARGEST / 2**20:g} MiB")
    if size < told:
        raise UndecodableError(f"cannot be fetched: the connection ends after {size:,} of {told:,} bytes")
    return b"".join(parts)


def _silent() -> str:
    return f"cannot be fetched: no answer within {SILENCE:g} seconds"
