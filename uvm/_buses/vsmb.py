"""VSMB: directories and files of the host, shared with a Windows guest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.access import HostName
from uvm._buses.context import Bus, Context, on_host
from uvm._buses.holds import Hold, HoldState
from uvm._buses.lease import Lease
from uvm._checks import checked, flag
from uvm._names import HostPath
from uvm._repr import Value
from uvm.devices.base import Entry
from uvm.devices.vsmb import (
    Share,
    SharedFile,
    ShareKey,
    ShareMember,
    Shares,
    default_options,
    direct_map_needs_file_ids,
    file_options,
    guest_path,
)
from uvm.errors import OptionsError
from uvm.options import LCOWOptions
from uvm.schema.devices import VirtualSmbShare, VirtualSmbShareOptions, saveable_options


@define(eq=False, repr=False)
class VSMBLease(Lease):
    """A shared directory or file.

    :ivar host_path: the directory or file on the host, links resolved.
    :ivar guest_path: its path in the guest.
    :ivar name: the share's name.
    """

    host_path: str
    name: str
    guest_path: str

    @property
    def share_path(self) -> str:
        """The share's own path in the guest; of a directory, the same as ``guest_path``."""
        return guest_path(self.name)


@frozen(repr=False)
class VSMBShare(Value):
    """A directory of the host that a Windows guest sees.

    :ivar files: host paths of the files that the guest sees; empty for all of the directory.
    :ivar references: how many leases and shown directories it has; 0 if it is only kept because the guest may
        have its files mapped.
    :ivar orphaned: it, or a file of it, is an orphan.
    """

    host_path: str
    guest_path: str
    name: str
    read_only: bool
    files: tuple[str, ...]
    references: int
    orphaned: bool = False


class VSMBBus(Bus):
    """The VSMB shares of a VM.

    Read-only and writable shares of a directory are kept apart, and so are shares of a directory and
    shares of single files of it.
    """

    _ledgers = ("shares",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._shares = self._drive(
            Shares(revoke_released_files=context.options.revoke_released_files),
            "vsmb",
            lambda t: [
                on_host(t.key.directory if t.member.file is None else t.member.file.key),
                context.in_guest(guest_path(t.entry.slot)),
            ],
        )

    @property
    def shares(self) -> tuple[VSMBShare, ...]:
        """The directories that are shared, wholly or certain files of them."""
        return tuple(
            VSMBShare(
                share.directory,
                guest_path(entry.slot),
                entry.slot,
                entry.key.read_only,
                tuple(file.path for file in share.files),
                *self._shares.standing(entry),
            )
            for entry, share in self._shares.attached()
        )

    def default_options(self, read_only: bool) -> VirtualSmbShareOptions:
        """Return the options that :meth:`add` uses by default."""
        checked(read_only, flag, "read_only")
        options = self._context.options
        no_direct_map = options.fully_physically_backed or (
            not isinstance(options, LCOWOptions) and options.no_direct_map
        )
        defaults = default_options(read_only, no_direct_map)
        return saveable_options(defaults) if options.template else defaults

    @opens
    async def add(
        self, path: HostPath, *, read_only: bool = False, options: VirtualSmbShareOptions | None = None
    ) -> VSMBLease:
        """Share a directory, or a single file of one. Await it, or enter it.

        The same again, however its path is spelled and by links as well, is the same share, with one more
        reference. A direct-mapped share, which is the default, stays on the host after its last lease,
        because the guest may have its files mapped; the same directory again then gets the same share.

        :param options: the share's options in place of :meth:`default_options`; ``read_only`` is theirs. In a
            VM that is to be a template, those win with which a share can be saved.
        :raises OptionsError: the path is no absolute one, or `read_only` is asked for beside other options.
        :raises AccessDeniedError: it is writable, and the VM denies writable shares.
        :raises HostPathError: nothing is at that path.
        :raises NotSupportedError: the guest is Linux.
        :raises OrphanError: an orphan occupies that path, and cannot be removed.
        """
        context = self._context
        if options is None:
            options = self.default_options(checked(read_only, flag, "read_only"))
        elif not isinstance(options, VirtualSmbShareOptions):
            raise OptionsError(f"{path} was not shared: options are VirtualSmbShareOptions, not {options!r}")
        elif read_only and not options.read_only:
            raise OptionsError(f"{path} was not shared: read_only=True, but options.read_only is False")
        elif context.options.template:
            options = saveable_options(options)
        context.need_guest("VSMB", "windows")
        context.check_writable_share(path, options.read_only)
        context.link.check_running()
        named = await context.named(path)
        member = await self._member(named, options)
        key = ShareKey(context.key(member.directory), bool(options.read_only), member.file is None)
        await self._shares.clear(key, on_host(named.key))
        hold = await self._shares.acquire(key, member, names=named.names)
        entry, file = self._shares.ledger.get(key), member.file
        if file is not None and entry is not None and entry.applied is not None:
            # One file has one path in the guest, in the spelling that was sent.
            file = entry.applied.file(file.key) or file
        return VSMBLease(hold, named.path, hold.slot, self._guest_path(hold.slot, file))

    def _adopt(self, shares: Iterable[VirtualSmbShare], named: int) -> None:
        """Enter the shares of a clone, as its template had them, each file with one reference.

        :param named: how many names have been used.
        """
        context, ledger = self._context, self._shares.ledger
        for share in shares:
            options = share.options or VirtualSmbShareOptions()
            directory = context.key(share.path)
            files = [SharedFile(context.key(path), path) for path in share.allowed_files]
            applied = Share(share.path, options, tuple(files))
            key = ShareKey(directory, options.read_only, not files)
            members = [ShareMember(share.path, file, options) for file in files]
            first, *others = members or [ShareMember(share.path, None, options)]
            name = directory if first.file is None else first.file.key
            self._shares.adopt(key, first, applied, names=(name,), slot=share.name)
            for file, member in zip(files[1:], others, strict=True):
                self._shares.acquire(key, member, names=(file.key,)).settle(HoldState.HELD)
        ledger.device.load(named)

    def _saved(self) -> tuple[list[VirtualSmbShare], int]:
        """Return the shares as they are sent, for clones, and how many names have been used."""
        shares = [share.settings(entry.slot) for entry, share in self._shares.attached()]
        return shares, self._shares.ledger.device.dump()

    async def _member(self, named: HostName, options: VirtualSmbShareOptions) -> ShareMember:
        """Look at a directory or file of the host, and return what is wanted of its share."""
        context, directory, file = self._context, named.path, None
        if not await context.is_directory(named.path):
            directory, file = context.split(named.path)[0], SharedFile(named.key, named.path)
            options = file_options(options)
        needs_file_ids = direct_map_needs_file_ids(context.host.build)
        if needs_file_ids and not await context.backend.files.has_file_ids(directory):
            options = options.replaced(no_directmap=True)
        return ShareMember(directory, file, options)

    def _guest_path(self, name: str, file: SharedFile | None) -> str:
        return guest_path(name, "" if file is None else self._context.split(file.path)[1])

    def _find(
        self, path: HostPath, read_only: bool
    ) -> list[tuple[Entry[ShareKey, ShareMember, str, Share], SharedFile | None]]:
        """Return the shares of what a path was taken for, each with its file if it is one of files."""
        found, wanted = (
            self._shares.ledger.named(self._context.key(path)),
            checked(read_only, flag, "read_only"),
        )
        return [
            (entry, entry.applied.file(str(own)))
            for entry, own in found
            if entry.key.read_only is wanted and entry.applied is not None
        ]

    async def remove(self, path: HostPath, *, read_only: bool) -> None:
        """Release the oldest lease of a directory or file, by any path that :meth:`add` took for it.

        :raises OptionsError: the path is no absolute one.
        :raises NotAttachedError: it is not shared, or not with that `read_only`.
        """
        holds: list[Hold[object]] = []
        for entry, file in self._find(path, read_only):
            holds += self._shares.oldest_on(entry.key, partial(_is_for, file))
        await self._release_oldest(holds, self._not_shared(path))

    def _not_shared(self, path: HostPath) -> str:
        return f"{path} is not shared with {self._context.vm_id} over VSMB"

    async def guest_path(self, path: HostPath, *, read_only: bool) -> str:
        """Return the guest's path of a directory or file, by any path that :meth:`add` took for it.

        The host is not asked: a link that has another target now is still what it was added for; if it was
        for several that are shared, the newest.

        :raises OptionsError: the path is no absolute one.
        :raises NotAttachedError: it is not shared, or not with that `read_only`.
        """
        for entry, file in self._find(path, read_only):
            return self._guest_path(entry.slot, file)
        raise self._missing(self._not_shared(path))


def _is_for(file: SharedFile | None, member: ShareMember) -> bool:
    return member.file == file
