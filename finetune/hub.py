"""Whether the model hub, or another address, answers: asked once per process, with a short timeout."""

from __future__ import annotations

from functools import cache
from queue import Empty, Queue
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

PATIENCE = 2.5  # seconds for an answer; a name that is not resolved can block far beyond the timeout of a socket


def hub_is_reachable(address: str | None = None) -> bool:
    """Return whether the model hub, or another address, answers; False if the hub's offline switches are set."""
    return not constants.HF_HUB_OFFLINE and _status(address or constants.ENDPOINT) is not None


def hub_gives(model: str) -> bool:
    """Return whether the model hub hands out the weights of OWNER/NAME; False if it refuses."""
    if not hub_is_reachable():
        return False
    return _status(f"{constants.ENDPOINT}/{model}/resolve/main/model.safetensors", is_first_byte=True) in (200, 206)


@cache
def _status(address: str, *, is_first_byte: bool = False) -> int | None:
    """Return the HTTP status of an address, for HEAD or its first byte; None if nothing answers in time."""
    answers: Queue[int | None] = Queue()
    Thread(target=lambda: answers.put(_ask(address, is_first_byte)), daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE)
    except Empty:
        return None


def _ask(address: str, is_first_byte: bool) -> int | None:
    headers = {"Range": "bytes=0-0"} if is_first_byte else {}
    request = Request(address, method="GET" if is_first_byte else "HEAD", headers=headers)
    try:
        with urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code  # an answer, if not the one asked for
    except (OSError, ValueError):
        return None
