"""The agent: its parts, put together.

::

    port -- bridge -- service -+- guestprocesses
      |                        +- resources        disks, file systems, layers, shares, adapters
      +- entropy               +- containers
      +- logs                  +- stacks, properties, shutdown

When a host has connected, the agent dials whatever port it listens at: random bytes, the log, the bridge. A
host that returns finds its connections as they were; one that takes the place of another gets new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uvm._wire.frames import Procedure
from uvm._wire.ports import LINUX_ENTROPY_PORT, LINUX_GCS_PORT, LINUX_LOG_PORT
from uvm.agent.bridge import Bridge
from uvm.agent.children import Children
from uvm.agent.entropy import EntropyReceiver
from uvm.agent.guestprocesses import GuestProcesses
from uvm.agent.logs import Log
from uvm.agent.loop import Loop
from uvm.agent.port import Port
from uvm.agent.refused import Refused
from uvm.agent.requests import JSON, Request
from uvm.agent.resources import Resources
from uvm.agent.service import EVERY, ITSELF, Service

#: How long the host may take to read what was sent to it before the VM ends, in seconds.
_PARTING: Final = 0.2


class Agent:
    """The agent.

    :param fd: the link to the host.
    :param shut_down: ends everything, in a worker; it gets whether processes may end by themselves.
    :param resources: what the host may modify; None for nothing.
    :param console: a descriptor for what is important; None for none.
    :param start: starts each process of the guest itself, by calling a function that returns its id.
    """

    log: Log
    loop: Loop
    service: Service
    port: Port
    children: Children
    processes: GuestProcesses
    bridge: Bridge

    def __init__(
        self,
        fd: int,
        shut_down: Callable[[bool], object],
        *,
        resources: Resources | None = None,
        console: int | None = None,
        start: Callable[[Callable[[], int]], int] = lambda start: start(),
    ) -> None:
        self.log = Log(console)
        self.loop = Loop(self.log.bug)
        self.service = Service(self.loop, self.log.bug)
        if resources is not None:
            self.service.resources.update(resources.handlers)
        self.port = Port(self.loop, fd, self.log.error)
        self.children = Children(self.loop)
        self.processes = GuestProcesses(self.service, self.children, self.port, start)
        self.bridge = Bridge(self.loop, self.port, LINUX_GCS_PORT, self.service, self.log)
        self._shut_down = shut_down
        self.port.on_greeted = self._greeted
        self.port.on_listening = self._listening
        self.service.add(Procedure.GET_PROPERTIES, _no_properties, ITSELF)
        self.service.add(Procedure.DUMP_STACKS, _dump_stacks, EVERY)
        self.service.add(Procedure.SHUTDOWN_GRACEFUL, self._end, ITSELF)
        self.service.add(Procedure.SHUTDOWN_FORCED, self._end, ITSELF)

    def background(self, function: Callable[[], object]) -> None:
        """Run a function in a worker; its error is logged."""
        self.loop.work(function, self._ended)

    def dying(self, error: BaseException) -> None:
        """Write why the agent dies, as far as the host takes it at once."""
        import traceback

        self.log.dying("".join(traceback.format_exception(error)))
        self.port.flush()

    def run(self) -> None:
        """Serve until the loop is stopped."""
        self.log.info("GCS started")
        self.loop.run()

    def _greeted(self, resumed: bool) -> None:
        if not resumed:
            self.bridge.forget()

    def _listening(self, port: int) -> None:
        if port == LINUX_GCS_PORT:
            self.bridge.dial()
        elif port == LINUX_LOG_PORT and not self.log.connected:
            self.log.connect(self.port.dial(port, self.log, lasting=False))
        elif port == LINUX_ENTROPY_PORT:
            receiver = EntropyReceiver(self.log)
            receiver.connection = self.port.dial(port, receiver, lasting=False)

    def _end(self, request: Request) -> None:
        """End the VM; the host sees that by the end of the connection."""
        gracefully = request.procedure == Procedure.SHUTDOWN_GRACEFUL
        self.log.info("shutting down")
        self.bridge.close()
        self.loop.later(_PARTING, lambda: self.background(lambda: self._shut_down(gracefully)))

    def _ended(self, result: object, error: BaseException | None) -> None:
        if error is not None:
            self.log.bug(error)


def _no_properties(request: Request) -> JSON:
    request.read()
    raise Refused("getPropertiesV2 is not supported against the UVM")


def _dump_stacks(request: Request) -> JSON:
    # It is rarely asked for, and takes long to load.
    from uvm.agent.stacks import stacks

    request.read()
    return {"GuestStacks": stacks()}
