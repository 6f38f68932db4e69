"""Hostile guests beside one that is not: ``python -m tests.qemu.hostile LOOP DIRECTORY [FAULT...]``.

It is a process of its own, since it measures what they cost it. All guests are clones of one template, whose
image has the agent of :mod:`tests.agent.faults`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import asdict, define, evolve

import uvm
from tests.bench.memory import peak_resident_bytes, resident_bytes
from tests.qemu.limits import BOOT_SECONDS, PATIENCE_SECONDS, PATIENT
from tests.qemu.vms import MEMORY_MB, backend_of, process_of, running_vm
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Event
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.guestimage import ImageOptions
from uvm.backends.qemu.muxlink import MuxLink
from uvm.errors import UVMError

#: The image of guests that can turn hostile.
IMAGE: Final = ImageOptions(service="tests.agent.faults", roots=(str(Path(__file__).parents[2]),))

#: The faults that end what their caller waits for.
ENDING: Final = ("exit", "panic", "hang", "garbage", "overrun", "lie", "flood")
#: Those that do not: their caller leaves, after so many bytes at least have come from the guest.
ENDLESS: Final = {"half": 20, "open": 100_000, "log": 1 << 20, "console": 0}

EVERY: Final = (*ENDING, *ENDLESS)

#: How long a guest that owes an answer may say nothing: one does, and others are slow.
SILENCE_SECONDS: Final = max(15.0, 5 * BOOT_SECONDS)
#: How many commands the other guest runs meanwhile, at least.
_COMMANDS: Final = 20


@define
class Outcome:
    """What a fault came to.

    :ivar error: what its caller got; empty if it left without.
    :ivar text: the text of that.
    :ivar exit_type: how the VM exited, by itself or when it was terminated then.
    :ivar code: the code of that.
    :ivar received_bytes: what the guest sent meanwhile.
    :ivar grown_bytes: by how much the resident set of this process had grown at its peak.
    :ivar longest_turn_seconds: the most processor time that the event loop took between two turns of a task.
    """

    error: str = ""
    text: str = ""
    exit_type: str = ""
    code: int = 0
    received_bytes: int = 0
    grown_bytes: int = 0
    longest_turn_seconds: float = 0.0


async def play(directory: Path, faults: Iterable[str]) -> dict[str, Any]:
    """Have one guest after the other turn hostile, and return what came of it."""
    async with (
        backend_of(directory, image=IMAGE) as backend,
        running_vm(backend, template=True) as original,
    ):
        template = await original.save_template()
        async with _clone(backend, template) as neighbour:
            pids = [process_of(backend, neighbour)]
            await _work(neighbour)
            outcomes = {}
            for fault in faults:
                async with _clone(backend, template) as vm:
                    pids.append(process_of(backend, vm))
                    await _work(vm, 1)
                    outcomes[fault] = asdict(await _suffer(backend, vm, fault, neighbour))
            assert (await neighbour.shutdown()).exit_type == "GracefulExit"
    return {"outcomes": outcomes, "pids": pids}


@asynccontextmanager
async def _clone(backend: QEMUBackend, template: uvm.Template) -> AsyncIterator[uvm.UtilityVM]:
    options = uvm.LCOWOptions(memory_mb=MEMORY_MB, processors=1, clone_of=template)
    timeouts = evolve(PATIENT, rpc_seconds=SILENCE_SECONDS)
    async with uvm.UtilityVM.create(options, backend=backend, timeouts=timeouts) as vm:
        await vm.start()
        yield vm


async def _work(vm: uvm.UtilityVM, commands: int = _COMMANDS) -> None:
    for number in range(commands):
        with anyio.fail_after(PATIENCE_SECONDS):
            done = await vm.run(["echo", str(number)])
        assert (done.exit_code, done.stdout) == (0, f"{number}\n".encode())


async def _suffer(backend: QEMUBackend, vm: uvm.UtilityVM, fault: str, neighbour: uvm.UtilityVM) -> Outcome:
    """Have a guest turn hostile while another one works, and return what came of it."""
    outcome, answered = Outcome(), anyio.Event()
    before = _forget_peak()
    _count_received(backend, vm, outcome)

    async def ask() -> None:
        try:
            await vm.run(["fault", fault])
        except UVMError as error:
            outcome.error, outcome.text = type(error).__name__, str(error)
        answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(_take_turns, outcome)
        await _work(neighbour)
        with anyio.fail_after(PATIENCE_SECONDS):
            if fault in ENDING:
                await answered.wait()
            while outcome.received_bytes < ENDLESS.get(fault, 0):
                await _work(neighbour, 1)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(PATIENCE_SECONDS):
        if outcome.error != "VMExitedError":
            await vm.terminate()
        status = await vm.wait()
    outcome.exit_type, outcome.code = status.exit_type, status.code
    outcome.grown_bytes = peak_resident_bytes() - before
    return outcome


async def _take_turns(outcome: Outcome) -> None:
    # Processor time, as whatever else the machine does must not be counted.
    last = time.thread_time()
    while True:
        await anyio.sleep(0.001)
        now = time.thread_time()
        outcome.longest_turn_seconds = max(outcome.longest_turn_seconds, now - last)
        last = now


def _count_received(backend: QEMUBackend, vm: uvm.UtilityVM, outcome: Outcome) -> None:
    link = backend._vms[vm.id].lifetime.guest.connections
    assert isinstance(link, MuxLink)
    link._mux.__class__ = _CountedMux
    assert isinstance(link._mux, _CountedMux)
    link._mux.outcome = outcome


class _CountedMux(Mux):
    """Counts what comes."""

    outcome: Outcome

    def received(self, count: int, *frames: int) -> list[Event]:
        self.outcome.received_bytes += count
        return super().received(count, *frames)


def _forget_peak() -> int:
    """Begin a new peak of the resident set, and return what that is now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_bytes()


def main() -> None:
    """Play faults on an event loop, by default all, and print what came of them."""
    loop, directory, *faults = sys.argv[1:]
    print(json.dumps(anyio.run(play, Path(directory), faults or EVERY, backend=loop)))


if __name__ == "__main__":
    main()
