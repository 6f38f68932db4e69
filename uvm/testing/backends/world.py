"""Systems and VMs of scenarios: made from the rig's options, watched, and closed at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskStatus
from attrs import evolve

from uvm._async import BareTaskGroup
from uvm._names import GuestOS
from uvm._vm.creation import Settings, create
from uvm._vm.vm import UtilityVM
from uvm.backend import JSON, ByteStream, System
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.options import LCOWOptions, WCOWOptions
from uvm.schema.json import to_json
from uvm.schema.requests import ADD, REMOVE, MemorySize, ModifySettingRequest, scsi_attachment_path
from uvm.testing.backends.rig import Rig

S = TypeVar("S")

Options = LCOWOptions | WCOWOptions


def options_of(rig: Rig, os: GuestOS, **changes: Any) -> Options:
    """Return the options of a VM with an operating system; its id is the rig's own ``vm1``."""
    options = rig.windows if os == "windows" else rig.linux
    assert options is not None, "the scenario does not state that it needs this"
    return evolve(options, **{"id": rig.own("vm1"), **changes})


def linux_options(rig: Rig, **changes: Any) -> Options:
    """Return the options of a Linux VM to whose guest HCS connects, as :func:`options_of` does."""
    return options_of(rig, "linux", **{"external_guest_connection": False, **changes})


def grace_of(rig: Rig, *, hangs: bool = False) -> float:
    """Return how long to wait for an end: the rig's grace if a call hangs on purpose."""
    return rig.grace_seconds if hangs else rig.timeout_seconds / 2


@asynccontextmanager
async def some_system(rig: Rig, options: Options | None = None) -> AsyncIterator[System]:
    """Yield a system as UtilityVM creates it, not started; its exit is waited for."""
    settings = Settings(None, None, grace_of(rig))
    context, system, artifacts = await create(options or linux_options(rig), rig.backend, settings)
    try:
        async with closed_at_the_end(system):
            yield system
    finally:
        with anyio.CancelScope(shield=True):
            errors = [*await context.access.revoke_all(), *await artifacts.remove()]
    if errors:
        raise ExceptionGroup(f"undoing the creation of {system.id}", errors)


@asynccontextmanager
async def running_system(rig: Rig, options: Options | None = None) -> AsyncIterator[System]:
    """Yield a running system, by default a Linux VM to whose guest HCS relays requests."""
    async with some_system(rig, options) as system:
        await system.start()
        yield system


@asynccontextmanager
async def opened(rig: Rig, name: str = "vm1") -> AsyncIterator[System]:
    """Yield another handle of a system of the rig's, which is closed at the end."""
    async with closed_at_the_end(await rig.backend.open(rig.own(name))) as system:
        yield system


@asynccontextmanager
async def closed_at_the_end(system: System) -> AsyncIterator[System]:
    """Wait for the exit of the system all the time, as a backend demands, and close its handle at the end."""

    async def attend(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        with _unless_closed():
            await system.wait()

    async def end(failure: BaseException | None) -> BaseException | None:
        tasks.cancel_scope.cancel()
        return failure

    try:
        async with BareTaskGroup(end) as tasks:
            # Nothing may be asked of the system before its exit is waited for.
            await tasks.start(attend)
            yield system
    finally:
        with anyio.CancelScope(shield=True), _unless_closed():
            await system.close()


@contextmanager
def _unless_closed() -> Iterator[None]:
    """Suppress E_HANDLE: the scenario closed the handle itself."""
    try:
        yield
    except HostError as error:
        if error.hresult != HResult.E_HANDLE:
            raise


@asynccontextmanager
async def running_vm(rig: Rig, os: GuestOS = "linux", **changes: Any) -> AsyncIterator[UtilityVM]:
    """Yield a started UtilityVM."""
    created = UtilityVM.create(
        options_of(rig, os, **changes), backend=rig.backend, close_grace_seconds=grace_of(rig)
    )
    async with created as vm:
        await vm.start()
        yield vm


# Reading streams.


def existing(stream: S | None) -> S:
    """Return a stream of a process that was requested."""
    if stream is None:
        raise AssertionError("the requested stream exists")
    return stream


async def everything(stream: ByteStream | None) -> bytes:
    """Receive until the end of a stream."""
    stream, pieces = existing(stream), list[bytes]()
    try:
        while True:
            pieces.append(await stream.receive())
    except anyio.EndOfStream:
        return b"".join(pieces)


# Requests in the form of the library.


def attach_disk(path: str, lun: int = 0, **settings: Any) -> JSON:
    """Return a request to attach a virtual disk to the first controller."""
    return {
        "ResourcePath": scsi_attachment_path(0, lun),
        "RequestType": ADD,
        "Settings": {"Type": "VirtualDisk", "Path": path, **settings},
    }


def detach_disk(lun: int = 0) -> JSON:
    """Return a request to detach the disk at a LUN."""
    return {"ResourcePath": scsi_attachment_path(0, lun), "RequestType": REMOVE}


def resize_memory(size_mb: int) -> JSON:
    """Return a request to change the size of the memory."""
    return to_json(ModifySettingRequest(resource_path=MemorySize.PATH, settings=size_mb))
