"""``python -m tests.backends.hcs.ending ENDING LOOP``: a program that ends with systems open.

The host and its events run in a thread of their own until the very end, and the program closes nothing. At
the end of the interpreter the double's misuses and leaks are printed as JSON.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final


def _report() -> None:
    double = the_double()
    print(json.dumps({"misuses": double.misuses(), "leaks": double.leaks()}), flush=True)


if __name__ == "__main__":
    # Registered before the library's own handler, so that it runs after it.
    atexit.register(_report)

import anyio.lowlevel  # noqa: E402
import anyio.to_thread  # noqa: E402
import sniffio  # noqa: E402

from tests.backends.fake.support import SERVICE, host_files  # noqa: E402
from tests.backends.hcs.descriptors import new_transport  # noqa: E402
from tests.backends.hcs.double.control import FaultKind, the_double  # noqa: E402
from tests.backends.hcs.hostmachine import FakeMachine  # noqa: E402
from tests.backends.hcs.support import relayed  # noqa: E402
from tests.backends.hcs.switchboard import Switchboard  # noqa: E402
from tests.backends.hcs.wires import HostStreams, LoopbackSockets  # noqa: E402
from uvm.backend import BROKEN_STREAM  # noqa: E402
from uvm.backends.fake import FakeBackend  # noqa: E402
from uvm.backends.hcs import handles  # noqa: E402
from uvm.backends.hcs.backend import HCSBackend  # noqa: E402
from uvm.backends.hcs.platform import Platform  # noqa: E402
from uvm.backends.hcs.system import HCSSystem  # noqa: E402
from uvm.backends.workers import Workers  # noqa: E402
from uvm.errors import HostError  # noqa: E402

__all__ = ["EXIT_STATUS", "ENDINGS"]

EXIT_STATUS: Final = 3
_SYSTEMS: Final = ("vm1", "vm2", "vm3")
_IN_FLIGHT: Final = 20
#: An event of HCS that means nothing to the library.
_ANY_EVENT: Final = 0x4
_NEVER: Final = ("HcsModifyComputeSystem", "HcsSignalProcess", "HcsPauseComputeSystem")


class Machine:
    """The host: the fake, in a thread that is never ended."""

    def __init__(self) -> None:
        self.double = the_double()
        self.fake = FakeBackend(files=host_files())
        self._plugged = threading.Event()
        self._switchboard: Switchboard | None = None
        for target in (self._serve, self._tell):
            threading.Thread(target=target, daemon=True).start()
        self._plugged.wait()

    def _serve(self) -> None:
        anyio.run(self._run)

    async def _run(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._switchboard = Switchboard(self.double, self.fake, HostStreams(), tasks)
            tasks.start_soon(self._switchboard.serve)
            self.double.plug(self._switchboard.ask)
            self._plugged.set()

    def _tell(self) -> None:
        """Send events all the time, as fast as they are taken."""
        self._plugged.wait()
        assert self._switchboard is not None
        while True:
            for system_id in _SYSTEMS:
                for handle in self._switchboard.handles(system_id):
                    self.double.event(handle, _ANY_EVENT, '{"some": "text"}')
            self.double.drain()


MACHINE: Machine
#: Keeps alive what asyncio refers to weakly.
_kept: list[Any] = []


def spawn(function: Callable[[], Awaitable[object]]) -> None:
    """Start a task that no other task waits for; an error at the end of the interpreter ends it."""

    async def run() -> None:
        with suppress(HostError, anyio.EndOfStream, *BROKEN_STREAM):
            await function()

    if sniffio.current_async_library() == "trio":
        import trio

        trio.lowlevel.spawn_system_task(run)
    else:
        import asyncio

        _kept.append(asyncio.create_task(run()))


def new_backend() -> HCSBackend:
    """Make the library's backend."""
    double = MACHINE.double
    transport = new_transport(LoopbackSockets())
    return HCSBackend(
        platform=Platform(double.core, double.network, FakeMachine(MACHINE.fake), transport, Workers())
    )


async def open_all() -> HCSBackend:
    """Open systems, processes, pipes and listeners, and start calls on all of them."""
    backend = new_backend()
    for name in _NEVER:
        MACHINE.double.fault(name, FaultKind.NEVER, times=1 << 30)
    for system_id in _SYSTEMS:
        await open_one(backend, system_id)
    return backend


async def open_one(backend: HCSBackend, system_id: str) -> None:
    """Open one system, and everything in it."""
    system = await backend.create(system_id, relayed())
    await system.start()
    spawn(system.wait)
    spawn((await system.listen(SERVICE)).accept)
    process = await system.create_process(
        {"CommandArgs": ["cat"], "CreateStdInPipe": True, "CreateStdOutPipe": True}
    )
    assert process.stdout is not None
    spawn(process.stdout.receive)
    spawn(process.wait)
    spawn(lambda: process.signal({"Signal": "SIGHUP"}))
    for _ in range(_IN_FLIGHT):
        spawn(lambda: system.modify({"ResourcePath": "nowhere"}))
    spawn(system.pause)
    for _ in range(2):
        spawn(lambda: keep_asking(system))


async def keep_asking(system: HCSSystem) -> None:
    """Query the system forever."""
    while True:
        await system.properties()


async def returns() -> None:
    """End the loop's main function."""
    await open_all()


async def exits() -> None:
    """Leave from within the loop."""
    await open_all()
    sys.exit(EXIT_STATUS)


async def raises() -> None:
    """Raise an exception out of the loop."""
    await open_all()
    raise RuntimeError("out of the loop")


async def drops() -> None:
    """Drop all references."""
    await open_all()
    gc.collect()
    await anyio.lowlevel.checkpoint()
    gc.collect()


async def hangs() -> None:
    """Make calls in worker threads that HCS never answers."""
    backend = await open_all()
    MACHINE.double.fault("HcsOpenComputeSystem", FaultKind.NEVER, times=1 << 30)
    for _ in range(3):
        spawn(lambda: backend.open("vm1"))
    await backend.service_properties()


async def hangs_while_closing() -> None:
    """Have HCS hang when systems are closed."""
    await open_all()
    MACHINE.double.fault("HcsCloseComputeSystem", FaultKind.NEVER, times=2)


def run(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run a loop in this thread."""
    anyio.run(main, backend=loop)


def in_a_thread(loop: str) -> None:
    """Run the loop in a thread that outlives the main thread."""

    async def main() -> None:
        backend = await open_all()
        await anyio.to_thread.run_sync(threading.main_thread().join)
        (await backend.open("vm1")).id  # noqa: B018

    threading.Thread(target=run, args=(loop, main)).start()


def in_a_daemon(loop: str) -> None:
    """Run the loop in a daemon thread that is still running when the interpreter ends."""
    opened = threading.Event()

    async def main() -> None:
        await open_all()
        opened.set()
        await anyio.sleep_forever()

    threading.Thread(target=run, args=(loop, main), daemon=True).start()
    opened.wait()


def abandoned(loop: str) -> None:
    """Abandon the loop: neither run nor closed."""
    if loop == "asyncio":
        import asyncio

        new = asyncio.new_event_loop()
        _kept.append(new)
        new.run_until_complete(open_all())
    else:
        abandon_trio()


def abandon_trio() -> None:
    """Abandon trio as the guest of a loop that stops."""
    import queue

    import trio

    turns: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    opened: list[HCSBackend] = []

    async def main() -> None:
        opened.append(await open_all())
        await trio.sleep_forever()

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=turns.put, done_callback=lambda outcome: outcome.unwrap()
    )
    while not opened:
        turns.get()()


def _in_the_main_thread(main: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    return lambda loop: run(loop, main)


ENDINGS: Final[dict[str, Callable[[str], None]]] = {
    "returns": _in_the_main_thread(returns),
    "exits": _in_the_main_thread(exits),
    "raises": _in_the_main_thread(raises),
    "drops": _in_the_main_thread(drops),
    "hangs": _in_the_main_thread(hangs),
    "hangs while closing": _in_the_main_thread(hangs_while_closing),
    "in a thread": in_a_thread,
    "in a daemon": in_a_daemon,
    "abandoned": abandoned,
}


if __name__ == "__main__":
    MACHINE = Machine()
    if sys.argv[1] != "hangs while closing":
        # A busy machine is not HCS that hangs.
        handles.END_SECONDS = 20.0
    ENDINGS[sys.argv[1]](sys.argv[2])
