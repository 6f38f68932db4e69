"""Many disks attached and mounted at once, and released at once: on the fake, and on stubs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import anyio
from attrs import Factory, define

from tests.bench.figures import Figure, Span
from tests.bench.stubs import Stub, scsi_bus
from tests.bench.vms import LOOPS, OPTIONS, boot_files
from uvm import FakeBackend, Mount, UtilityVM
from uvm._buses.scsi import ScsiBus, ScsiLease
from uvm.backends.fake import Latency

__all__ = [
    "PATHS",
    "attach",
    "attach_and_release",
    "attach_and_release_on_stubs",
    "host",
    "on_fake",
    "on_stubs",
    "release",
]

_DISKS: Final = 64
PATHS: Final = tuple(f"C:\\disks\\{n}.vhdx" for n in range(_DISKS))
_CALL_MS: Final = 10.0
_ROUNDS: Final = 30
_MOUNT: Final = Mount(filesystem="ext4")


def host(paths: Sequence[str], call_ms: float = 0) -> FakeBackend:
    """Return a host with disks, whose calls take their time."""
    files = boot_files()
    for path in paths:
        files.add(path, size=1 << 20)
    return FakeBackend(files=files, latency=Latency(host_ms=call_ms, guest_ms=call_ms))


async def attach(scsi: ScsiBus, paths: Sequence[str]) -> list[ScsiLease]:
    """Attach and mount disks at once."""
    leases = []

    async def one(path: str) -> None:
        leases.append(await scsi.attach(path, mount=_MOUNT))

    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(one, path)
    return leases


async def release(leases: Sequence[ScsiLease]) -> None:
    """Release them at once."""
    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(lease.release)


async def attach_and_release(disks: int, count: int) -> None:
    """Do it with so many disks, so many times, on a fake whose calls take no time."""
    async with UtilityVM.create(OPTIONS, backend=host(PATHS)) as vm:
        await vm.start()
        for _ in range(count):
            await release(await attach(vm.scsi, PATHS[:disks]))


async def attach_and_release_on_stubs(count: int) -> None:
    """Do it with all disks, so many times, on stubs whose calls take no time."""
    async with anyio.create_task_group() as tasks:
        scsi = scsi_bus(Stub(), tasks)
        for _ in range(count):
            await release(await attach(scsi, PATHS))


@define
class _Took:
    """What each round took."""

    attached: list[Span] = Factory(list)
    released: list[Span] = Factory(list)

    async def measure(self, scsi: ScsiBus) -> None:
        for _ in range(_ROUNDS):
            with Span.measured(self.attached):
                leases = await attach(scsi, PATHS)
            with Span.measured(self.released):
                await release(leases)
        assert not scsi.disks

    def rows(self, where: str, loop: str, budgets: tuple[str, str]) -> Iterator[Figure]:
        """Make the rows of both."""
        yield _row(
            f"attached + mounted at once, {where}", 2, self.attached, loop, budgets[0], ("22", "1,320")
        )
        yield _row(f"released at once, {where}", 3, self.released, loop, budgets[1], ("1,320", "1,980"))


def _row(
    what: str, answers: int, spans: Sequence[Span], loop: str, budget: str, hcsshim: tuple[str, str]
) -> Figure:
    """Make a row of what takes so many answers, one after the other.

    :param hcsshim: what internal/uvm/scsi takes on stubs, and what the newer controller does.
    """
    cpu = min(each.cpu for each in spans) * 1000
    return Figure.of_seconds(
        f"{_DISKS} disks {what} (floor {answers * _CALL_MS:g} ms)",
        "ms",
        [each.wall for each in spans],
        loop=loop,
        budget=budget,
        hcsshim=f"{hcsshim[0]} ms",
        note=f"of which {cpu:.2f} ms at least are processor time; hcsshim's newer controller {hcsshim[1]} ms",
    )


def on_stubs() -> Iterator[Figure]:
    """The bus alone: host and guest make the JSON and sleep, as those do on which hcsshim was measured."""
    for loop in LOOPS:
        yield from anyio.run(_on_stubs, backend=loop).rows("stubs", loop, ("25 ms", "35 ms"))


async def _on_stubs() -> _Took:
    took = _Took()
    async with anyio.create_task_group() as tasks:
        await took.measure(scsi_bus(Stub(_CALL_MS / 1000), tasks))
    return took


def on_fake() -> Iterator[Figure]:
    """With the fake and the connection to its guest, which do their part in the same loop."""
    for loop in LOOPS:
        yield from anyio.run(_on_fake, backend=loop).rows("fake", loop, ("", ""))


async def _on_fake() -> _Took:
    took = _Took()
    async with UtilityVM.create(OPTIONS, backend=host(PATHS, _CALL_MS)) as vm:
        await vm.start()
        await took.measure(vm.scsi)
    return took
