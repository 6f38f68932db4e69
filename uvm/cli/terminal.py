"""The output of a command: drawn by rich on a terminal where it is installed, else plain text.

What is no terminal gets plain text, whatever is installed: what programs read is the same everywhere.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

from attrs import define

from uvm._drawing.blocks import Line, Part, Rule, Span, Table, line
from uvm._drawing.drawing import Drawing
from uvm.cli.errors import OutputError

if TYPE_CHECKING:
    from uvm.cli.console import TerminalConsole

#: What stands for a character that a stream cannot encode.
_ASCII: Final = {"─": "-", "·": ".", "│": "|", "✓": "ok", "✗": "NO", "≠": "!", "…": "~"}
_HANDLER: Final = "uvm.ascii"
#: What asks for colours where there is no terminal.
_FORCING: Final = ("FORCE_COLOR", "TTY_COMPATIBLE")

#: The errors of a write to a pipe without a reader; the C library of Windows reports EINVAL.
READER_GONE: Final = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)


@define
class Terminal:
    """The output of a command.

    :ivar console: rich's, which draws on a terminal; None for plain text.
    """

    stream: TextIO
    console: TerminalConsole | None = None
    _broken: bool = False
    _failure: OSError | None = None

    @classmethod
    def of(cls, stream: TextIO) -> Terminal:
        """Return the output to a stream, which from then on accepts what it cannot encode."""
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
        return cls(stream, _console_of(stream))

    def write(self, *drawn: Drawing | Line | Rule | Table | Part) -> None:
        """Write drawings and blocks, each text as a line; an empty line if there is none."""
        for each in drawn or ("",):
            block = line(each) if isinstance(each, Span | str) else each
            drawing = block if isinstance(block, Drawing) else Drawing((block,))
            if self.console is None:
                self.write_text(str(drawing))
            else:
                # A long line is wrapped by the terminal, so that what is copied from it has no line ends.
                wraps = isinstance(block, Line)
                self._put(partial(self.console.print, drawing, soft_wrap=wraps))

    def write_text(self, text: str) -> None:
        """Write a text as it is, and a line end: what programs read."""
        self._put(partial(self.stream.write, f"{text}\n"))

    def _put(self, write: Callable[[], object]) -> None:
        """Write, and once that failed, do nothing: the command still has to clean up."""
        if self._broken:
            return
        try:
            write()
            self.stream.flush()
        except OSError as error:
            if error.errno not in READER_GONE:
                self._failure = error
            # Python would report the error again when it exits.
            self._broken = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def check(self) -> None:
        """Raise what a write failed with, if not for a reader that has gone.

        :raises OutputError: a write failed.
        """
        if self._failure is not None:
            raise OutputError.of("output", self._failure)


def _console_of(stream: TextIO) -> TerminalConsole | None:
    """Return rich's console, if rich is installed and the stream is a terminal, or is to be used as one."""
    if not (stream.isatty() or any(map(os.environ.get, _FORCING))):
        return None
    try:
        from uvm.cli.console import TerminalConsole
    except ImportError:
        return None
    # Old consoles of Windows are coloured by calls; a pipe is none.
    console = TerminalConsole(file=stream, legacy_windows=None if stream.isatty() else False)
    return console if console.is_terminal else None


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what stands for the first character that cannot be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    if (ascii_ := _ASCII.get(error.object[error.start])) is not None:
        return ascii_, error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error(_HANDLER, _nearest)
