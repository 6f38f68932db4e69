"""Plan9 shares: directories of the host that the guest sees over virtio-9p, by the name of the share.

How it works
------------

QEMU cannot be given another file system device (``fsdev``) while it runs, so it starts with slots for them,
writable ones and read-only ones, each at a path that does not exist yet. The path is opened when a virtio-9p
device for the slot is plugged, and only then::

    open the directory --> add-fd --> link the slot's path to it --> device_add --> remove the link, remove-fd
    device_del, and its event: the guest has released it --> the slot is free

The directory is opened here, component by component, without following any link, and the slot's path leads to
QEMU's copy of that descriptor (``/proc/self/fd/N``): whatever is renamed meanwhile, no other directory is
shared. QEMU's user has to be one that may use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import ClassVar, Final

import anyio
import anyio.to_thread
from attrs import define, field

from uvm.backend import JSON
from uvm.backends.qemu.devices.request import Device, DeviceTable, Host, Pool, gone, number_in, unplugged
from uvm.backends.qemu.users import check_access
from uvm.backends.requests.request import Request
from uvm.backends.winerrors import hresult_of
from uvm.backends.workers import Workers
from uvm.errors import HostError, NoSpaceError
from uvm.hresult import HResult
from uvm.schema.devices import PLAN9_READ_ONLY, PLAN9_RESTRICT_FILE_ACCESS, Devices, Plan9Share
from uvm.schema.json import to_json
from uvm.schema.requests import Plan9Shares, Resource
from uvm.schema.system import VirtualMachine

#: The longest name of a share; QEMU has room for the tag of a mount in one byte less.
_MAX_NAME_BYTES: Final = 31
#: How a directory is opened as a place alone.
_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@define(eq=False, repr=False)
class Share(Device[Plan9Share]):
    """A share.

    :ivar slot: the number of its fsdev, writable or read-only; -1 if it has none.
    :ivar port: the PCI root port; -1 if it has none.
    :ivar fdset: what QEMU holds of the directory until it is plugged; -1 if nothing.
    """

    slot: int = field(default=-1, init=False)
    port: int = field(default=-1, init=False)
    fdset: int = field(default=-1, init=False)

    @property
    def read_only(self) -> bool:
        """Whether the guest may not write."""
        return bool(self.settings.flags & PLAN9_READ_ONLY)

    @property
    def fsdev(self) -> str:
        """The name of its slot in QEMU."""
        return f"{'ro' if self.read_only else ''}share{self.slot}"

    @property
    def device(self) -> str:
        """The name of its device in QEMU."""
        return f"plan9-{self.fsdev}"


class Plan9Kind(DeviceTable[Resource, str, Share]):
    """The 9p shares of a VM, by name."""

    resources: ClassVar[tuple[type[Resource], ...]] = (Plan9Shares,)
    name: ClassVar[str] = "Plan9"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._present = False
        self._slots = {read_only: Pool(host.share_slots) for read_only in (False, True)}
        self._one_links = anyio.Lock()

    def configure(self, vm: VirtualMachine, devices: Devices) -> None:
        """Have shares if the document has a device for them."""
        self._present = devices.plan9 is not None

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Add the shares of the document."""
        if devices.plan9 is not None:
            for share in devices.plan9.shares:
                await self.modify(Request(Plan9Shares(), "Add", to_json(share)))

    def key(self, request: Request[Resource]) -> str:
        """Return the name of the share."""
        share = request.parse(Plan9Share)
        if not self._present:
            raise request.missing("the VM has no Plan9 device")
        if not share.name:
            raise request.invalid("Name is missing")
        return share.name

    def make(self, request: Request[Resource]) -> Share:
        """Return the share that a request describes."""
        share = request.parse(Plan9Share)
        if not share.path:
            raise request.invalid("Path is missing")
        if len(share.name.encode()) > _MAX_NAME_BYTES:
            raise request.invalid(f"the name of a share has at most {_MAX_NAME_BYTES} bytes")
        if share.flags & PLAN9_RESTRICT_FILE_ACCESS:
            raise request.lacking(
                "a share shows all files of its directory here; share a directory of its own"
            )
        return Share(f"share {share.name} ({share.path})", share)

    async def attach(self, request: Request[Resource], device: Share) -> None:
        """Share a directory.

        :raises NoSpaceError: no slot or no PCI root port is free.
        """
        settings = device.settings
        fd = await Workers(1).run(_open_directory, settings.path, request.operation, undo=os.close)
        with ExitStack() as opened:
            opened.callback(os.close, fd)
            check = partial(check_access, self.host.user, fd, settings.path, request.operation)
            await anyio.to_thread.run_sync(partial(check, writable=not device.read_only))
            self._take(request, device)
            try:
                self.note(request, device, {"Slot": device.slot, "Port": device.port})
                number = await self._hand_over(request, device, fd)
                # A writable and a read-only slot have the same path.
                async with self._one_links:
                    with _linked(f"{self.host.directory}/share{device.slot}", number):
                        await self._plug(request, device)
                await self._close_in_qemu(request, device)
            except Exception:
                with suppress(HostError):
                    await self._close_in_qemu(request, device)
                self._put(device)
                raise

    async def _hand_over(self, request: Request[Resource], device: Share, fd: int) -> int:
        """Return the number that the descriptor of the directory has in QEMU."""
        added = await self.machine.ask(request.operation, "add-fd", {"opaque": device.device}, fds=(fd,))
        device.fdset = number_in(added, "fdset-id", request.operation)
        return number_in(added, "fd", request.operation)

    async def _close_in_qemu(self, request: Request[Resource], device: Share) -> None:
        """Have QEMU close the descriptor: it has opened the directory, or does not."""
        if device.fdset >= 0:
            await gone(self.machine, request.operation, "remove-fd", {"fdset-id": device.fdset})
            device.fdset = -1

    async def _plug(self, request: Request[Resource], device: Share) -> None:
        options = {
            "driver": "virtio-9p-pci",
            "id": device.device,
            "bus": f"port{device.port}",
            "fsdev": device.fsdev,
            "mount_tag": device.settings.name,
        }
        await self.machine.ask(request.operation, "device_add", options)

    async def detach(self, request: Request[Resource], device: Share) -> None:
        """Unplug a share, once the guest has released it."""
        if device.slot >= 0:
            await unplugged(self.machine, request.operation, device.device)
            await self._close_in_qemu(request, device)
            self._put(device)

    def put_back(self, request: Request[Resource], device: Share, place: JSON) -> None:
        """Have a share that an earlier process has added."""
        device.slot, device.port = place["Slot"], place["Port"]
        device.fdset = next(iter(place["FDSets"]), -1)
        self._slots[device.read_only].take(device.slot)
        self.host.ports.take(device.port)

    def update(self, request: Request[Resource], device: Share) -> None:
        """Refuse a change: only the allowed files of a share can change, and here are none."""
        raise request.invalid(f"{device} does not restrict file access")

    def _take(self, request: Request[Resource], device: Share) -> None:
        slots, kind = self._slots[device.read_only], "read-only" if device.read_only else "writable"
        slot = slots.take()
        if slot is None:
            raise NoSpaceError(
                f"{request.operation}: all {slots.count} slots for {kind} shares are in use; "
                "nothing was shared; release a share, or create the backend with more share_slots"
            )
        port = self.host.ports.take()
        if port is None:
            slots.put(slot)
            raise NoSpaceError(
                f"{request.operation}: all {self.host.ports.count} PCI root ports are in use by shares and "
                "adapters; nothing was shared; release one, or create the backend with more root_ports"
            )
        device.slot, device.port = slot, port

    def _put(self, device: Share) -> None:
        self._slots[device.read_only].put(device.slot)
        self.host.ports.put(device.port)
        device.slot = device.port = -1

    def inventory(self) -> JSON:
        """Return the shares in the form of the document."""
        shares = [to_json(share.settings) for share in self._attached.values()]
        return {"Shares": shares} if shares else {}


def _open_directory(path: str, operation: str) -> int:
    """Return the descriptor of a directory, opened without following a link; blocking.

    Links of the path as it is now have been followed before: one that is put there afterwards is refused.

    :raises HostError: ERROR_PATH_NOT_FOUND, ERROR_DIRECTORY for a file, E_ACCESSDENIED.
    """
    try:
        names = os.path.realpath(path, strict=True).split("/")
        here = os.open("/", _PLACE)
        try:
            for name in filter(None, names):
                above, here = here, os.open(name, _PLACE | os.O_NOFOLLOW, dir_fd=here)
                os.close(above)
            os.close(os.open(f"/proc/self/fd/{here}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except BaseException:
            os.close(here)
            raise
    except FileNotFoundError:
        raise HostError(operation, HResult.ERROR_PATH_NOT_FOUND, f"there is no directory {path}") from None
    except NotADirectoryError:
        raise HostError(operation, HResult.ERROR_DIRECTORY, f"{path} is a file") from None
    except (OSError, ValueError) as error:
        raise HostError(
            operation, hresult_of(error), f"{path}: {getattr(error, 'strerror', error)}"
        ) from error
    return here


@contextmanager
def _linked(link: str, fd: int) -> Iterator[None]:
    """Have a path lead to what a descriptor of the process that opens it is open on."""
    with suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink(f"/proc/self/fd/{fd}", link)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(link)
