"""Directories of the host in a running Windows container.

How it works
------------

A directory is shared with the guest first, over VSMB, and then mapped into the container. A task of the VM
does both, and undoes both::

    SHARED -- mapped --> HELD -- release ---------------> UNMAPPED -- the share is released --> released
      |                   |                                  ^
      |                   `----- the container ends ---------'
      |
      `----- refused, lost, or its caller has left: unmapped if it may be mapped, and the share is released

One that may be mapped, since its unmapping failed, and has no caller is an orphan of the VM.

Source: hcsshim cmd/containerd-shim-runhcs-v1/task_hcs.go, which keeps the share of a mount that failed.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import anyio
from attrs import define, field

from uvm._async import Opening
from uvm._buses.lease import LeaseState, Orphan, ReleasedByTask, state_of
from uvm._buses.link import Link
from uvm._buses.vsmb import VSMBLease
from uvm._checks import checked, flag, instance
from uvm._document.common import need_build
from uvm._guest.container import Container
from uvm._names import HostPath, guest_path
from uvm._repr import brief
from uvm._vm.devices import Devices
from uvm.backend import JSON
from uvm.errors import (
    BridgeClosedError,
    OptionsError,
    RefusedError,
    UndoFailedError,
    UVMError,
    is_refusal,
)
from uvm.hresult import SYSTEM_ENDED, HResult
from uvm.schema.common import RS5
from uvm.schema.container import MappedDirectory
from uvm.schema.json import to_json
from uvm.schema.requests import ADD, CONTAINER_DIRECTORIES, REMOVE, ModifySettingRequest

#: The directory is mapped no more: it was not, or the container has ended.
_NOT_MAPPED = SYSTEM_ENDED | {HResult.ERROR_NOT_FOUND}


@define(eq=False, repr=False)
class ContainerMount(ReleasedByTask):
    """A directory of the host in a running Windows container.

    It ends with :meth:`release`, with the container, or with the VM.

    :ivar container_id: the id of the container.
    :ivar container_path: its path there.
    :ivar share: the lease of the share, which is released with it.
    """

    _operation = "unmount in container"

    _container: Container
    share: VSMBLease
    container_path: str
    read_only: bool
    _mapped: bool = field(default=True, init=False)
    _following: anyio.CancelScope = field(factory=anyio.CancelScope, init=False)
    #: Since when it has no caller.
    _left_at: datetime | None = field(default=None, init=False)

    def __repr__(self) -> str:
        return brief(f"<ContainerMount: {self.host_path} at {self._where} ({self.state.value})>")

    @property
    def _where(self) -> str:
        return f"{self.container_path} in container {self.container_id}"

    @property
    def _link(self) -> Link:
        return self.share._hold.link

    @property
    def container_id(self) -> str:
        """The id of the container."""
        return self._container.id

    @property
    def host_path(self) -> str:
        """The directory on the host, links resolved."""
        return self.share.host_path

    def _state_of_parts(self) -> LeaseState:
        return LeaseState.REFUSED if self._releasing.error is not None else state_of(self.share._hold)

    async def release(self) -> None:
        """Unmap it, and release its share.

        A task of the VM does it: cancelling this stops only the waiting, and a further release waits for the
        same outcome. What is refused may be released again, which goes on from there.

        :raises AlreadyReleasedError: a release of it has succeeded before.
        :raises UnknownOutcomeError: the answer was lost; it may be mapped.
        """
        # A caller has it.
        self._left_at = None
        await super().release()

    async def _take_apart(self) -> None:
        if self._mapped and not self._container._handle.exit.settled:
            await self._unmap()
        self._unmapped()
        self._following.cancel()
        if self.share.released:
            return
        try:
            await self.share.release()
        finally:
            if self._left_at is not None:
                self.share._leave()

    def _unmapped(self) -> None:
        self._mapped = False
        self._link.mounts.pop(self, None)

    async def _unmap(self) -> None:
        try:
            await self._container.modify(self._request(REMOVE))
        except BridgeClosedError:
            # A guest that has gone holds nothing any more.
            if not self._link.exited.is_set() and self._container._guest.tasks is not None:
                raise
        except RefusedError as error:
            if error.hresult not in _NOT_MAPPED:
                raise

    def _request(self, request_type: str) -> JSON:
        """Return the request that maps or unmaps it."""
        settings = MappedDirectory(
            host_path=self.share.guest_path, container_path=self.container_path, read_only=self.read_only
        )
        return to_json(
            ModifySettingRequest(
                resource_path=CONTAINER_DIRECTORIES, request_type=request_type, settings=settings
            )
        )

    async def _follow(self) -> None:
        """Release it when its container ends: a task of the VM."""
        with self._following:
            with suppress(UVMError):
                await self._container._handle.exit.wait()
            # One that was under way may fail, since it asked the container.
            with suppress(UVMError):
                await self._releasing.wait()
            self._releasing.begin()

    def _leave(self) -> None:
        self._left_at = self._left_at or datetime.now(UTC)
        if not self._mapped:
            self.share._leave()

    def _abandon(self) -> None:
        """Release it for no caller: if that is refused, it is an orphan."""
        self._leave()
        self._releasing.begin()

    def _orphan(self) -> Orphan | None:
        """Return it as an orphan, if it may be mapped and has no caller."""
        hold, error = self.share._hold, self._releasing.error
        if self._left_at is None or error is None:
            return None
        # Its slot is that of its share.
        return Orphan(
            "vsmb.shares",
            hold.ticket.key,
            hold.slot,
            f"directory {self.host_path} in a container",
            self._where,
            error,
            self._left_at,
            self._releasing.wait,
        )


def mount_in_container(
    vm: Devices, container: Container, path: HostPath, container_path: HostPath, read_only: bool
) -> Opening[ContainerMount]:
    """Show a directory of the host in a running container: ``UtilityVM.mount_in_container``."""
    context = vm._context
    context.need_guest("a mount into a running container", "windows")
    need_build(context.host, RS5, "a mount into a running container")
    checked(container, instance(Container), "container")
    checked(read_only, flag, "read_only")
    at = guest_path(container_path, "windows", "container_path")
    context.key(path)
    return Opening(_mount(vm, container, path, at, read_only))


async def _mount(
    vm: Devices, container: Container, path: HostPath, at: str, read_only: bool
) -> ContainerMount:
    vm._link.check_running()
    if container._guest.name != vm.id:
        raise OptionsError(f"container {container.id} is in {container._guest.name}, not in {vm.id}")
    container._check_running("mount into")
    if not await vm._context.is_directory(path):
        raise OptionsError(f"{path} is no directory: only those are mounted into a running container")
    mount = partial(_share_and_map, vm, container, path, at, read_only)
    return await vm._link.carry_out("mount in container", mount, ContainerMount._abandon)


async def _share_and_map(
    vm: Devices, container: Container, path: HostPath, at: str, read_only: bool
) -> ContainerMount:
    share = await vm.vsmb.add(path, read_only=read_only)
    mount = ContainerMount(container, share, at, read_only)
    tasks = vm._link.tasks
    assert tasks is not None
    vm._link.mounts[mount] = None
    try:
        await container.modify(mount._request(ADD))
    except BaseException as error:
        if is_refusal(error):
            mount._unmapped()
        if not isinstance(error, Exception) or vm._link.exited.is_set():
            share.give_up()
            raise
        try:
            await mount._releasing.wait()
        except UVMError as undo_error:
            mount._leave()
            tasks.start_soon(mount._follow)
            raise UndoFailedError.of(error, undo_error, is_orphan=mount._mapped) from None
        raise
    tasks.start_soon(mount._follow)
    return mount
