"""Whole VMs on the fake, on both event loops."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

import anyio

from tests.bench.figures import Figure
from uvm import FakeBackend, LCOWOptions, Mount, UtilityVM
from uvm._buses.scsi import ScsiLease
from uvm.backends.fake import FakeFiles, Latency

__all__ = [
    "LOOPS",
    "OPTIONS",
    "attach_and_release",
    "boot_files",
    "create_and_close",
    "disks_at_once",
    "lives",
]

LOOPS: Final = ("asyncio", "trio")
_BOOT: Final = "C:\\boot"
OPTIONS: Final = LCOWOptions(boot_files_path=_BOOT)

_DISKS: Final = 64
_PATHS: Final = tuple(f"C:\\disks\\{n}.vhdx" for n in range(_DISKS))
_LATENCY_MS: Final = 10.0
_ROUNDS: Final = 30
_LIVES: Final = 300


def boot_files() -> FakeFiles:
    """A host's files, of which a Linux VM boots."""
    files = FakeFiles()
    for name in ("vmlinux", "initrd.img"):
        files.add(f"{_BOOT}\\{name}", size=1 << 20)
    return files


def disks_at_once() -> Iterator[Figure]:
    """Attach and mount many disks at once, where host and guest take their time; release them likewise."""
    for loop in LOOPS:
        attached, released = anyio.run(_disks_at_once, backend=loop)
        yield Figure.of_seconds(
            f"{_DISKS} attach + mount at once, host and guest at {_LATENCY_MS:g} ms (floor 20 ms)",
            "ms",
            attached,
            loop=loop,
            budget="28 ms",
            hcsshim="24 ms",
        )
        yield Figure.of_seconds(
            f"the {_DISKS} released at once: unmount, eject, detach (floor 30 ms)",
            "ms",
            released,
            loop=loop,
            budget="42 ms",
            hcsshim="1,335 ms",
        )


def _host(latency_ms: float = 0) -> FakeBackend:
    """Return a host with the disks."""
    files = boot_files()
    for path in _PATHS:
        files.add(path, size=1 << 20)
    return FakeBackend(files=files, latency=Latency(host_ms=latency_ms, guest_ms=latency_ms))


async def attach_and_release(disks: int, count: int) -> None:
    """Attach and mount so many disks at once and release them likewise, so many times; no call takes time."""
    async with UtilityVM.create(OPTIONS, backend=_host()) as vm:
        await vm.start()
        for _ in range(count):
            await _release(await _attach(vm, _PATHS[:disks]))


async def _disks_at_once() -> tuple[list[float], list[float]]:
    backend = _host(_LATENCY_MS)
    attached, released = [], []
    async with UtilityVM.create(OPTIONS, backend=backend) as vm:
        await vm.start()
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            leases = await _attach(vm, _PATHS)
            middle = time.perf_counter()
            await _release(leases)
            attached.append(middle - start)
            released.append(time.perf_counter() - middle)
        assert not vm.quarantined
    return attached, released


async def _attach(vm: UtilityVM, paths: Sequence[str]) -> list[ScsiLease]:
    mount = Mount(filesystem="ext4")
    leases = []

    async def attach(path: str) -> None:
        leases.append(await vm.scsi.attach(path, mount=mount))

    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(attach, path)
    return leases


async def _release(leases: list[ScsiLease]) -> None:
    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(lease.release)


def lives() -> Iterator[Figure]:
    """Create a VM, start it and close it."""
    for loop in LOOPS:
        yield Figure.of_seconds(
            "one VM on the fake: create, start, close",
            "ms",
            # The first makes the functions that read and write documents.
            anyio.run(create_and_close, _LIVES, backend=loop)[1:],
            loop=loop,
            budget="2 ms",
        )


async def create_and_close(count: int) -> list[float]:
    """Create a VM, start it and close it, so many times; returns the seconds that each took."""
    backend = FakeBackend(files=boot_files())
    took = []
    for _ in range(count):
        start = time.perf_counter()
        async with UtilityVM.create(OPTIONS, backend=backend) as vm:
            await vm.start()
        took.append(time.perf_counter() - start)
    assert backend.leftovers() == []
    return took
