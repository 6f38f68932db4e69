"""Plan9: directories and files of the host, shared with a Linux guest."""

from __future__ import annotations

import posixpath
from collections.abc import Hashable, Iterator, Sequence

from attrs import define, frozen

from uvm._arguments import items_of
from uvm._async import opens
from uvm._buses.context import Bus, Context, on_host
from uvm._buses.lease import Lease
from uvm._checks import checked, flag
from uvm._names import HostPath, text_of
from uvm._repr import Value
from uvm.devices.plan9 import Plan9Shares, SharedDirectory, check_share


@define(eq=False, repr=False)
class Plan9Lease(Lease):
    """A shared directory.

    :ivar host_path: the directory on the host, links resolved.
    :ivar guest_path: its mount in the guest.
    :ivar name: the share's name.
    :ivar files: if only certain files of it are shared, their paths in the guest.
    """

    host_path: str
    guest_path: str
    name: str
    files: tuple[str, ...] = ()


@frozen(repr=False)
class Plan9Share(Value):
    """A directory of the host that a Linux guest has mounted.

    :ivar allowed_names: the files that the guest sees; empty for all.
    :ivar references: how many leases it has: 1, or 0 while it is removed.
    :ivar orphaned: it is an orphan.
    """

    host_path: str
    guest_path: str
    name: str
    read_only: bool
    allowed_names: tuple[str, ...]
    references: int
    orphaned: bool = False


class Plan9Bus(Bus):
    """The Plan9 shares of a VM. Every add is a share of its own."""

    _ledgers = ("shares",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._device = Plan9Shares()
        self._shares = self._drive(self._device, "plan9", lambda t: self._claims(t.member))

    @property
    def shares(self) -> tuple[Plan9Share, ...]:
        """The directories that are shared."""
        return tuple(
            Plan9Share(
                share.path,
                share.guest_path,
                entry.slot,
                share.read_only,
                share.allowed_files,
                *self._shares.standing(entry),
            )
            for entry, share in self._shares.attached()
        )

    @opens
    async def add(
        self,
        path: HostPath,
        guest_path: HostPath,
        *,
        read_only: bool = False,
        restrict: bool = False,
        allowed_names: Sequence[str] = (),
    ) -> Plan9Lease:
        """Share a directory and mount it in the guest. Await it, or enter it.

        :param restrict: share only the files of ``allowed_names``, which are names in that directory; the
            guest sees them in a directory at ``guest_path``.
        :raises OptionsError: the path is no absolute one, there is no guest path, or ``allowed_names`` are
            not names, or have no effect without ``restrict``.
        :raises AccessDeniedError: it is writable, and the VM denies writable shares.
        :raises NotSupportedError: the guest is Windows, or the host is too old to restrict a share.
        :raises OrphanError: an orphan occupies either path, and cannot be removed.
        """
        names = tuple(text_of(each, "allowed_names") for each in items_of(allowed_names, "allowed_names"))
        named = await self._context.named(path)
        read_only, restrict = checked(read_only, flag, "read_only"), checked(restrict, flag, "restrict")
        return await self._share(SharedDirectory(named.path, guest_path, read_only, restrict, names))

    def _claims(self, share: SharedDirectory) -> Iterator[Hashable]:
        """Yield what a share occupies on the host and in the guest."""
        context = self._context
        for name in share.allowed_files or ("",):
            yield on_host(context.key(context.host.path.join(share.path, name)))
        yield context.in_guest(share.guest_path)

    async def _share(self, share: SharedDirectory) -> Plan9Lease:
        """Share a directory, whose path is sent as it is."""
        context = self._context
        context.need_guest("Plan9", "linux")
        check_share(context.host.build, context.host.path.sep, share)
        context.check_writable_share(share.path, share.read_only)
        context.link.check_running()
        await self._shares.clear(None, *self._claims(share))
        hold = await self._shares.acquire(self._device.new_key(), share)
        files = tuple(posixpath.join(share.guest_path, name) for name in share.allowed_files)
        return Plan9Lease(hold, share.path, share.guest_path, hold.slot, files)
