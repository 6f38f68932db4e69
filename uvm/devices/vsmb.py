r"""VSMB shares: directories, and single files, of the host that a Windows guest sees over SMB.

The key is the cleaned directory, whether it is read-only, and whether all of it is shared or only certain
files (:class:`ShareKey`); a member says which file (:class:`ShareMember`); the slot is the share's name,
``s`` and a number in hexadecimal, never used twice. What is applied is a :class:`Share`: the options and
the ``AllowedFiles``.

ADD: host Add. UPDATE (only of shares of files): host Update with the whole list of files; those that ask
while one is under way go together into the next. REMOVE: host Remove, with nothing but the name.

- A released file stays in the list, as in hcsshim, unless ``revoke_released_files`` takes it out. The list
  is never sent empty: the last file goes with its share.
- A direct-mapped share stays on the host when nobody wants it any more, with all of its files: the guest
  may have it mapped, and taking it away would take memory from under the guest.

Source: hcsshim ``internal/uvm/vsmb.go``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from attrs import evolve, frozen

from uvm.devices.base import REMOVE, UPDATE, Device, Entry, Operation, Step
from uvm.schema import requests
from uvm.schema.common import V19H1, V20H2
from uvm.schema.devices import VirtualSmbShare, VirtualSmbShareOptions
from uvm.schema.requests import VSMB_SHARES_PATH, ModifySettingRequest

#: Where a Windows guest sees shares; a name follows.
GUEST_PREFIX = "\\\\?\\VMSMB\\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\\"


class ShareKey(NamedTuple):
    """What makes two requests one share.

    :ivar directory: as :func:`clean` gives it.
    :ivar is_directory: all of the directory, rather than certain files of it.
    """

    directory: str
    read_only: bool
    is_directory: bool


@frozen
class ShareMember:
    """What one party wants of a share.

    :ivar file: the host path of a file, as it was given; None for the directory.
    :ivar options: not to be changed any more.
    """

    file: str | None
    options: VirtualSmbShareOptions


@frozen
class Share:
    """What the host is told of a share.

    :ivar files: host paths of the allowed files, in the order in which they were asked for.
    """

    options: VirtualSmbShareOptions
    files: tuple[str, ...] = ()


def default_options(read_only: bool, no_direct_map: bool) -> VirtualSmbShareOptions:
    """Give the options of a share (hcsshim's ``DefaultVSMBOptions``)."""
    return VirtualSmbShareOptions(
        no_directmap=no_direct_map,
        read_only=read_only,
        share_read=read_only,
        cache_io=read_only,
        pseudo_oplocks=read_only,
    )


def file_options(options: VirtualSmbShareOptions) -> VirtualSmbShareOptions:
    """Give the options of a directory of which only certain files are shared."""
    return evolve(options, restrict_file_access=True, single_file_mapping=True)


def direct_map_needs_file_ids(build: int) -> bool:
    """Tell whether a host of that build can direct-map only where the file system has file ids.

    Those from 19H1 to 20H2 ask for them, and some file systems (Azure Files) have none: a share of such a
    one must have ``no_directmap``.
    """
    return V19H1 <= build <= V20H2


def guest_path(name: str, file: str = "") -> str:
    """Give the guest path of a share, or of a file (its name) in it."""
    return GUEST_PREFIX + name + ("\\" + file if file else "")


class Shares(Device[ShareKey, ShareMember, str, Share]):
    """The VSMB shares of a VM.

    :param revoke_released_files: take a file out of its share's list as soon as nobody wants it; not for
        direct-mapped shares.
    """

    def __init__(self, revoke_released_files: bool = False) -> None:
        self.narrows = revoke_released_files
        self._names = 0

    def place(self, key: ShareKey, member: ShareMember) -> str:
        """Give a name that was never given before; the first is ``s1``."""
        self._names += 1
        return f"s{self._names:x}"

    def vacate(self, key: ShareKey, slot: str) -> None:
        """Free nothing: names are not used again."""

    def wanted(self, entry: Entry[ShareKey, ShareMember, str, Share]) -> Share | None:
        """Give the share with the files that are asked for and those that stay."""
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
        """Tell whether a member's file is in the list."""
        return member.file is None or member.file in applied.files

    def steps(self, operation: Operation[ShareKey, ShareMember, str, Share]) -> tuple[Step, ...]:
        """Add the share, state the whole of it anew, or remove it, on the host."""
        if operation.kind is REMOVE:
            return (_change(requests.REMOVE, VirtualSmbShare(name=operation.slot)),)
        share = operation.target
        assert share is not None
        settings = VirtualSmbShare(
            name=operation.slot,
            path=operation.key.directory,
            allowed_files=list(share.files),
            options=share.options,
        )
        return (_change(requests.UPDATE if operation.kind is UPDATE else requests.ADD, settings),)

    def dump(self) -> int:
        """Give how many names were given."""
        return self._names

    def load(self, state: int) -> None:
        """Take back what :meth:`dump` gave."""
        self._names = state


def _extended(share: Share | None, members: Iterable[ShareMember]) -> Share | None:
    """Add the files that a share lacks; its options become those of the last who brought one."""
    added: dict[str, VirtualSmbShareOptions] = {}
    for member in members:
        if share is None:
            share = Share(member.options)
        if member.file is not None and member.file not in share.files:
            added.setdefault(member.file, member.options)
    if share is None or not added:
        return share
    return Share(tuple(added.values())[-1], (*share.files, *added))


def _narrowed(share: Share, members: Iterable[ShareMember]) -> Share:
    """Take out the files that nobody wants."""
    kept = {member.file for member in members}
    files = tuple(file for file in share.files if file in kept)
    return share if files == share.files else evolve(share, files=files)


def _change(request_type: str, settings: VirtualSmbShare) -> Step:
    return Step(
        ModifySettingRequest(resource_path=VSMB_SHARES_PATH, request_type=request_type, settings=settings),
    )


# Paths, as Go's path/filepath treats them on Windows: the keys, and what HCS is sent, are made with it.


def clean(path: str) -> str:
    r"""Give the shortest path that means the same, with backslashes (Go's ``filepath.Clean`` on Windows).

    Unlike :func:`ntpath.normpath` it also tidies what follows ``\\?\`` and ``\\.\``, and knows ``C:`` for
    ``C:.``.
    """
    path = path.replace("/", "\\")
    length = _volume_length(path)
    volume, rest = path[:length], path[length:]
    if not rest:
        return volume if volume.startswith("\\\\") else volume + "."
    rooted = rest[0] == "\\"
    parts: list[str] = []
    for part in rest.split("\\"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", ".", "..") or (part == ".." and not rooted):
            parts.append(part)
    cleaned = "\\".join(parts)
    if rooted:
        return f"{volume}\\{cleaned}"
    return volume + (cleaned or ".")


def directory_of(path: str) -> str:
    """Give the cleaned directory that a file is in."""
    path = path.replace("/", "\\")
    end = max(path.rfind("\\") + 1, _volume_length(path))
    return clean(path[:end])


def _volume_length(path: str) -> int:
    r"""Tell how long the volume name is: ``C:``, ``\\server\share``, ``\\?\C:``, ``\\.\UNC\server\share``."""
    if path[1:2] == ":":
        return 2
    upper = path[:8].upper()
    if upper.startswith("\\\\.\\UNC") and upper[7:8] in ("", "\\"):
        return _nth_separator(path, 8, 2)
    if upper.startswith(("\\\\.", "\\\\?", "\\??")) and upper[3:4] in ("", "\\"):
        return _nth_separator(path, 4, 1)
    if path.startswith("\\\\"):
        return _nth_separator(path, 2, 2)
    return 0


def _nth_separator(path: str, start: int, count: int) -> int:
    """Find where the count-th separator from a position on is, or the end."""
    for _ in range(count):
        position = path.find("\\", start)
        if position < 0:
            return len(path)
        start = position + 1
    return start - 1
