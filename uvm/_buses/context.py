"""What every bus of one VM needs, and what buses have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field

from uvm._buses.access import Access, HostName
from uvm._buses.driver import Driver, Lane
from uvm._buses.holds import Hold, HoldState
from uvm._buses.link import Link
from uvm._document.plan import CreationPlan
from uvm._home import Bound
from uvm._names import GuestOS, HostPath, guest_path_key, host_path, host_path_key
from uvm._repr import counted
from uvm.backend import Backend, Concurrency, HostInfo
from uvm.devices.base import Device, K, M, S, Ticket, W
from uvm.devices.ledger import Ledger
from uvm.errors import AccessDeniedError, HostPathError, NotAttachedError, NotSupportedError, UVMError

if TYPE_CHECKING:
    from uvm.options import LCOWOptions, WCOWOptions


@define(eq=False, repr=False)
class Context:
    """One VM, as its buses see it."""

    backend: Backend
    host: HostInfo
    options: LCOWOptions | WCOWOptions
    plan: CreationPlan
    concurrency: Concurrency
    link: Link
    access: Access
    _lanes: dict[str, Lane] = field(factory=dict, init=False)

    @property
    def vm_id(self) -> str:
        """The id of the VM."""
        return self.plan.id

    def lane(self, kind: str) -> Lane:
        """Return the lane of one device kind, a field of :class:`~uvm.backend.Concurrency`."""
        if kind not in self._lanes:
            self._lanes[kind] = Lane(getattr(self.concurrency, kind))
        return self._lanes[kind]

    def need_guest(self, what: str, os: GuestOS) -> None:
        """Refuse a device that this VM's kind of guest does not have.

        :raises NotSupportedError: the guest is of the other kind.
        """
        if self.plan.os != os:
            kinds = {"linux": "a Linux guest (LCOW)", "windows": "a Windows guest (WCOW)"}
            raise NotSupportedError(f"{what}: needs {kinds[os]}; {self.vm_id} has {kinds[self.plan.os]}")

    def check_writable_share(self, path: HostPath, read_only: bool) -> None:
        """Refuse a writable share if the VM's options deny those.

        :raises AccessDeniedError: they do.
        """
        if not read_only and self.options.no_writable_file_shares:
            raise AccessDeniedError(
                f"sharing {path} writable: {self.vm_id} was created with no_writable_file_shares; "
                "share it with read_only=True"
            )

    def key(self, path: HostPath) -> str:
        """Return the key of a host path as it is spelled, without looking at the host.

        :raises OptionsError: it is no absolute path.
        """
        return host_path_key(path, self.host.paths)

    async def named(self, path: HostPath) -> HostName:
        """Return a host path with its links resolved.

        :raises OptionsError: it is no absolute path.
        """
        given = host_path(path, self.host.paths)
        sent = host_path(await self.backend.files.resolve(given), self.host.paths)
        names = (self.key(given), self.key(sent))
        return HostName(sent, names if names[0] != names[1] else names[1:])

    def in_guest(self, path: str) -> Hashable:
        """Return the claim of a device on a path in the guest."""
        return "guest", guest_path_key(path, self.plan.os)

    def split(self, path: str) -> tuple[str, str]:
        """Return the directory of a file of the host and its name; `path` is one that is sent."""
        directory, separator, name = path.rpartition(self.host.path.sep)
        return host_path(directory + separator, self.host.paths), name

    async def file_size(self, path: HostPath) -> int:
        """Return the size of a file of the host.

        :raises OptionsError: it is no absolute path.
        :raises HostPathError: it is not there, or is a directory.
        """
        path = host_path(path, self.host.paths)
        info = await self.backend.files.stat(path)
        if info is None:
            raise HostPathError(path, "no such file on the host")
        if info.is_dir:
            raise HostPathError(path, "is a directory; a disk image file is needed")
        return info.size

    async def is_directory(self, path: HostPath) -> bool:
        """Return whether a path of the host is a directory, rather than a file.

        :raises OptionsError: it is no absolute path.
        :raises HostPathError: nothing is there.
        """
        path = host_path(path, self.host.paths)
        info = await self.backend.files.stat(path)
        if info is None:
            raise HostPathError(path, "no such file or directory on the host")
        return info.is_dir


def on_host(key: str) -> Hashable:
    """Return the claim of a device on a path of the host, by the key of the path."""
    return "host", key


class Bus(Bound):
    """The devices of one kind of a VM.

    :cvar _ledgers: the names of its ledgers, those that live on others first;
        the driver of ``x`` is the attribute ``_x``.
    """

    _ledgers: ClassVar[tuple[str, ...]]

    def __init__(self, context: Context) -> None:
        self._context = context

    def __repr__(self) -> str:
        counts = [counted(len(driver.attached()), name) for name, driver in reversed([*self._drivers()])]
        return f"<{type(self).__name__} of {self._context.vm_id}: {', '.join(counts)}>"

    def _drive(
        self,
        device: Device[K, M, S, W],
        lane: str = "",
        claims: Callable[[Ticket[K, M, S, W]], Iterable[Hashable]] = lambda _: (),
        uses: Callable[[Ticket[K, M, S, W]], Iterable[str]] = lambda _: (),
        *,
        part_of_parent: bool = True,
    ) -> Driver[K, M, S, W]:
        """Return the driver of a new ledger.

        :param lane: a field of :class:`~uvm.backend.Concurrency`.
        :param claims: see :class:`~uvm._buses.driver.Driver`, as well as `uses` and `part_of_parent`.
        """
        context = self._context
        lanes = context.lane(lane) if lane else Lane()
        return Driver(context.link, Ledger(device), lanes, claims, uses, part_of_parent)

    def _drivers(self) -> Iterator[tuple[str, Driver[Any, Any, Any, Any]]]:
        """Yield the names of its ledgers with their drivers."""
        for name in self._ledgers:
            yield name, getattr(self, f"_{name}")

    async def _release_oldest(self, holds: Iterable[Hold[object]], missing: str) -> None:
        """Release the oldest of some holds; do nothing if the VM has exited.

        If all of them are being released already, wait for that.

        :raises NotAttachedError: there is none; `missing` is the message.
        """
        oldest = min(holds, key=lambda hold: (hold.state is HoldState.RELEASING, hold.number), default=None)
        if oldest is not None:
            await oldest.release()
        elif not self._context.link.exited.is_set():
            raise NotAttachedError(missing)

    def _missing(self, message: str) -> UVMError:
        """Return the error that nothing is attached, or that the VM has exited."""
        link = self._context.link
        return link.exit_error() if link.exited.is_set() else NotAttachedError(message)
