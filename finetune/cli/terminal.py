"""Text as a terminal may show it: what it would obey spelt out, and lines that are broken between words only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rich import console as rich_console
from rich import markup
from rich.cells import cell_len
from rich.text import Text

# Control characters except the line's end, separators and marks that turn the direction of writing, stray halves.
UNSHOWN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

UNITS = "%|[KMG]i?B|MB|[MGk]|ms|s|min|h|pixels|images|classes|epochs?"
VALUE = rf"[-\d][\d.,]*%?(?: ± [\d.]+%?| \[[-\d][^\[\]]*\]| (?:{UNITS})(?!\w))?"  # with its interval or its unit
# What is read, or copied, as a whole: words, and the following with their spaces.
WORD = re.compile(
    r"(?:`[^`]*`"  # a command in a sentence
    r"|(?:(?<=: )|(?<=^  )|^)finetune [a-z].*"  # a command to the end of its line
    r"|--[a-z-]+ [\w./:]+"  # a flag with its value
    r"|(?:epoch|phase|pixels,|step|top|view) \d[\d/]*"
    rf"|\S+ (?=[-\d]\d*\.\d){VALUE}"  # a name with its value
    rf"|{VALUE}"
    r"|\[[^\[\]]{1,30}\]|\([^()]{1,20}\)"  # an interval, a short remark
    r"|\S)+"
)
UNBROKEN = 100_000  # the width where there is no terminal: lines of a file are not broken


class Console(rich_console.Console):
    """A console that breaks no word, number, interval or command; in a file a line stays a line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, **settings)
        if not self.is_terminal and "width" not in settings:
            self.width = UNBROKEN

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does, texts broken between words, and what is longer than a line left to the terminal."""
        shown = (wrapped(self._text(item), self.width) if isinstance(item, str | Text) else item for item in objects)
        super().print(*shown, **{"soft_wrap": True, **how})

    def _text(self, text: str | Text) -> Text:
        return self.render_str(text) if isinstance(text, str) else text


def wrapped(text: Text, width: int) -> Text:
    """Return a text broken into lines of at most `width` cells, except for words that are longer."""
    lines = text.split("\n", allow_blank=True)
    return Text("\n").join(part for line in lines for part in _parts(line, width))


def longest_word(text: str) -> int:
    """Return the width of the longest part of a text that is not to be broken."""
    return _indent(text) + max((cell_len(match.group()) for match in WORD.finditer(text)), default=0)


def _parts(line: Text, width: int) -> Iterator[Text]:
    indent = _indent(line.plain)
    breaks: list[int] = []
    start = 0
    for match in WORD.finditer(line.plain):
        room = width - indent * bool(breaks)
        if match.start() > indent and cell_len(line.plain[start : match.end()]) > room:
            start = match.start()
            breaks.append(start)
    for place, part in enumerate(line.divide(breaks)):
        part.rstrip()
        part.pad_left(indent if place else 0)
        yield part


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def printable(text: str) -> str:
    """Return a text with what a terminal would obey, or could not print, spelt out: \\x1b, \\u202e, \\xff."""
    return UNSHOWN.sub(_spelt, text)


def escape(text: str) -> str:
    """Return a text as it is to stand in one line of rich's markup, printable."""
    return markup.escape(printable(text).replace("\n", "\\n"))


def _spelt(match: re.Match[str]) -> str:
    code = ord(match.group())
    is_byte = 0xDC80 <= code <= 0xDCFF  # as Python hands on bytes of a name that are no UTF-8
    return f"\\x{code - 0xDC00:02x}" if is_byte else match.group().encode("unicode_escape").decode()
