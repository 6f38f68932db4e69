"""One container: what is known of it between requests.

Theory of operation
-------------------

A container is its first process, which a runtime makes with it, and which waits until the host starts it::

    CREATING -- made ----> CREATED -- started ---> RUNNING -- its first process exits ---> STOPPED
        |                     |                                                               ^
        |                     `---------------- killed -----------------------------------------'
        `----- refused ----> gone

The exit of a process is reported to those that wait for it once all that it wrote was read. The exit of the
container is reported to the host once that of its first process was; if no request waits for that, neither
is. Where the container has no namespace of process ids, the others in its cgroup are killed with the first
one, as the kernel does where it has one.

Source: hcsshim internal/guest/runtime/hcsv2/container.go and process.go.
"""

from __future__ import annotations

import signal
from enum import Enum
from typing import Final

from uvm.agent.containers.bundle import Role
from uvm.agent.processes import Process
from uvm.agent.refused import coded
from uvm.agent.requests import JSON
from uvm.hresult import HResult

#: How a container has exited, by the signal that its first process was sent by request.
_EXIT_TYPES: Final[dict[int, str]] = {signal.SIGTERM: "GracefulExit", signal.SIGKILL: "ForcedExit"}


class Status(Enum):
    """The state of a container."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    DELETING = "deleting"


class Container:
    """A container.

    :ivar activity_id: of the request that creates it; its exit is reported under it.
    :ivar spec: its specification, as the runtime has it.
    :ivar directories: its bundle, and its scratch space, which are deleted with its state.
    :ivar namespace: the network namespace that was assigned to it.
    :ivar init: its first process, once it is made.
    :ivar processes: its other processes, until their exits were answered, by id.
    :ivar exit_type: how it has exited, or will be reported to have exited.
    """

    id: str
    activity_id: str
    spec: JSON
    exit_type: str

    def __init__(self, container_id: str, activity_id: str, spec: JSON, directories: list[str]) -> None:
        self.id, self.activity_id, self.spec = container_id, activity_id, spec
        self.directories = directories
        self.role = Role.STANDALONE
        self.namespace = ""
        self.status = Status.CREATING
        self.init: Process | None = None
        self.processes: dict[int, Process] = {}
        self.exit_type = "UnexpectedExit"
        self._reported = False

    @property
    def bundle(self) -> str:
        """The directory of its specification."""
        return self.directories[0]

    def process(self, pid: int) -> Process:
        """Return one of its processes, the first one even long after its exit.

        :raises Refused: there is none of that id.
        """
        found = self.init if self.init is not None and self.init.pid == pid else self.processes.get(pid)
        if found is None:
            raise coded(HResult.ERROR_NOT_FOUND)
        return found

    def end(self, number: signal.Signals) -> None:
        """Send its first process a signal.

        :raises Refused: it has exited.
        """
        if self.init is None or not self.init.alive:
            text = "container not running"
            raise coded(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED, text)
        self.init.signal(number)
        self.signalled(number)

    def signalled(self, number: int) -> None:
        """Note a signal that its first process was sent by request."""
        self.exit_type = _EXIT_TYPES.get(number, self.exit_type)

    def exit_report(self) -> JSON | None:
        """Return the report of its exit, once; None the next time."""
        if self._reported:
            return None
        self._reported = True
        body = {"ContainerId": self.id, "ActivityId": self.activity_id, "Type": self.exit_type}
        return {**body, "Operation": "None", "Result": 0}
