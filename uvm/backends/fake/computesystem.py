"""What compute systems of the fake host, VMs and containers, have in common."""

from __future__ import annotations

from typing import Literal

from uvm._repr import showing
from uvm.backend import JSON
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult
from uvm.schema.json import to_json
from uvm.schema.properties import Properties

State = Literal["Created", "Running", "Paused", "SavedAsTemplate", "Stopped"]


class Opened:
    """What handles are opened on.

    :ivar handles: how many handles are open.
    """

    def __init__(self) -> None:
        self.handles: int = 0

    def opened(self) -> None:
        """Count a handle."""
        self.handles += 1

    def closed(self) -> None:
        """Count a handle that was closed."""
        self.handles -= 1
        if not self.handles:
            self.last_closed()

    def last_closed(self) -> None:
        """Clean up after the last handle."""
        raise NotImplementedError


@showing("id", "state")
class FakeComputeSystem(Opened):
    """A VM, or a container that HCS hosts in one.

    :ivar owner: the owner that the document names.
    :ivar ends_with_last_handle: it is terminated when its last handle is closed.
    :ivar exit_status: how it exited; None before.
    """

    def __init__(self, system_id: str, owner: str, ends_with_last_handle: bool) -> None:
        super().__init__()
        self.id: str = system_id
        self.owner: str = owner
        self.ends_with_last_handle: bool = ends_with_last_handle
        self.state: State = "Created"
        self.exit_status: ExitStatus | None = None

    def _become(self, state: State) -> None:
        self.state = state

    def _ended(self, status: ExitStatus) -> None:
        self.exit_status = status
        self._become("Stopped")

    def require(self, operation: str, *states: State) -> None:
        """Refuse in other states: HCS_E_SYSTEM_ALREADY_STOPPED after the exit, else HCS_E_INVALID_STATE."""
        if self.state in states:
            return
        operation = f"{operation} {self.id}"
        if self.state == "Stopped":
            text = f"exit: {self.exit_status}"
            raise HostError(operation, HResult.HCS_E_SYSTEM_ALREADY_STOPPED, text)
        raise HostError(operation, HResult.HCS_E_INVALID_STATE, f"it is {self.state}")

    def summary(self) -> JSON:
        """Return the properties that an enumeration, and a query without types, has."""
        properties = Properties(id=self.id, name=self.id, owner=self.owner, state=self.state)
        properties.stopped = self.state == "Stopped"
        properties.exit_type = self.exit_status.exit_type if self.exit_status is not None else ""
        self.describe(properties)
        return to_json(properties)

    def describe(self, properties: Properties) -> None:
        """Set the properties that only a VM, or only a container, has."""
        raise NotImplementedError
