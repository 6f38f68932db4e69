"""Plan9 shares: directories of the host that a Linux guest mounts over 9p.

Every add is a share of its own, so keys are numbers that :meth:`Plan9Shares.new_key` returns, each only once;
the slot is the share's name, the number in decimal. ADD: host Add, guest ``MappedDirectory`` Add.
REMOVE: guest Remove, host Remove.

Source: hcsshim ``internal/uvm/plan9.go``.
"""

from __future__ import annotations

from attrs import field, frozen

from uvm._names import HostPath, guest_path
from uvm._repr import Value
from uvm.devices.base import REMOVE, Operation, Step, in_guest, on_host
from uvm.devices.kinds import FirstComeDevice
from uvm.devices.slots import Numbers
from uvm.errors import NotSupportedError, OptionsError
from uvm.schema import guest, requests
from uvm.schema.common import V19H1
from uvm.schema.devices import (
    PLAN9_LINUX_METADATA,
    PLAN9_READ_ONLY,
    PLAN9_RESTRICT_FILE_ACCESS,
    Plan9Share,
)

#: The port of the 9p server (hcsshim ``internal/vm/vmutils``).
PLAN9_PORT = 564


def _cleaned(path: HostPath) -> str:
    return guest_path(path, "linux")


@frozen(repr=False)
class SharedDirectory(Value):
    """A directory to be shared.

    :ivar path: the host path.
    :ivar guest_path: the path at which the guest mounts it; cleaned, OptionsError for a relative one.
    :ivar restrict: only ``allowed_files``, which are names in the directory, are visible.
    """

    path: str
    guest_path: str = field(converter=_cleaned)
    read_only: bool = False
    restrict: bool = False
    allowed_files: tuple[str, ...] = ()


def check_share(build: int, separator: str, share: SharedDirectory) -> None:
    """Refuse what cannot be shared.

    :param build: the host's Windows build.
    :param separator: of its paths.
    :raises OptionsError: ``allowed_files`` are not names in the directory, or have no effect.
    :raises NotSupportedError: files of a share cannot be hidden on that build.
    """
    if share.allowed_files and not share.restrict:
        raise OptionsError(f"{share.path} was not shared: allowed_names: no effect without restrict=True")
    for name in share.allowed_files:
        if name in (".", "..") or "/" in name or separator in name:
            raise OptionsError(f"{share.path} was not shared: allowed_names: {name!r} is no name of a file")
    # Older 9p servers cannot hide files.
    if share.restrict and build < V19H1:
        raise NotSupportedError(
            f"single files of {share.path} cannot be shared: that takes Windows build {V19H1}, "
            f"and this is {build}"
        )


class Plan9Shares(FirstComeDevice[int, SharedDirectory, str]):
    """The Plan9 shares of a VM."""

    def __init__(self) -> None:
        self._slots: Numbers = Numbers()

    def new_key(self) -> int:
        """Return the key of one more share; never the same one twice, so that no name is."""
        return self._slots.take()

    def place(self, key: int, member: SharedDirectory) -> str:
        """Return the name."""
        return str(key)

    def describe(self, key: int, slot: str, value: SharedDirectory) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"directory {value.path} at {value.guest_path}", f"Plan9 share {slot}"

    def steps(self, operation: Operation[int, SharedDirectory, str, SharedDirectory]) -> tuple[Step, ...]:
        """Share on the host and mount in the guest, or the reverse."""
        share, name = operation.value, operation.slot
        removed = Plan9Share(name=name, access_name=name, port=PLAN9_PORT)
        remove = on_host(requests.REMOVE, requests.Plan9Shares.PATH, removed)
        removing = operation.kind is REMOVE
        mounted = guest.LCOWMappedDirectory(
            mount_path=share.guest_path,
            share_name=name,
            port=PLAN9_PORT,
            read_only=share.read_only and not removing,
        )
        mount = in_guest(operation.kind.value, guest.RESOURCE_MAPPED_DIRECTORY, mounted)
        if removing:
            return mount, remove
        return on_host(requests.ADD, requests.Plan9Shares.PATH, _settings(share, name), undo=remove), mount


def _settings(share: SharedDirectory, name: str) -> Plan9Share:
    flags = PLAN9_LINUX_METADATA
    if share.read_only:
        flags |= PLAN9_READ_ONLY
    if share.restrict:
        flags |= PLAN9_RESTRICT_FILE_ACCESS
    return Plan9Share(
        name=name,
        access_name=name,
        path=share.path,
        port=PLAN9_PORT,
        flags=flags,
        allowed_files=list(share.allowed_files),
    )
