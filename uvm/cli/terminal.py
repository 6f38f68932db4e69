"""The terminal: its width, its colours, and which characters it can show."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TextIO, get_args

from attrs import astuple, define, frozen

Style = Literal["bold", "dim", "red", "green", "yellow", "blue", "magenta", "cyan"]

_CODES: Final = dict(zip(get_args(Style), (1, 2, 31, 32, 33, 34, 35, 36), strict=True))

#: Without a terminal; the narrowest that a SCSI controller fits in; the widest that reads well.
_DEFAULT_WIDTH: Final = 100
_NARROWEST, _WIDEST = 80, 120

#: The errors of a write to a pipe without a reader; the C library of Windows reports EINVAL.
_READER_GONE: Final = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)


@frozen
class Glyphs:
    """The characters that drawings are made of."""

    rule: str
    free: str
    bar: str
    yes: str
    no: str
    ellipsis: str
    differs: str


UNICODE: Final = Glyphs("─", "·", "│", "✓", "✗", "…", "≠")
ASCII: Final = Glyphs("-", ".", "|", "ok", "NO", "~", "!")


@define
class Terminal:
    """The output of a command: everything drawn goes through :meth:`paint` and :meth:`write`.

    :ivar width: columns that lines may have.
    :ivar colour: whether :meth:`paint` paints.
    """

    stream: TextIO
    width: int = _DEFAULT_WIDTH
    colour: bool = False
    glyphs: Glyphs = UNICODE
    _broken: bool = False

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str] = os.environ) -> Terminal:
        """Return the terminal of a stream: with colours if it is one and NO_COLOR is not set.

        Drawings are in Unicode if the stream can encode it.
        """
        colour = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((_DEFAULT_WIDTH, 24)).columns
        glyphs = UNICODE if _can_write(stream, UNICODE) else ASCII
        if isinstance(stream, io.TextIOWrapper):
            # A path may hold what the stream cannot encode.
            stream.reconfigure(errors="backslashreplace")
        return cls(stream, min(max(columns, _NARROWEST), _WIDEST), colour, glyphs)

    def paint(self, text: str, *styles: Style) -> str:
        """Return a text in its styles, if there are colours. Pad first: the codes take no columns."""
        if not (self.colour and styles and text):
            return text
        return f"\x1b[{';'.join(str(_CODES[style]) for style in styles)}m{text}\x1b[0m"

    def write(self, *lines: str) -> None:
        """Write lines, an empty one if there are none; once the reader has closed the pipe, nothing."""
        if self._broken:
            return
        try:
            for line in lines or ("",):
                self.stream.write(line.rstrip() + "\n")
            self.stream.flush()
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
            # The command still has to clean up. Python would report the error again when it exits.
            self._broken = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def fit(self, text: str, width: int) -> str:
        """Shorten a text to a number of columns."""
        return text if len(text) <= width else text[: max(width - 1, 0)] + self.glyphs.ellipsis

    def wrap(self, text: str, width: int) -> list[str]:
        """Break a text at its spaces; a longer word is broken too."""
        return textwrap.wrap(text, width, break_on_hyphens=False) or [""]

    def flow(self, items: Iterable[str], width: int, most: int) -> list[str]:
        """Join items with commas into a number of lines at most, breaking between items."""
        lines = [""]
        for item in items:
            joined = f"{lines[-1]}, {item}" if lines[-1] else item
            if len(joined) + 1 > width and lines[-1] and len(lines) < most:
                lines[-1] += ","
                lines.append(item)
            else:
                lines[-1] = joined
        return [self.fit(line, width) for line in lines]

    def rule(self, title: str) -> str:
        """Draw the line that a section begins with."""
        title = self.fit(title, self.width - 6)
        line = self.glyphs.rule * (self.width - len(title) - 4)
        rule = self.glyphs.rule
        return f"{self.paint(rule * 2, 'dim')} {self.paint(title, 'bold')} {self.paint(line, 'dim')}"

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], indent: int = 2) -> list[str]:
        """Draw a table, its columns as wide as what is in them; the last one is cut to fit.

        Without rows, nothing is drawn.
        """
        cells = [header, *rows]
        if len(cells) == 1:
            return []
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        widths[-1] = max(self.width - indent - sum(widths[:-1]) - 2 * (len(header) - 1), 8)
        lines = [
            " " * indent
            + "  ".join(self.fit(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in cells
        ]
        return [self.paint(lines[0].rstrip(), "dim"), *(line.rstrip() for line in lines[1:])]


def _can_write(stream: TextIO, glyphs: Glyphs) -> bool:
    try:
        "".join(astuple(glyphs)).encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
