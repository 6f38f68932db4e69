"""The agent's log: lines of JSON, as hcsshim's guest writes them, to the log port of the host.

What is said before there is a connection, or while the host does not take it, waits; at most so much, the
rest is dropped and counted. Errors go to the console as well, which is read when a VM does not come up.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from typing import Any, Final

from uvm.agent.connection import Connection, Receiver

#: How many lines wait.
_MOST_LINES: Final = 1000
#: The longest text of a line.
_MOST_TEXT: Final = 16384


class Log(Receiver):
    """The log.

    :param console: a descriptor for what is important; None for none.
    """

    def __init__(self, console: int | None = None) -> None:
        self._console = console
        self._connection: Connection | None = None
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._open = False

    @property
    def connected(self) -> bool:
        """Whether it has a connection, or is about to."""
        return self._connection is not None

    def connect(self, connection: Connection) -> None:
        """Write to a connection, once it is accepted."""
        self._connection = connection

    def info(self, message: str, **fields: Any) -> None:
        """Write a line."""
        self._line("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Write a line of the level ``warning``."""
        self._line("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Write a line of the level ``error``, to the console as well."""
        self._line("error", message, fields)
        self.say(message)

    def bug(self, error: BaseException) -> None:
        """Write an error that is not expected, with its stack."""
        stack = ""
        # The agent may have no descriptor left, with which to load it.
        with contextlib.suppress(ImportError, OSError):
            import traceback

            stack = "".join(traceback.format_exception(error))
        self.error(f"{type(error).__name__}: {error}", stack=stack)

    def say(self, text: str) -> None:
        """Write a text to the console."""
        if self._console is not None:
            with contextlib.suppress(OSError):
                os.write(self._console, f"uvm: {text}\n".encode(errors="replace"))

    def dying(self, text: str) -> None:
        """Write a text that is no line: the agent dies."""
        self.say(text)
        self._waiting.append(text.encode(errors="replace"))
        self.writable()

    def opened(self) -> None:
        """Write what waits."""
        self._open = True
        self.writable()

    def writable(self) -> None:
        """Write what waits, as far as the host takes it."""
        connection = self._connection
        while self._open and connection is not None and self._waiting and connection.room:
            connection.send(self._waiting.popleft())
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self.warning(f"{dropped} lines of the log were dropped: the host did not take them")

    def received(self, data: bytes) -> None:
        """Drop what the host sends here."""
        if self._connection is not None:
            self._connection.consumed(len(data))

    def closed(self) -> None:
        """Keep what comes for another connection."""
        self._connection, self._open = None, False

    def _line(self, level: str, message: str, fields: dict[str, Any]) -> None:
        now = time.time_ns()
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        line = {"level": level, "msg": message[:_MOST_TEXT], "time": f"{second}.{now % 10**9:09d}Z", **fields}
        if len(self._waiting) >= _MOST_LINES:
            self._dropped += 1
            return
        self._waiting.append(json.dumps(line, default=str).encode() + b"\n")
        self.writable()
