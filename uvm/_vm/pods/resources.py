"""What is attached for a container: its root file system, mounts and devices, as one lease.

Theory of operation
-------------------

:data:`KINDS` has, by the class of an attachment, how it is checked on the host and how it is attached. All
is checked before anything is attached; then all is attached at once, and the ledgers keep the order that the
host needs. A part that fails has the others released again::

    CHECKED -- attach --> HELD -- release --> RELEASING -- mounts and devices, then the root --> released
                 |          ^                    |
                 |          `--- one is refused -'      a further release goes on with what is left
                 `-- one fails --> the others are released, and what is refused then is an orphan

A task of the VM does it, so that a caller may leave: what was attached is released then.

Source: hcsshim ``internal/resources`` (``ReleaseResources``), whose order of ends it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from attrs import define, field

from uvm._async import errors_of
from uvm._buses.directories import SharedLease
from uvm._buses.lease import Lease, LeaseState, ReleasedByTask, released_on_failure
from uvm._buses.link import Link
from uvm._buses.vsmb import VSMBLease
from uvm._guest.exchange import Exchange
from uvm._guest.specs import Command
from uvm._names import HostPath
from uvm._repr import brief, counted
from uvm._vm.layers import LCOWLayer, RootFileSystem, WCOWLayer, check_layers
from uvm._vm.pods.plan import (
    PIPE,
    Attachment,
    ContainerPlan,
    Device,
    Disk,
    GuestDirectory,
    GuestRoot,
    LocatedDevice,
    Pipe,
    Share,
)
from uvm._vm.vm import UtilityVM
from uvm.devices.blockcims import BlockCIMLayer
from uvm.devices.scsi import DiskType
from uvm.devices.vsmb import guest_path
from uvm.errors import UnknownOutcomeError, UVMError, VMExitedError, together

Layers: TypeAlias = Sequence[LCOWLayer | WCOWLayer | BlockCIMLayer | HostPath]

#: What holds an attachment, if anything has to, and where the guest has it.
Attached: TypeAlias = tuple[Lease | None, str]


async def _check_share(vm: UtilityVM, wanted: Share) -> None:
    await vm._context.is_directory(wanted.path)
    vm._context.check_writable_share(wanted.path, wanted.read_only)


async def _share(vm: UtilityVM, wanted: Share) -> Attached:
    lease: SharedLease | VSMBLease
    if vm.os == "windows":
        lease = await vm.vsmb.add(wanted.path, read_only=wanted.read_only)
    else:
        lease = await vm.share(wanted.path, wanted.at, read_only=wanted.read_only)
    return lease, lease.guest_path


async def _check_disk(vm: UtilityVM, wanted: Disk) -> None:
    if wanted.type is DiskType.VIRTUAL_DISK:
        await vm._context.file_size(wanted.path)


async def _disk(vm: UtilityVM, wanted: Disk) -> Attached:
    attach = vm.scsi.attach(wanted.path, read_only=wanted.read_only, type=wanted.type, mount=wanted.mount)
    lease = await attach
    return lease, lease.guest_path


async def _leave_to_host(vm: UtilityVM, wanted: Attachment) -> None:
    """Leave it to the host, which knows what its devices and pipes are."""


async def _device(vm: UtilityVM, wanted: Device) -> Attached:
    lease = await vm.vpci.assign(wanted.path)
    return lease, lease.vmbus_guid


async def _check_located(vm: UtilityVM, wanted: LocatedDevice) -> None:
    await vm._context.file_size(wanted.device_util)


async def _locate(vm: UtilityVM, wanted: LocatedDevice) -> Attached:
    """Assign a device, and have the tool in a Windows guest say its location paths."""
    lease = await vm.vpci.assign(wanted.path)
    with released_on_failure([lease]):
        tool = await vm.vsmb.add(wanted.device_util, read_only=True)
        try:
            parent = f"--parentID={lease.vmbus_instance_id}"
            paths = await _first_line(
                vm, Command((tool.guest_path, "children", parent, "--property=location"))
            )
        finally:
            tool.give_up()
        if not paths:
            raise UVMError(
                f"{vm.id}: the guest has no device at {lease.vmbus_instance_id}, which {wanted.path} is"
            )
    return lease, paths


async def _pipe(vm: UtilityVM, wanted: Pipe) -> Attached:
    lease = await vm.pipes.add(wanted.path)
    return lease, guest_path("IPC$", lease.host_path[len(PIPE) :])


async def _directory(vm: UtilityVM, wanted: GuestDirectory) -> Attached:
    # The guest has no request for it; what is listed is there, whether it was made now or before.
    quoted = f'"{wanted.path}"'
    args = ("cmd", "/c", "mkdir", quoted, "&", "dir", quoted)
    await _first_line(vm, Command(args, command_line=" ".join(args)))
    return None, wanted.path


async def _first_line(vm: UtilityVM, wanted: Command) -> str:
    """Run a process in the guest, within the time of an answer, and return the first line of its output."""
    done = await vm._complete(wanted, Exchange(check=True, timeout=vm._startup.timeouts.rpc_seconds))
    output: bytes = done.stdout
    return output.decode(errors="replace").partition("\n")[0].strip()


#: By the class of an attachment, how it is checked, and how it is attached.
KINDS: Final[
    dict[
        type[Any],
        tuple[Callable[[UtilityVM, Any], Awaitable[None]], Callable[[UtilityVM, Any], Awaitable[Attached]]],
    ]
] = {
    Share: (_check_share, _share),
    Disk: (_check_disk, _disk),
    Device: (_leave_to_host, _device),
    LocatedDevice: (_check_located, _locate),
    Pipe: (_leave_to_host, _pipe),
    GuestDirectory: (_leave_to_host, _directory),
}


def _first_of(errors: Sequence[Exception]) -> Exception:
    """Return the first error, or the first of an unknown outcome, with the others as notes."""
    first = next((each for each in errors if isinstance(each, UnknownOutcomeError)), errors[0])
    for error in errors:
        if error is not first and not isinstance(error, VMExitedError):
            first.add_note(f"and {error}")
    return first


@define(eq=False, repr=False)
class ContainerResources(ReleasedByTask):
    """What is attached for one container, as one lease. It ends with :meth:`release`, or with the VM.

    Released are mounts and devices, the last first, and then the root file system. The container has to have
    ended.

    :ivar container_id: the id of the container.
    :ivar root: its root file system; None until it is mounted.
    """

    _operation = "detach for container"

    _vm: UtilityVM
    container_id: str
    _plan: ContainerPlan
    _layers: Layers
    _scratch: HostPath
    root: RootFileSystem | None = field(default=None, init=False)
    #: By their number among the attachments.
    _attached: dict[int, Attached] = field(factory=dict, init=False)

    def __repr__(self) -> str:
        parts = counted(len(self.leases), "leases")
        return brief(f"<ContainerResources of {self.container_id}: {parts} ({self.state.value})>")

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases of its mounts and devices, in the order of the specification."""
        attached = (self._attached[number][0] for number in sorted(self._attached))
        return tuple(lease for lease in attached if lease is not None)

    def document(self) -> Any:
        """Return what ``create_container`` takes: the document that says where all of it is in the guest."""
        assert self.root is not None
        places = [self._attached[number][1] for number in range(len(self._plan.attachments))]
        return self._plan.document(places, GuestRoot(self.root.root, self.root._named))

    # Attaching: in a task of the VM.

    async def _attach_all(self) -> None:
        """Check everything, and attach it; roll back what fails."""
        mounting = self._vm.mount_layers(self.container_id, self._layers, self._scratch)
        try:
            await self._check()
        except BaseException:
            mounting.close()
            raise
        parts = (partial(self._attach, *each) for each in enumerate(self._plan.attachments))
        errors = await errors_of([partial(self._mount_root, mounting), *parts])
        if errors:
            failure = _first_of(errors)
            await self._undo(failure)
            raise failure

    async def _check(self) -> None:
        """Check on the host what is to be attached: the layers and the scratch disk, too."""
        for wanted in self._plan.attachments:
            check, _ = KINDS[type(wanted)]
            await check(self._vm, wanted)
        await check_layers(self._vm._context, self._layers, self._scratch)

    async def _mount_root(self, mounting: Awaitable[RootFileSystem]) -> None:
        self.root = await mounting

    async def _attach(self, number: int, wanted: Attachment) -> None:
        _, attach = KINDS[type(wanted)]
        self._attached[number] = await attach(self._vm, wanted)

    async def _undo(self, failure: BaseException) -> None:
        """Release what is attached for no caller; what that fails with becomes notes of a failure."""
        for error in await self._release_parts():
            failure.add_note(f"and releasing what was attached for {self.container_id} failed: {error}")
        self._leave()

    # Releasing.

    @property
    def _parts(self) -> tuple[Lease | RootFileSystem, ...]:
        """The parts of it in the order in which they are released."""
        return (*reversed(self.leases), *([] if self.root is None else [self.root]))

    @property
    def _link(self) -> Link:
        return self._vm._link

    def _state_of_parts(self) -> LeaseState:
        states = {part.state for part in self._parts}
        precedence = (LeaseState.REFUSED, LeaseState.HELD, LeaseState.UNKNOWN, LeaseState.RELEASED)
        return next((state for state in precedence if state in states), LeaseState.GONE)

    async def _take_apart(self) -> None:
        if errors := await self._release_parts():
            raise together(f"releasing what was attached for {self.container_id}", errors)

    async def _release_parts(self) -> list[Exception]:
        """Release its parts in order; return the errors of those that could not be."""
        stages = [*reversed(self.leases)], [] if self.root is None else [self.root]
        errors: list[Exception] = []
        for stage in stages:
            held = [part.release for part in stage if not part.released]
            errors += await errors_of(held)
        return [error for error in errors if not isinstance(error, VMExitedError)]

    def _leave(self) -> None:
        """Have what is left of it listed as orphans: no caller is expected to release it again."""
        for part in self._parts:
            if not part.released:
                part._leave()
