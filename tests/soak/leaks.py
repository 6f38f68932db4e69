"""Each operation very often, one after the other: ``python -m tests.soak --leaks``.

What is counted before and after are the objects that the garbage collector tracks, and the resident set.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
from attrs import frozen

import uvm
from tests.bench.memory import resident_bytes
from tests.session import spec
from tests.vm.support import DISK, LAYER, MIB, NAMESPACE, OTHER_SHARED, SHARED, host_backend, lcow, wcow
from uvm.backends.fake import FakeBackend

__all__ = ["OPERATIONS", "Growth", "growth_over", "play"]

#: After so many, what is made once is made.
_WARM_UP: Final = 500
_LOG_ENTRIES: Final = 20
#: So many objects come and go, and less than one in so many operations is no leak.
_SOME_OBJECTS: Final = 200
_OPERATIONS_PER_OBJECT: Final = 100
_GROWTH_BYTES: Final = 4 * MIB
#: In each of so many turns an operation is cancelled.
_TURNS: Final = 12

Do = Callable[[int], Awaitable[object]]


@frozen
class Growth:
    """What so many operations left."""

    name: str
    loop: str
    count: int
    objects: int
    resident: int

    @property
    def leaks(self) -> bool:
        """Whether that is more than noise."""
        noise = _SOME_OBJECTS + self.count / _OPERATIONS_PER_OBJECT
        return self.objects > noise or self.resident > _GROWTH_BYTES

    def __str__(self) -> str:
        verdict = "LEAKS" if self.leaks else "flat"
        grown = f"{self.objects:>+10,} objects {self.resident / MIB:>+8.2f} MiB"
        return f"{self.name:28}{self.loop:9}{self.count:>9,} times {grown}  {verdict}"


def _backend() -> FakeBackend:
    return host_backend(request_log_entries=_LOG_ENTRIES)


@asynccontextmanager
async def _vm(
    do: Callable[[uvm.UtilityVM, FakeBackend, int], Awaitable[object]], options: Any = None
) -> AsyncIterator[Do]:
    backend = _backend()
    async with uvm.UtilityVM.create(options or lcow(), backend=backend) as vm:
        await vm.start()
        yield partial(do, vm, backend)


async def _disk(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    await (await vm.scsi.attach(DISK, mount=uvm.Mount())).release()


async def _other_disk(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    path = rf"C:\fresh\{number}.vhdx"
    backend.files.add(path, size=MIB)
    await (await vm.scsi.attach(path)).release()
    await backend.files.remove(path)


async def _disk_cancelled(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    leases: list[uvm.Lease] = []

    async def attach() -> None:
        leases.append(await vm.scsi.attach(DISK, mount=uvm.Mount()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attach)
        for _ in range(number % _TURNS):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    for lease in leases:
        await lease.release()
    await vm.settled()


async def _layer(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    await (await vm.vpmem.add(LAYER)).release()


async def _plan9_share(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    await (await vm.plan9.add(OTHER_SHARED, "/shared")).release()


async def _vsmb_share(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    options = vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)
    await (await vm.vsmb.add(OTHER_SHARED, options=options)).release()


def _request(kind: str) -> dict[str, Any]:
    settings = {"MountPath": "/mnt/repeated", "Lun": 0, "Controller": 0, "Filesystem": "ext4"}
    return {"ResourceType": "MappedVirtualDisk", "RequestType": kind, "Settings": settings}


async def _refused_request(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    try:
        await vm.guest.modify(_request("Remove"))
    except uvm.GuestError:
        return
    raise AssertionError("the guest unmounted what is not mounted")


async def _process(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    await vm.run(["echo", "again"])


async def _container(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    async with vm.create_container("c", spec("sleep", "3600")) as container:
        await container.start()


async def _network(vm: uvm.UtilityVM, backend: FakeBackend, number: int) -> None:
    network = vm.network_setup()
    await network.setup(NAMESPACE)
    await network.teardown(NAMESPACE)


@asynccontextmanager
async def _windows_container(
    do: Callable[[uvm.UtilityVM, uvm.Container, int], Awaitable[object]],
) -> AsyncIterator[Do]:
    async with uvm.UtilityVM.create(wcow(no_direct_map=True), backend=_backend()) as vm:
        await vm.start()
        async with vm.create_container("c", {"Container": {}}) as container:
            await container.start()
            yield partial(do, vm, container)


async def _mount(vm: uvm.UtilityVM, container: uvm.Container, number: int) -> None:
    await (await vm.mount_in_container(container, SHARED, r"C:\in")).release()


async def _update(vm: uvm.UtilityVM, container: uvm.Container, number: int) -> None:
    memory = {"memory": {"limit": (128 + 2 * (number % 2)) * MIB}}
    await container.update(memory)


async def _one_vm(backend: FakeBackend, number: int) -> None:
    async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
        await vm.start()


@asynccontextmanager
async def _vms() -> AsyncIterator[Do]:
    backend = _backend()
    yield partial(_one_vm, backend)
    assert backend.leftovers() == []


#: By name: a context that returns what does it once.
OPERATIONS: Final[dict[str, Callable[[], AbstractAsyncContextManager[Do]]]] = {
    "disk": partial(_vm, _disk),
    "another disk each time": partial(_vm, _other_disk),
    "disk, cancelled": partial(_vm, _disk_cancelled),
    "layer": partial(_vm, _layer),
    "Plan9 share": partial(_vm, _plan9_share),
    "VSMB share": partial(_vm, _vsmb_share, wcow()),
    "refused request": partial(_vm, _refused_request),
    "process": partial(_vm, _process),
    "container": partial(_vm, _container),
    "network": partial(_vm, _network),
    "directory in a container": partial(_windows_container, _mount),
    "update of a container": partial(_windows_container, _update),
    "VM": _vms,
}


def play(loop: str, count: int) -> Iterator[Growth]:
    """Do each so many times on an event loop."""
    for name, stage in OPERATIONS.items():
        objects, resident = anyio.run(growth_over, stage, count, backend=loop)
        yield Growth(name, loop, count, objects, resident)


async def growth_over(
    stage: Callable[[], AbstractAsyncContextManager[Do]], count: int, warm_up: int = _WARM_UP
) -> tuple[int, int]:
    """Do something so many times; return by how many objects and bytes the process grew."""
    async with stage() as do:
        for number in range(warm_up):
            await do(number)
        objects, resident = _in_use()
        for number in range(count):
            await do(number)
        objects_after, resident_after = _in_use()
    return objects_after - objects, resident_after - resident


def _in_use() -> tuple[int, int]:
    gc.collect()
    return len(gc.get_objects()), resident_bytes()
