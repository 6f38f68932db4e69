"""The containers of the fake guest: what is known of one, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.fake.guest.processes import SIGKILL, SIGTERM, GuestProcess

#: ``created``: nothing of it runs yet.
Status = Literal["created", "running", "stopped"]

#: What a container is said to have died of, whoever sent the signal.
_EXIT_TYPES: Final = {SIGTERM: "GracefulExit", SIGKILL: "ForcedExit"}


@define(eq=False)
class Container:
    """A container, and all of a Windows one.

    :ivar activity_id: of the request that created it; its exit is told under it.
    :ivar document: what it was created from.
    :ivar processes: its processes whose exit nobody has been told yet, by id.
    :ivar modifications: the requests that changed it, in order.
    :ivar exit_type: how it ended, or is going to be said to have ended.
    """

    id: str
    activity_id: str
    document: JSON = field(repr=False)
    status: Status = field(default="created", init=False)
    exit_type: str = field(default="UnexpectedExit", init=False)
    processes: dict[int, GuestProcess] = field(factory=dict, init=False)
    modifications: list[Any] = field(factory=list, init=False, repr=False)

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [pid for pid, process in self.processes.items() if process.exit_code is None]

    def forget(self, process: GuestProcess) -> None:
        """Forget a process whose exit has been told."""
        self.processes.pop(process.pid, None)

    def set_status(self, status: Status) -> None:
        """Take note of where it is in its life."""
        self.status = status

    def end_as(self, exit_type: str) -> None:
        """Settle what its exit will be said to have been."""
        self.exit_type = exit_type

    def kill_all(self) -> None:
        """Kill every process of it."""
        for process in list(self.processes.values()):
            process.signal(SIGKILL)


@define(eq=False)
class LinuxContainer(Container):
    """A Linux container. It is its first process, which exists from its creation and runs from its start.

    :ivar init: that process.
    :ivar constraints: the OCI resources that it was given last.
    """

    init: GuestProcess = field(init=False)
    constraints: JSON = field(factory=dict, init=False)
    _exited: Callable[[Container], None] = field(kw_only=True, repr=False)

    @property
    def pids(self) -> list[int]:
        """The processes that run, or are there to be started."""
        first = [self.init.pid] if self.init.exit_code is None else []
        return first + super().pids

    def find(self, pid: int) -> GuestProcess | None:
        """Return a process of it, its first one even long after its exit."""
        return self.init if pid == self.init.pid else self.processes.get(pid)

    def signal_init(self, signal: int) -> bool:
        """Signal the first process, started or not; False where it has ended."""
        if not self.init.signal(signal):
            return False
        self.end_as(_EXIT_TYPES.get(signal, self.exit_type))
        return True

    def init_exited(self, process: GuestProcess) -> None:
        """Take note that the first process has exited: nothing else in the container survives it."""
        self.set_status("stopped")
        self.kill_all()

    def init_released(self, process: GuestProcess) -> None:
        """Tell the exit of the container, which the guest does when somebody heard of its process's."""
        self._exited(self)
