"""The library's HCS backend on the in-memory host, and all between them real: cffi, the C ABI, threads.

::

    async with hosted(FakeBackend()) as host, host.backend() as backend:
        host.faults.later("HcsModifyComputeSystem", 0x80004005)
        ...

At the end, what was done wrong in the C API and what was left open fails the test, unless the test asked
for it (:meth:`Host.misuses`, :meth:`Host.leaks`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.backends.hcs.double.build import NoCompilerError
from tests.backends.hcs.double.control import Double, FaultKind, the_double
from tests.backends.hcs.hostmachine import FakeMachine
from tests.backends.hcs.switchboard import Switchboard
from tests.backends.hcs.wires import HostStreams, LoopbackTransport
from uvm.backends.fake import FakeBackend
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.parts import Parts
from uvm.backends.hcs.workers import Workers

__all__ = ["CallFaults", "Host", "hosted", "require_double"]


class CallFaults:
    """What goes wrong with the next calls of a name; the faults of a name apply in the order they came.

    All of it happens in the C API itself. What the host refuses, holds up or loses, the fake's own faults do.
    """

    def __init__(self, double: Double) -> None:
        self._double = double

    def at_once(self, call: str, hresult: int, document: str = "", *, times: int = 1) -> None:
        """Have the call itself fail. The document is what can be fetched from its operation nevertheless."""
        self._double.fault(call, FaultKind.AT_ONCE, hresult, document, times)

    def later(self, call: str, hresult: int, document: str = "", *, times: int = 1) -> None:
        """Have the operation complete with this result, without the host having been asked."""
        self._double.fault(call, FaultKind.LATER, hresult, document, times)

    def never(self, call: str, *, times: int = 1) -> None:
        """Have no answer come; the host is not asked.

        A call without an operation hangs until the host is gone.
        """
        self._double.fault(call, FaultKind.NEVER, times=times)

    def twice(self, call: str, *, times: int = 1) -> None:
        """Have the completion callback come twice, the second time even after the operation was closed."""
        self._double.fault(call, FaultKind.TWICE, times=times)

    def synchronously(self, call: str, *, times: int = 1) -> None:
        """Have it complete before it returns, the callback on the caller's thread."""
        self._double.fault(call, FaultKind.SYNCHRONOUSLY, times=times)

    def done_but(self, call: str, hresult: int, *, times: int = 1) -> None:
        """Have the host carry it out, and the result say that it failed."""
        self._double.fault(call, FaultKind.DONE_BUT, hresult, times=times)


class Host:
    """The host that the library sees.

    :ivar fake: what it is.
    :ivar double: the C side.
    :ivar faults: what goes wrong in the C API.
    :ivar parts: what the library's backend is made of.
    """

    def __init__(
        self, double: Double, fake: FakeBackend, switchboard: Switchboard, transport: LoopbackTransport
    ) -> None:
        self.double: Double = double
        self.fake: FakeBackend = fake
        self.faults: CallFaults = CallFaults(double)
        self.parts: Parts = Parts(double.core, double.network, FakeMachine(fake), transport, Workers())
        self._switchboard = switchboard
        self._known: set[str] = set()

    def backend(self) -> HCSBackend:
        """Make the library's backend."""
        return HCSBackend(parts=self.parts)

    def event(self, system_id: str, kind: int, data: str = "") -> None:
        """Send an event to every handle on a system."""
        for handle in self._switchboard.handles(system_id):
            self.double.event(handle, kind, data)

    def misuses(self) -> list[str]:
        """Give what was done wrong so far; the test knows of it now, so that it does not fail at its end."""
        found = self.double.misuses()
        self._known.update(found)
        return found

    def leaks(self) -> list[str]:
        """Give what is open now; as of :meth:`misuses`."""
        found = self.double.leaks()
        self._known.update(found)
        return found

    def complaints(self) -> list[str]:
        """Give the misuses and leaks that the test does not know of."""
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
            await _until_idle(host.parts.workers)
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
    """Wait for the calls whose callers were cancelled: what these opened is closed in their threads."""
    limiter = workers._limiter
    for _ in range(int(limiter.total_tokens)):
        await limiter.acquire_on_behalf_of(object())


def _unplug(double: Double) -> None:
    """Let go what hangs in the double, and wait for the closes that nobody else waits for."""
    double.unplug()
    for thread in threading.enumerate():
        if thread.name.startswith("uvm closes "):
            thread.join()


def require_double() -> Double:
    """Give the double; where there is no compiler, the test is skipped, but in CI it fails."""
    try:
        return the_double()
    except NoCompilerError as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(e))
