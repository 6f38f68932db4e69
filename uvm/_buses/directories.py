"""Directories and files of the host, shown in the guest at a path of choice; for both kinds of guest."""

from __future__ import annotations

import posixpath

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm._buses.plan9 import Plan9Bus
from uvm._buses.vsmb import VSMBBus
from uvm._checks import checked, flag
from uvm._names import HostPath, guest_path_key
from uvm._names import guest_path as clean_guest_path
from uvm._repr import Value
from uvm.devices.directories import Directories, ShownShare
from uvm.devices.plan9 import SharedDirectory
from uvm.errors import NotAttachedError, UVMError


@define(eq=False, repr=False)
class SharedLease(Lease):
    """A directory or file of the host in the guest.

    :ivar host_path: its path on the host, links resolved.
    :ivar guest_path: its path in the guest. A Linux guest has a single file in a directory, which is mounted
        at the path that was asked for.
    """

    host_path: str
    guest_path: str


@frozen(repr=False)
class SharedPath(Value):
    """A directory or file of the host, shown at a path of choice in the guest.

    :ivar references: how many leases it has.
    :ivar orphaned: it is an orphan.
    """

    host_path: str
    guest_path: str
    read_only: bool
    references: int
    orphaned: bool = False


class DirectoryBus(Bus):
    """Directories shown at paths of choice: over Plan9 in a Linux guest, over VSMB in a Windows guest."""

    _ledgers = ("directories",)

    def __init__(self, context: Context, plan9: Plan9Bus, vsmb: VSMBBus) -> None:
        super().__init__(context)
        self._plan9 = plan9
        self._vsmb = vsmb
        self._directories = self._drive(Directories(), claims=lambda t: [context.in_guest(t.entry.slot)])

    @property
    def shared(self) -> tuple[SharedPath, ...]:
        """What is shown at paths of choice; in a Linux guest, every Plan9 share."""
        join = self._context.host.path.join
        shown = [
            SharedPath(
                join(s.host_path, name) if name else s.host_path,
                posixpath.join(s.guest_path, name) if name else s.guest_path,
                s.read_only,
                s.references,
                s.orphaned,
            )
            for s in self._plan9.shares
            for name in s.allowed_names or ("",)
        ]
        shown += [
            SharedPath(
                share.host_path,
                entry.slot,
                share.read_only,
                *self._directories.standing(entry),
            )
            for entry, share in self._directories.attached()
        ]
        return tuple(shown)

    @opens
    async def share(self, path: HostPath, guest_path: HostPath, *, read_only: bool = False) -> SharedLease:
        """Show a directory, or a single file, of the host in the guest. Await it, or enter it.

        In a Linux guest a single file is in a directory at `guest_path`; see :attr:`SharedLease.guest_path`.

        :raises HostPathError: nothing is at that path of the host.
        :raises AccessDeniedError: it is writable, and the VM denies writable shares.
        :raises OptionsError: the guest path is empty, or another share is shown there in a Windows guest.
        :raises GuestError: a Linux guest has something mounted there.
        :raises OrphanError: an orphan occupies either path, and cannot be removed.
        """
        self._context.link.check_running()
        make = self._over_plan9 if self._context.plan.os == "linux" else self._over_vsmb
        return await make(path, guest_path, checked(read_only, flag, "read_only"))

    async def _over_plan9(self, path: HostPath, guest_path: HostPath, read_only: bool) -> SharedLease:
        named = await self._context.named(path)
        share = SharedDirectory(named.path, guest_path, read_only)
        if not await self._context.is_directory(named.path):
            directory, name = self._context.split(named.path)
            # hcsshim keeps the separator, and the recorded requests have it.
            directory = self._context.host.path.join(directory, "")
            share = SharedDirectory(directory, guest_path, read_only, restrict=True, allowed_files=(name,))
        lease = await self._plan9._share(share)
        return SharedLease(lease._hold, named.path, *(lease.files or (lease.guest_path,)))

    async def _over_vsmb(self, path: HostPath, guest_path: HostPath, read_only: bool) -> SharedLease:
        shown_at = clean_guest_path(guest_path, "windows", f"{path} was not shared: guest path")
        await self._directories.clear(self._key(shown_at), self._context.in_guest(shown_at))
        await self._check_free(path, shown_at, read_only)
        lease = await self._vsmb.add(path, read_only=read_only)
        shown = ShownShare(lease.guest_path, read_only, lease.host_path, shown_at)
        try:
            self._check_same(shown)
            hold = self._directories.acquire(self._key(shown_at), shown, parent=lease._hold)
        except UVMError as error:
            await lease._hold.undo(error)
            raise
        await hold
        return SharedLease(hold, lease.host_path, hold.slot)

    async def _check_free(self, path: HostPath, guest_path: str, read_only: bool) -> None:
        """Refuse, before anything is sent, a path in the guest at which another share is shown."""
        if self._directories.ledger.get(self._key(guest_path)) is None:
            return
        named = await self._context.named(path)
        try:
            share_path = await self._vsmb.guest_path(named.path, read_only=read_only)
        except NotAttachedError:
            share_path = ""
        self._check_same(ShownShare(share_path, read_only, named.path, guest_path))

    def _check_same(self, shown: ShownShare) -> None:
        taken = f"nothing was shared at {shown.guest_path}: another share is shown there"
        Directories.check_same(self._directories.ledger.get(self._key(shown.guest_path)), shown, taken)

    @staticmethod
    def _key(guest_path: str) -> str:
        return guest_path_key(guest_path, "windows")
