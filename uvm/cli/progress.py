"""A line on the terminal that says what is being done, once that has taken a moment, and for how long.

It goes when that has ended, so that nothing of it stays between results. Nothing is written if the error
stream is no terminal. What the library logs meanwhile, that it builds a guest image for instance, is in the
line; its warnings stay.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TextIO

from uvm.cli.errors import printable

#: What takes no longer needs no line, and how often the line changes.
FIRST_SECONDS: Final = 0.5
AGAIN_SECONDS: Final = 1.0
#: Says what is done for all VMs; what is logged of one is in the log alone.
_SAYS: Final = logging.getLogger("uvm.qemu")
_ALL: Final = logging.getLogger("uvm")


class Progress(logging.Handler):
    """The line, while it is entered.

    :param what: what is being done.
    :param stream: by default the error stream.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._step = ""
        self._width = 0
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._level = logging.NOTSET

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._level = _SAYS.level
            _SAYS.setLevel(logging.INFO)
            _ALL.addHandler(self)
            self._thread = threading.Thread(target=self._run, name="uvm progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Remove the line. Again, it does nothing."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join()
        _ALL.removeHandler(self)
        _SAYS.setLevel(self._level)
        with self._turn:
            self._write("")

    def emit(self, record: logging.LogRecord) -> None:
        """Show what the library says that it does; leave its warnings where they are."""
        if record.levelno >= logging.WARNING:
            with self._turn:
                self._write("")
                # As without this handler.
                if logging.lastResort is not None and not logging.root.handlers:
                    logging.lastResort.handle(record)
        elif record.name == _SAYS.name:
            self._step = record.getMessage()

    def _run(self) -> None:
        seconds = FIRST_SECONDS
        while not self._ended.wait(seconds):
            seconds = AGAIN_SECONDS
            with self._turn:
                for_how_long = f"{time.monotonic() - self._began:.0f} s"
                self._write(", ".join(filter(None, (self._what, self._step, for_how_long))))

    def _write(self, text: str) -> None:
        """Write the line in place of what it was; an empty one removes it."""
        room = shutil.get_terminal_size().columns - 1
        line = printable(text)[:room]
        blank = " " * max(self._width - len(line), 0)
        if not (line or self._width):
            return
        # A terminal that was hung up has no line.
        with suppress(OSError, ValueError):
            self._stream.write(f"\r{line}{blank}" + ("" if line else "\r"))
            self._stream.flush()
        self._width = len(line)
