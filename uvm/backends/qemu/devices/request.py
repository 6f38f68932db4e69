"""Modify requests, and what carries them out: the kinds of devices, each a table of what is attached.

How it works
------------

A request is checked in full before QEMU is asked anything, as HCS does. Each step that QEMU has taken is
undone if a later one is refused, so that a refused request has changed nothing. A caller who is cancelled
leaves an unknown outcome: the entry stays in the table as it is known to be at most, so that nothing else is
put there, and a later Remove removes what there is::

    Add:     check --> entry --> QEMU: each step, or all of them undone --> attached
    Remove:  QEMU: unplug, and what was behind it --> entry gone

One request at a time is carried out for an entry; another is refused meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

from attrs import define, field

from uvm._repr import showing
from uvm.backend import JSON, HostInfo
from uvm.backends.qemu.cgroups import Cgroup
from uvm.backends.qemu.devices.journal import Journal
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.qemu.network import QEMUNetwork
from uvm.backends.qemu.qmp import QMPError
from uvm.backends.qemu.users import Identity
from uvm.backends.requests.access import AccessTable
from uvm.backends.requests.request import Request
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.devices import Devices
from uvm.schema.json import Model, to_json
from uvm.schema.requests import Resource
from uvm.schema.system import VirtualMachine

T = TypeVar("T")
R = TypeVar("R", bound=Resource)
K = TypeVar("K")
M = TypeVar("M", bound=Model)
D = TypeVar("D", bound="Device[Any]")


@showing("directory")
@define(repr=False)
class Host:
    """What the devices of one VM have of their host.

    :ivar directory: the directory in which QEMU finds what is shared.
    :ivar user: the user that QEMU runs as; None for this process's.
    :ivar cgroup: the cgroup that QEMU is in alone; None without one.
    :ivar root_ports: how many PCI root ports there are for devices that come and go.
    :ivar share_slots: how many shares there can be at once, of each kind: writable and read-only.
    :ivar journal: what is attached, for the next process that has the VM; None if there is none.
    :ivar fixed_memory: the memory is the file of a template, and there is no balloon.
    """

    machine: Monitor
    info: HostInfo
    access: AccessTable
    endpoints: QEMUNetwork
    directory: str
    user: Identity | None = None
    cgroup: Cgroup | None = None
    root_ports: int = 8
    share_slots: int = 8
    fixed_memory: bool = False
    journal: Journal | None = None
    ports: Pool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ports = Pool(self.root_ports)


@showing("free")
class Pool:
    """Numbers from 0 on, of which the lowest free one is taken."""

    def __init__(self, count: int, first: int = 0) -> None:
        self._count, self._first = count, first
        self._taken: set[int] = set()

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return self._count

    @property
    def free(self) -> int:
        """How many of them are free."""
        return self._count - len(self._taken)

    def take(self, wanted: int | None = None) -> int | None:
        """Take the lowest free number, or the one that is wanted; None if none is."""
        numbers = range(self._first, self._first + self._count) if wanted is None else (wanted,)
        found = next((number for number in numbers if number not in self._taken), None)
        if found is not None:
            self._taken.add(found)
        return found

    def put(self, number: int) -> None:
        """Free a number."""
        self._taken.remove(number)


@showing("name")
class DeviceKind(Generic[R]):
    """One kind of device of one VM: what is attached, and the requests that change it.

    A subclass names its resources, takes from the VM's document what it is to be (:meth:`configure`) and what
    is attached (:meth:`load`), and changes nothing if it refuses a request.

    :cvar name: its name in the inventory.
    """

    resources: ClassVar[tuple[type[Resource], ...]]
    name: ClassVar[str]

    def __init__(self, host: Host) -> None:
        self.host: Host = host
        self.machine: Monitor = host.machine

    def configure(self, vm: VirtualMachine, devices: Devices) -> None:
        """Take from the VM's document what there can be of this kind."""

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach what the VM's document has of this kind."""

    def restore(self, request: Request[R], place: JSON) -> None:
        """Have a device that an earlier process has attached."""
        raise NotImplementedError

    async def modify(self, request: Request[R]) -> None:
        """Carry out a request, or raise HostError and change nothing."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what is held on the host: the VM has exited."""

    def inventory(self) -> JSON:
        """Return what is attached, as a JSON object; empty if nothing is."""
        return {}


@showing("name")
@define(eq=False, repr=False)
class Device(Generic[M]):
    """A device that is attached, or being attached or detached.

    :ivar name: its name in messages, and in the inventory unless its kind has another form.
    :ivar noted: the name of its entry in the journal; empty for none.
    """

    name: str
    settings: M
    busy: bool = field(default=False, init=False)
    noted: str = field(default="", init=False)

    @property
    def device(self) -> str:
        """The name of its device in QEMU."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


class DeviceTable(DeviceKind[R], Generic[R, K, D]):
    """Devices by key: an Add needs a free key, all else a device.

    :cvar actions: the request types that it takes.
    """

    actions: ClassVar[tuple[str, ...]] = ("Add", "Update", "Remove")

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._attached: dict[K, D] = {}

    @property
    def count(self) -> int:
        """How many devices are attached."""
        return len(self._attached)

    @property
    def devices(self) -> dict[K, D]:
        """The devices by key."""
        return dict(self._attached)

    async def modify(self, request: Request[R]) -> None:
        """Attach, update or detach a device."""
        request.allow(*self.actions)
        key = self.key(request)
        found = self._attached.get(key)
        if request.action == "Add":
            await self._add(request, key, self.make(request), found)
        elif found is None:
            raise request.missing("nothing is attached there")
        else:
            with _busy(request, found):
                if request.action == "Update":
                    self.update(request, found)
                else:
                    await self.detach(request, found)
                    del self._attached[key]
                    self._erase(found)

    async def _add(self, request: Request[R], key: K, device: D, found: D | None) -> None:
        if found is not None:
            raise request.taken(f"{found} is attached")
        self._attached[key] = device
        with _busy(request, device):
            try:
                await self.attach(request, device)
            except Exception:
                # Refused, or the VM has exited: nothing is there. After a cancellation something may be.
                del self._attached[key]
                self._erase(device)
                raise

    def note(self, request: Request[R], device: D, place: JSON) -> None:
        """Note a device that is about to be attached, and where; :meth:`put_back` gets that again."""
        if self.host.journal is not None:
            device.noted = device.device
            entry = {"Path": request.resource.path, "Settings": to_json(device.settings), "Place": place}
            self.host.journal.note(device.noted, entry)

    def _erase(self, device: D) -> None:
        if self.host.journal is not None and device.noted:
            self.host.journal.forget(device.noted)

    def restore(self, request: Request[R], place: JSON) -> None:
        """Have a device that an earlier process has attached, and noted."""
        key, device = self.key(request), self.make(request)
        self.put_back(request, device, place)
        device.noted = device.device
        self._attached[key] = device

    def key(self, request: Request[R]) -> K:
        """Return the key of the device that a request is about."""
        raise NotImplementedError

    def make(self, request: Request[R]) -> D:
        """Return the device that a request describes, checked on its own."""
        raise NotImplementedError

    async def attach(self, request: Request[R], device: D) -> None:
        """Attach a device, or raise and leave nothing of it."""
        raise NotImplementedError

    def put_back(self, request: Request[R], device: D, place: JSON) -> None:
        """Have a device where an earlier process has put it; ``FDSets`` is what QEMU holds of its files."""
        raise NotImplementedError

    def update(self, request: Request[R], device: D) -> None:
        """Change the settings of a device."""
        raise NotImplementedError

    async def detach(self, request: Request[R], device: D) -> None:
        """Detach a device; what is there no more is none."""
        raise NotImplementedError

    def inventory(self) -> JSON:
        """Return the devices in the form of the document."""
        return {device.name: to_json(device.settings) for device in self._attached.values()}


@contextmanager
def _busy(request: Request[Any], device: Device[Any]) -> Iterator[None]:
    if device.busy:
        raise request.refuse(HResult.HCS_E_OPERATION_PENDING, f"another request for {device} is carried out")
    device.busy = True
    try:
        yield
    finally:
        device.busy = False


# Steps.


async def gone(machine: Monitor, operation: str, command: str, arguments: Mapping[str, Any]) -> None:
    """Have QEMU remove something, unless it is there no more."""
    with _unless_missing():
        await machine.ask(operation, command, arguments)


async def unplugged(machine: Monitor, operation: str, device: str) -> None:
    """Have QEMU unplug a device, unless it is there no more."""
    with _unless_missing():
        await machine.unplug(operation, device)


@contextmanager
def _unless_missing() -> Iterator[None]:
    """Go on if QEMU refuses as it does not know the name it was asked of."""
    try:
        yield
    except HostError as error:
        said = error.__cause__
        if not isinstance(said, QMPError) or not _says_missing(said):
            raise


def _says_missing(said: QMPError) -> bool:
    return said.kind == "DeviceNotFound" or any(
        words in said.text for words in ("Failed to find node", "not found", "does not exist")
    )


def number_in(answer: Any, name: str, operation: str) -> int:
    """Return a number that QEMU has answered; HostError without it."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, int):
        raise HostError(operation, HResult.E_FAIL, f"QEMU answered {answer!r}")
    return found
