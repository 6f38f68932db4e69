"""The log of the library: each record has the same fields beside its message, for those who filter and count.

A module has a :class:`Log` where others have a :class:`logging.Logger`. What a task does, an operation or a
request, is in :data:`doing`, so that all records that are made meanwhile have it. Handlers are the caller's,
and what they raise is kept from what is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, Protocol, TypedDict, Unpack


class Fields(TypedDict, total=False):
    """What a record has beside the VM. A field that does not apply is None.

    :ivar device: the device, as messages name it.
    :ivar operation: the operation of the VM, or the request to its host or guest.
    :ivar duration_seconds: how long that took.
    :ivar outcome: ``ok``; ``refused``, which changed nothing; ``unknown``, which may have, in whole or in
        part; or ``cancelled``.
    """

    device: str | None
    operation: str | None
    duration_seconds: float | None
    outcome: str | None


class Doing(Protocol):
    """What a task is doing for a VM."""

    @property
    def vm_id(self) -> str:
        """The VM."""

    @property
    def operation(self) -> str:
        """What is done."""

    @property
    def device(self) -> str | None:
        """To what."""

    @property
    def outcome(self) -> str | None:
        """How it ended; None while it goes on."""


#: What this task is doing.
doing: Final[ContextVar[Doing | None]] = ContextVar("uvm_doing", default=None)


#: What logging itself does with an error of a handler.
_on_error = logging.Handler().handleError


class Log:
    """A logger of the library. Its methods take the id of the VM, or None, then what those of a logger do."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def traces(self) -> bool:
        """Whether records at DEBUG are wanted."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, vm_id: str | None, message: str, *args: object, **fields: Unpack[Fields]) -> None:
        """Record what helps to find a fault."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self.write(logging.DEBUG, vm_id, message, args, fields)

    def info(self, vm_id: str | None, message: str, *args: object, **fields: Unpack[Fields]) -> None:
        """Record what happened."""
        self.write(logging.INFO, vm_id, message, args, fields)

    def warning(self, vm_id: str | None, message: str, *args: object, **fields: Unpack[Fields]) -> None:
        """Record what the user may have to see to."""
        self.write(logging.WARNING, vm_id, message, args, fields)

    def error(self, vm_id: str | None, message: str, *args: object, **fields: Unpack[Fields]) -> None:
        """Record what failed."""
        self.write(logging.ERROR, vm_id, message, args, fields)

    def exception(self, vm_id: str | None, message: str, *args: object, **fields: Unpack[Fields]) -> None:
        """Record what failed, with the exception that is being handled."""
        self.write(logging.ERROR, vm_id, message, args, fields, exc_info=True)

    def say(
        self,
        level: int,
        vm_id: str | None,
        message: str,
        *,
        error: BaseException | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        """Record a message as it is."""
        self.write(level, vm_id, "%s", (message,), fields, exc_info=error)

    def write(
        self,
        level: int,
        vm_id: str | None,
        message: str,
        args: tuple[object, ...] = (),
        fields: Mapping[str, object] | None = None,
        *,
        exc_info: bool | BaseException | None = None,
    ) -> None:
        """Make a record, of two callers above; `fields` may have others than :class:`Fields`.

        A handler that raises changes nothing of what is logged: its error goes to stderr.
        """
        if not self._logger.isEnabledFor(level):
            return
        try:
            extra = _extra(vm_id, fields or {})
            if vm_id:
                message, args = f"%s: {message}", (vm_id, *args)
            self._logger.log(level, message, *args, exc_info=exc_info, extra=extra, stacklevel=3)
        except Exception:
            _on_error(logging.makeLogRecord({"msg": message, "args": args}))


def _extra(vm_id: str | None, fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a record: those that it is made with, and of what the task does."""
    now = doing.get()
    # A task that something started may outlive it.
    if now is not None and (now.outcome is not None or (vm_id and vm_id != now.vm_id)):
        now = None
    return {
        "vm_id": vm_id or (None if now is None else now.vm_id),
        "device": None if now is None else now.device,
        "operation": None if now is None else now.operation,
        "duration_seconds": None,
        "outcome": None,
        **fields,
    }
