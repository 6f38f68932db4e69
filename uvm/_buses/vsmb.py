"""VSMB: directories and files of the host, shared with a Windows guest."""

from __future__ import annotations

from attrs import define, evolve, frozen

from uvm._async import Opening
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm.devices.vsmb import (
    ShareKey,
    ShareMember,
    Shares,
    clean,
    default_options,
    direct_map_needs_file_ids,
    directory_of,
    file_options,
    guest_path,
)
from uvm.errors import NotAttachedError
from uvm.schema.devices import VirtualSmbShareOptions


@define(eq=False)
class VSMBLease(Lease):
    """A shared directory or file.

    :ivar host_path: the directory or file on the host; :ivar guest_path: its path in the guest.
    :ivar name: the share's name.
    """

    host_path: str
    name: str
    guest_path: str

    @property
    def share_path(self) -> str:
        """The share's own path in the guest; of a directory, the same as ``guest_path``."""
        return guest_path(self.name)


@frozen
class VSMBShare:
    """A directory of the host that a Windows guest sees.

    :ivar files: host paths of the files that the guest sees; empty for all of the directory.
    :ivar references: how many leases and shown directories it has; 0 if it is only kept because the guest may
        have its files mapped.
    """

    host_path: str
    guest_path: str
    name: str
    read_only: bool
    files: tuple[str, ...]
    references: int


class VSMBBus(Bus):
    """The VSMB shares of a VM.

    Read-only and writable shares of a directory are kept apart, and so are shares of a directory and
    shares of single files of it.
    """

    ledgers = ("shares",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._shares = self._drive(
            Shares(revoke_released_files=context.options.revoke_released_files), "vsmb"
        )

    @property
    def shares(self) -> tuple[VSMBShare, ...]:
        """The directories that are shared, wholly or certain files of them."""
        return tuple(
            VSMBShare(
                entry.key.directory,
                guest_path(entry.slot),
                entry.slot,
                entry.key.read_only,
                entry.applied.files if entry.applied else (),
                len(entry.holders),
            )
            for entry in self._shares.attached()
        )

    def default_options(self, read_only: bool) -> VirtualSmbShareOptions:
        """Give the options that :meth:`add` uses where it is given none."""
        options = self._context.options
        no_direct_map = options.fully_physically_backed or getattr(options, "no_direct_map", False)
        return default_options(read_only, no_direct_map)

    def add(
        self, path: str, *, read_only: bool = False, options: VirtualSmbShareOptions | None = None
    ) -> Opening[VSMBLease]:
        """Share a directory, or a single file of one. Await it, or enter it.

        A direct-mapped share, which is the default, stays on the host when its last lease goes, because
        the guest may have its files mapped; the same directory again then gets the same share.

        :param options: the share's options in place of :meth:`default_options`; ``read_only`` is theirs.
        :raises AccessDeniedError: it is writable, and the VM denies writable shares.
        :raises HostPathError: nothing is at that path.
        :raises NotSupportedError: the guest is Linux.
        """
        return Opening(self._add(path, evolve(options) if options else self.default_options(read_only)))

    async def _add(self, path: str, options: VirtualSmbShareOptions) -> VSMBLease:
        context = self._context
        context.need_guest("VSMB", "windows")
        context.check_writable_share(path, options.read_only)
        context.link.check_running()
        key, file = await self._key(path, options.read_only)
        if direct_map_needs_file_ids(context.host.build) and not await context.backend.files.has_file_ids(
            key.directory
        ):
            options = evolve(options, no_directmap=True)
        if file is not None:
            options = file_options(options)
        hold = await self._shares.acquire(key, ShareMember(file, options))
        return VSMBLease(hold, path, hold.slot, guest_path(hold.slot, self._base_name(file)))

    async def _key(self, path: str, read_only: bool) -> tuple[ShareKey, str | None]:
        if await self._context.is_directory(path):
            return ShareKey(clean(path), read_only, True), None
        return ShareKey(clean(directory_of(path)), read_only, False), path

    def _base_name(self, file: str | None) -> str:
        return "" if file is None else self._context.host.path.basename(file)

    async def remove(self, path: str, *, read_only: bool) -> None:
        """Give up the oldest reference to a shared directory or file, by its path on the host.

        :raises NotAttachedError: it is not shared in that way.
        """
        key, file = await self._key(path, read_only)
        if not await self._shares.release_one(key, lambda member: member.file == file):
            raise self._not_shared(path)

    def _not_shared(self, path: str) -> NotAttachedError:
        return NotAttachedError(f"{path} is not shared with {self._context.vm_id} over VSMB")

    async def guest_path(self, path: str, *, read_only: bool) -> str:
        """Give the guest's path of a shared directory or file, by its path on the host.

        :raises NotAttachedError: it is not shared in that way.
        """
        key, file = await self._key(path, read_only)
        entry = self._shares.ledger.get(key)
        if entry is None or entry.applied is None or file not in (None, *entry.applied.files):
            raise self._not_shared(path)
        return guest_path(entry.slot, self._base_name(file))
