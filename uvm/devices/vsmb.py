r"""VSMB shares: directories, and single files, of the host that a Windows guest sees over SMB.

The key is the folded path of the directory, whether it is read-only, and whether all of it is shared or only
certain files (:class:`ShareKey`); a member says which file (:class:`ShareMember`); the slot is the share's
name, ``s`` and a number in hexadecimal, never used twice. What is applied is a :class:`Share`: the directory,
the options and the ``AllowedFiles``, each path as it was spelled first.

ADD: host Add. UPDATE (only of shares of files): host Update with the whole list of files; those that ask
while one is under way go together into the next. REMOVE: host Remove, with nothing but the name.

- A released file stays in the list, as in hcsshim, unless ``revoke_released_files`` takes it out. The list
  is never sent empty: the last file is removed with its share.
- A direct-mapped share stays on the host after its last ticket, with all of its files: the guest may have it
  mapped, and removing it would take memory from under the guest.

Source: hcsshim ``internal/uvm/vsmb.go``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from attrs import evolve, field, frozen

from uvm._repr import Value
from uvm.devices.base import REMOVE, Device, Entry, Operation, Step, on_host
from uvm.devices.slots import Numbers
from uvm.schema.common import V19H1, V20H2
from uvm.schema.devices import VirtualSmbShare, VirtualSmbShareOptions
from uvm.schema.requests import VSMBShares

#: Where a Windows guest sees shares; a name follows.
GUEST_PREFIX = "\\\\?\\VMSMB\\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\\"


class ShareKey(NamedTuple):
    """What makes two requests one share.

    :ivar directory: the key of its host path.
    :ivar is_directory: all of the directory, rather than certain files of it.
    """

    directory: str
    read_only: bool
    is_directory: bool


@frozen(repr=False)
class SharedFile(Value):
    """A file of the host by the key of its path; equal however the path is spelled.

    :ivar path: what is sent.
    """

    key: str
    path: str = field(eq=False)


@frozen(repr=False)
class ShareMember(Value):
    """What one ticket wants of a share.

    :ivar directory: its host path, as it is sent.
    :ivar file: one file of it; None for all of the directory.
    :ivar options: not to be changed any more.
    """

    directory: str
    file: SharedFile | None
    options: VirtualSmbShareOptions


@frozen(repr=False)
class Share(Value):
    """A share as the host has it.

    :ivar files: the allowed files, in the order in which they were asked for.
    """

    directory: str
    options: VirtualSmbShareOptions
    files: tuple[SharedFile, ...] = ()

    def settings(self, name: str) -> VirtualSmbShare:
        """Return it as it is sent."""
        files = [file.path for file in self.files]
        return VirtualSmbShare(name=name, path=self.directory, allowed_files=files, options=self.options)

    def file(self, key: str) -> SharedFile | None:
        """Return an allowed file, by the key of its path."""
        return next((file for file in self.files if file.key == key), None)


def default_options(read_only: bool, no_direct_map: bool) -> VirtualSmbShareOptions:
    """Return the options of a share (hcsshim's ``DefaultVSMBOptions``)."""
    return VirtualSmbShareOptions(
        no_directmap=no_direct_map,
        read_only=read_only,
        share_read=read_only,
        cache_io=read_only,
        pseudo_oplocks=read_only,
    )


def file_options(options: VirtualSmbShareOptions) -> VirtualSmbShareOptions:
    """Return the options of a directory of which only certain files are shared."""
    return options.replaced(restrict_file_access=True, single_file_mapping=True)


def direct_map_needs_file_ids(build: int) -> bool:
    """Return whether a host of that build can direct-map only if the file system has file ids.

    Those from 19H1 to 20H2 ask for them, and some file systems (Azure Files) have none: a share of such a
    one must have ``no_directmap``.
    """
    return V19H1 <= build <= V20H2


def guest_path(name: str, file: str = "") -> str:
    """Return the guest path of a share, or of a file (its name) in it."""
    return GUEST_PREFIX + name + ("\\" + file if file else "")


class Shares(Device[ShareKey, ShareMember, str, Share]):
    """The VSMB shares of a VM.

    :param revoke_released_files: take a file out of its share's list with its last ticket; not for
        direct-mapped shares.
    """

    def __init__(self, revoke_released_files: bool = False) -> None:
        self.narrows = revoke_released_files
        self._slots: Numbers = Numbers()

    def place(self, key: ShareKey, member: ShareMember) -> str:
        """Return a name that was never used before; the first is ``s1``."""
        return f"s{self._slots.take() + 1:x}"

    def occupy(self, slot: str) -> None:
        """Do nothing: what names have been used is loaded."""

    def wanted(self, entry: Entry[ShareKey, ShareMember, str, Share]) -> Share | None:
        """Return the share with the files that are asked for and those that stay."""
        applied = entry.applied
        if applied is None:
            return _extended(None, entry.members())
        if applied.options.no_directmap:
            if not entry.wanted:
                return None
            if self.narrows:
                applied = _narrowed(applied, entry.members())
        return _extended(applied, (ticket.member for ticket in entry.waiters))

    def covers(self, applied: Share, member: ShareMember) -> bool:
        """Return whether a member's file is in the list."""
        return member.file is None or member.file in applied.files

    def describe(self, key: ShareKey, slot: str, value: ShareMember | Share) -> tuple[str, str]:
        """Return what it is, and where."""
        what = "directory" if key.is_directory else "files of"
        return f"{what} {value.directory}", f"VSMB share {slot}"

    def steps(self, operation: Operation[ShareKey, ShareMember, str, Share]) -> tuple[Step, ...]:
        """Add the share, state the whole of it anew, or remove it, on the host."""
        settings = VirtualSmbShare(name=operation.slot)
        if operation.kind is not REMOVE:
            settings = operation.value.settings(operation.slot)
        return (on_host(operation.kind.value, VSMBShares.PATH, settings),)


def _extended(share: Share | None, members: Iterable[ShareMember]) -> Share | None:
    """Add the files that a share lacks; its options become those of the last member with one."""
    added: dict[SharedFile, VirtualSmbShareOptions] = {}
    for member in members:
        if share is None:
            share = Share(member.directory, member.options)
        if member.file is not None and member.file not in share.files:
            added.setdefault(member.file, member.options)
    if share is None or not added:
        return share
    return evolve(share, options=tuple(added.values())[-1], files=(*share.files, *added))


def _narrowed(share: Share, members: Iterable[ShareMember]) -> Share:
    """Take out the files that no ticket wants."""
    kept = {member.file for member in members}
    files = tuple(file for file in share.files if file in kept)
    return share if files == share.files else evolve(share, files=files)
