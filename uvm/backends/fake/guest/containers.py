"""The containers of the fake guest: their state, and their exit."""

from __future__ import annotations

from typing import Final, Literal

from attrs import define, field

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.fake.guest.processes import SIGKILL, SIGTERM, GuestProcess

#: ``created``: no process of it runs yet.
Status = Literal["created", "running", "stopped"]

#: The exit type of a container by the signal that ended its first process.
_EXIT_TYPES: Final = {SIGTERM: "GracefulExit", SIGKILL: "ForcedExit"}


@showing("id", "status", "processes")
@define(eq=False, repr=False)
class Container:
    """A container; Windows ones are no more than this.

    :ivar activity_id: of the request that created it; its exit is reported under it.
    :ivar document: what it was created from.
    :ivar processes: its processes whose exit was not reported yet, by id.
    :ivar resources: what of its memory and processors was changed, by path; of a Windows container.
    :ivar exit_type: how it exited, or will be reported to have exited.
    """

    id: str
    activity_id: str
    document: JSON
    status: Status = field(default="created", init=False)
    exit_type: str = field(default="UnexpectedExit", init=False)
    processes: dict[int, GuestProcess] = field(factory=dict, init=False)
    resources: dict[str, int] = field(factory=dict, init=False)

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [pid for pid, process in self.processes.items() if process.exit_code is None]

    def copied(self) -> Container:
        """Return the same container in the guest of a clone, without its processes."""
        twin = Container(self.id, self.activity_id, self.document)
        twin.status, twin.exit_type = self.status, self.exit_type
        return twin

    def kill_all(self) -> None:
        """Kill every process of the container."""
        for process in list(self.processes.values()):
            process.signal(SIGKILL)


@define(eq=False, repr=False)
class LinuxContainer(Container):
    """A Linux container. It is its first process, which exists from its creation and runs from its start.

    :ivar init: that process.
    :ivar constraints: its latest OCI resources.
    """

    init: GuestProcess = field(init=False)
    constraints: JSON = field(factory=dict, init=False)

    @property
    def pids(self) -> list[int]:
        """The processes that run, or have yet to start."""
        first = [self.init.pid] if self.init.exit_code is None else []
        return first + super().pids

    def find(self, pid: int) -> GuestProcess | None:
        """Return a process of the container, the first one even long after its exit."""
        return self.init if pid == self.init.pid else self.processes.get(pid)

    def signal_init(self, signal: int) -> bool:
        """Signal the first process, started or not; False if it has exited."""
        if not self.init.signal(signal):
            return False
        self.exit_type: str = _EXIT_TYPES.get(signal, self.exit_type)
        return True

    def init_exited(self, process: GuestProcess) -> None:
        """Stop the container: no other process survives the first one."""
        self.status: Status = "stopped"
        self.kill_all()
