"""Text from files, as a terminal may show it: a name can hold escape sequences, and bytes that are no text."""

from __future__ import annotations

import re

from rich import markup

# Control characters but the line's end, separators and marks that turn the direction of writing, stray halves.
UNSHOWN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Yield a text with what a terminal would obey, or could not print, spelt out: \\x1b, \\u202e, \\xff."""
    return UNSHOWN.sub(_spelt, text)


def escape(text: str) -> str:
    """Yield a text as it is to stand in one line of rich's markup, printable."""
    return markup.escape(printable(text).replace("\n", "\\n"))


def _spelt(found: re.Match[str]) -> str:
    code = ord(found.group())
    is_byte = 0xDC80 <= code <= 0xDCFF  # as Python hands on bytes of a name that are no UTF-8
    return f"\\x{code - 0xDC00:02x}" if is_byte else found.group().encode("unicode_escape").decode()
