"""Named pipes of the host, mapped into a guest.

The key, and the slot, is the pipe's host path. ADD: host Add. REMOVE: host Remove. Neither has settings.
hcsshim sends an Add each time that a pipe is asked for; here the first makes it and the last removes it.

Source: hcsshim ``internal/uvm/pipes.go``.
"""

from __future__ import annotations

from uvm.devices.base import HOST, REMOVE, Device, Entry, Operation, Step
from uvm.devices.slots import Names
from uvm.errors import NoSpaceError, OptionsError
from uvm.schema import requests
from uvm.schema.requests import ModifySettingRequest, mapped_pipe_path

__all__ = ["PIPE_PREFIX", "Pipes", "check_pipe"]

#: What the host path of every named pipe begins with.
PIPE_PREFIX = "\\\\.\\pipe\\"


def check_pipe(path: str) -> None:
    r"""Refuse what is not a named pipe of the host.

    :raises OptionsError: it does not begin with ``\\.\pipe\``, or ends there.
    """
    if not path.startswith(PIPE_PREFIX) or path == PIPE_PREFIX:
        raise OptionsError(
            f"{path!r} is not a named pipe: that is {PIPE_PREFIX} and a name; nothing was mapped"
        )


class Pipes(Device[str, None, str, bool]):
    """The named pipes that are mapped into a guest."""

    def __init__(self) -> None:
        self._names = Names()

    def place(self, key: str, member: None) -> str:
        """Take the path.

        :raises NoSpaceError: it is withheld.
        """
        if not self._names.take(key):
            raise NoSpaceError(f"{key} was not mapped: nobody knows whether it still is")
        return key

    def vacate(self, key: str, slot: str) -> None:
        """Free a path."""
        self._names.give(slot)

    def wanted(self, entry: Entry[str, None, str, bool]) -> bool | None:
        """Tell whether anybody wants the pipe."""
        return True if entry.wanted else None

    def steps(self, operation: Operation[str, None, str, bool]) -> tuple[Step, ...]:
        """Map, or unmap, on the host."""
        request_type = requests.REMOVE if operation.kind == REMOVE else requests.ADD
        path = mapped_pipe_path(operation.slot)
        return (Step(HOST, ModifySettingRequest(resource_path=path, request_type=request_type)),)

    def dump(self) -> tuple[str, ...]:
        """Give the paths that are taken."""
        return self._names.dump()

    def load(self, state: tuple[str, ...]) -> None:
        """Take back what :meth:`dump` gave."""
        self._names.load(state)
