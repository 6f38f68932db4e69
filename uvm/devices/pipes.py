"""Named pipes of the host, mapped into a guest.

The key, and the slot, is the pipe's host path. ADD: host Add. REMOVE: host Remove. Neither has settings.
hcsshim sends an Add each time that a pipe is asked for; here the first makes it and the last removes it.

Source: hcsshim ``internal/uvm/pipes.go``.
"""

from __future__ import annotations

from uvm.devices.base import REMOVE, Operation, Step
from uvm.devices.kinds import NamedByKey, PresentOrAbsent
from uvm.errors import OptionsError
from uvm.schema import requests
from uvm.schema.requests import ModifySettingRequest, mapped_pipe_path

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


class Pipes(NamedByKey[None, bool], PresentOrAbsent[str, None, str]):
    """The named pipes that are mapped into a guest."""

    withheld = "{} was not mapped: whether it still is mapped is unknown"

    def steps(self, operation: Operation[str, None, str, bool]) -> tuple[Step, ...]:
        """Map, or unmap, on the host."""
        request_type = requests.REMOVE if operation.kind is REMOVE else requests.ADD
        path = mapped_pipe_path(operation.slot)
        return (Step(ModifySettingRequest(resource_path=path, request_type=request_type)),)
