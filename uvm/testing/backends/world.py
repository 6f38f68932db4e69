"""Systems and VMs for scenarios: made from the rig's options, attended to, and closed at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskStatus
from attrs import evolve

from uvm._async import bare_task_group
from uvm._vm.creation import Settings, create
from uvm._vm.vm import UtilityVM
from uvm.backend import JSON, ByteStream, System
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.options import LCOWOptions, WCOWOptions
from uvm.schema.json import to_json
from uvm.schema.requests import (
    ADD,
    MEMORY_SIZE_PATH,
    REMOVE,
    ModifySettingRequest,
    scsi_attachment_path,
)
from uvm.testing.backends.checks import check
from uvm.testing.backends.rig import Rig

Options = LCOWOptions | WCOWOptions


def options_of(rig: Rig, os: str, **changes: Any) -> Options:
    """Give options of a VM of some operating system; its id is ``vm1``."""
    options = rig.windows if os == "windows" else rig.linux
    assert options is not None, "the scenario does not say that it needs this"
    return evolve(options, **{"id": "vm1", **changes})


def linux_options(rig: Rig, **changes: Any) -> Options:
    """Give options of a Linux VM that HCS connects to the guest of; its id is ``vm1``."""
    return options_of(rig, "linux", **{"external_guest_connection": False, **changes})


def grace_of(rig: Rig, *, hangs: bool = False) -> float:
    """Give how long to wait for what has to end: that of the rig where something hangs on purpose."""
    return rig.grace_seconds if hangs else rig.patience_seconds / 2


@asynccontextmanager
async def some_system(rig: Rig, options: Options | None = None) -> AsyncIterator[System]:
    """A system as UtilityVM creates it, not started; its guest is attended to."""
    settings = Settings(None, None, grace_of(rig))
    _, system, artifacts = await create(options or linux_options(rig), rig.backend, settings)
    try:
        async with closed_at_the_end(system):
            yield system
    finally:
        with anyio.CancelScope(shield=True):
            errors = await artifacts.remove()
    if errors:
        raise ExceptionGroup(f"taking back what {system.id} was given", errors)


@asynccontextmanager
async def running_system(rig: Rig, options: Options | None = None) -> AsyncIterator[System]:
    """A running system, by default a Linux VM that HCS relays requests to the guest of."""
    async with some_system(rig, options) as system:
        await system.start()
        yield system


@asynccontextmanager
async def closed_at_the_end(system: System) -> AsyncIterator[System]:
    """Somebody waits for the system all the time, as has to be; at the end its handle is closed."""

    async def attend(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        try:
            await system.wait()
        except HostError as error:
            if error.hresult != HResult.E_HANDLE:
                raise

    async def end(failure: BaseException | None) -> BaseException | None:
        tasks.cancel_scope.cancel()
        return failure

    try:
        async with bare_task_group(end) as tasks:
            # Not before somebody waits may anything be asked of it.
            await tasks.start(attend)
            yield system
    finally:
        with anyio.CancelScope(shield=True):
            await _close(system)


async def _close(system: System) -> None:
    try:
        await system.close()
    except HostError as error:
        # The scenario closed it itself.
        if error.hresult != HResult.E_HANDLE:
            raise


@asynccontextmanager
async def running_vm(rig: Rig, os: str = "linux", **changes: Any) -> AsyncIterator[UtilityVM]:
    """A started UtilityVM."""
    created = UtilityVM.create(
        options_of(rig, os, **changes), backend=rig.backend, close_grace_seconds=grace_of(rig)
    )
    async with created as vm:
        await vm.start()
        yield vm


# What comes over a stream.


async def everything(stream: ByteStream | None) -> bytes:
    """Receive all that comes."""
    check(stream is not None, "it has the stream that was asked for")
    assert stream is not None
    pieces: list[bytes] = []
    try:
        while True:
            pieces.append(await stream.receive())
    except anyio.EndOfStream:
        return b"".join(pieces)


# Requests, as the library writes them.


def attach_disk(path: str, lun: int = 0, **settings: Any) -> JSON:
    """A request to attach a virtual disk to the first controller."""
    return {
        "ResourcePath": scsi_attachment_path(0, lun),
        "RequestType": ADD,
        "Settings": {"Type": "VirtualDisk", "Path": path, **settings},
    }


def detach_disk(lun: int = 0) -> JSON:
    """A request to detach what is there."""
    return {"ResourcePath": scsi_attachment_path(0, lun), "RequestType": REMOVE}


def resize_memory(size_mb: int) -> JSON:
    """A request to change the size of the memory."""
    return to_json(ModifySettingRequest(resource_path=MEMORY_SIZE_PATH, settings=size_mb))
