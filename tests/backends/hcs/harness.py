"""The library's HCS backend on the in-memory host, all between them real: cffi, the C ABI, threads.

::

    async with hosted(FakeBackend()) as host, host.backend() as backend:
        host.faults.later("HcsModifyComputeSystem", 0x80004005)
        ...

At the end, every misuse of the C API and everything left open fails the test, unless the test asked for it
(:meth:`Host.misuses`, :meth:`Host.leaks`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from tests.backends.hcs.double.build import NoCompilerError
from tests.backends.hcs.double.control import Double, FaultKind, the_double
from tests.backends.hcs.hostmachine import FakeMachine
from tests.backends.hcs.switchboard import Switchboard
from tests.backends.hcs.wires import HostStreams, LoopbackTransport
from uvm.backends.fake import FakeBackend
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.platform import Platform
from uvm.backends.workers import Workers

__all__ = ["CallFaults", "Host", "hosted", "require_double"]


class CallFaults:
    """Faults of the next calls of a name, which apply in the order in which they were added.

    They all happen in the C API itself. The fake's own faults make the host refuse, hold up or lose a call.
    """

    def __init__(self, double: Double) -> None:
        self._double = double

    def at_once(self, call: str, hresult: int, document: str = "", *, times: int = 1) -> None:
        """Have the call itself fail. Its operation has the document nevertheless."""
        self._double.fault(call, FaultKind.AT_ONCE, hresult, document, times)

    def later(self, call: str, hresult: int, document: str = "", *, times: int = 1) -> None:
        """Have the operation complete with this result without asking the host."""
        self._double.fault(call, FaultKind.LATER, hresult, document, times)

    def never(self, call: str, *, times: int = 1) -> None:
        """Leave the call unanswered, without asking the host.

        A call without an operation hangs until the host is gone.
        """
        self._double.fault(call, FaultKind.NEVER, times=times)

    def twice(self, call: str, *, times: int = 1) -> None:
        """Have the completion callback arrive twice, the second time even after the operation was closed."""
        self._double.fault(call, FaultKind.TWICE, times=times)

    def synchronously(self, call: str, *, times: int = 1) -> None:
        """Have the operation complete before the call returns, on the caller's thread."""
        self._double.fault(call, FaultKind.SYNCHRONOUSLY, times=times)

    def done_but(self, call: str, hresult: int, *, times: int = 1) -> None:
        """Have the host carry it out, and the result report a failure."""
        self._double.fault(call, FaultKind.DONE_BUT, hresult, times=times)


class Host:
    """The host that the library sees.

    :ivar fake: the in-memory host behind it.
    :ivar double: the C side.
    :ivar faults: the faults of the C API.
    :ivar platform: that of the library's backend.
    """

    def __init__(
        self, double: Double, fake: FakeBackend, switchboard: Switchboard, transport: LoopbackTransport
    ) -> None:
        self.double: Double = double
        self.fake: FakeBackend = fake
        self.faults: CallFaults = CallFaults(double)
        self.platform: Platform = Platform(
            double.core, double.network, FakeMachine(fake), transport, Workers()
        )
        self._switchboard = switchboard
        self._known: set[str] = set()

    def backend(self) -> HCSBackend:
        """Make the library's backend."""
        return HCSBackend(platform=self.platform)

    def event(self, system_id: str, kind: int, data: str = "") -> None:
        """Send an event to every handle of a system."""
        for handle in self._switchboard.handles(system_id):
            self.double.event(handle, kind, data)

    def misuses(self) -> list[str]:
        """Return the misuses so far; those returned do not fail the test at its end."""
        found = self.double.misuses()
        self._known.update(found)
        return found

    def leaks(self) -> list[str]:
        """Return what is open now; what is returned does not fail the test at its end."""
        found = self.double.leaks()
        self._known.update(found)
        return found

    def complaints(self) -> list[str]:
        """Return the misuses and leaks that were not returned before."""
        return [line for line in (*self.double.misuses(), *self.double.leaks()) if line not in self._known]


@asynccontextmanager
async def hosted(fake: FakeBackend) -> AsyncIterator[Host]:
    """Run an in-memory host behind the double, in a task group; one at a time in a process.

    :raises AssertionError: the C API was misused, or something is still open.
    """
    double = require_double()
    double.reset()
    async with anyio.create_task_group() as task_group:
        streams = HostStreams()
        switchboard = Switchboard(double, fake, streams, task_group)
        transport = LoopbackTransport(switchboard.listen, streams, task_group)
        host = Host(double, fake, switchboard, transport)
        task_group.start_soon(switchboard.serve)
        double.plug(switchboard.ask)
        try:
            yield host
            await anyio.to_thread.run_sync(_unplug, double)
            await _until_idle(host.platform.workers)
            await anyio.to_thread.run_sync(double.drain)
            complaints = host.complaints()
        finally:
            streams.close()
            with anyio.CancelScope(shield=True):
                await transport.aclose()
                # They wait for callbacks, which may wait for this thread.
                await anyio.to_thread.run_sync(_unplug, double)
                await anyio.to_thread.run_sync(double.reset)
        task_group.cancel_scope.cancel()
    assert not complaints, "\n".join(complaints)


async def _until_idle(workers: Workers) -> None:
    """Wait for the calls whose callers were cancelled: what they opened is closed in their threads."""
    for _ in range(workers._free.max_value or 0):
        await workers._free.acquire()


def _unplug(double: Double) -> None:
    """Release what hangs in the double, and wait for the closes that run in the background."""
    double.unplug()
    for thread in threading.enumerate():
        if thread.name.startswith("uvm closes "):
            thread.join()


def require_double() -> Double:
    """Return the double. Without a compiler the test is skipped; in CI it fails."""
    try:
        return the_double()
    except NoCompilerError as e:
        if os.environ.get("CI"):
            raise
        # Loaded here only: tests.backends.hcs.ending is started many times.
        import pytest

        pytest.skip(str(e))
