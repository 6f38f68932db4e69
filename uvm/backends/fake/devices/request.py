"""The kinds of devices that a modify request can be about, and the table of what is attached of each."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from attrs import define, field

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.fake.host import Host
from uvm.backends.requests.request import Request
from uvm.schema.devices import Devices
from uvm.schema.json import to_json
from uvm.schema.requests import Resource
from uvm.schema.system import VirtualMachine

T = TypeVar("T")
R = TypeVar("R", bound=Resource)
K = TypeVar("K")
M = TypeVar("M")
D = TypeVar("D", bound="Device[Any]")


@showing("vm_id", "name")
class DeviceKind(Generic[R]):
    """One kind of device of one VM: what is attached, and the requests that change it.

    A subclass names its resources, loads the VM's document in :meth:`load`, and changes nothing if it refuses
    a request. :meth:`close` releases what it holds on the host.

    :cvar name: its name in the inventory.
    """

    resources: ClassVar[tuple[type[Resource], ...]]
    name: ClassVar[str]

    def __init__(self, vm_id: str, host: Host) -> None:
        self.vm_id: str = vm_id
        self.host: Host = host

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach what the VM's document has of this kind."""

    def modify(self, request: Request[R]) -> None:
        """Carry out a request, or raise HostError and change nothing."""
        raise NotImplementedError

    def close(self) -> None:
        """Release everything: the VM has exited."""

    def inventory(self) -> JSON:
        """Return what is attached, as a JSON object; empty if nothing is."""
        raise NotImplementedError


@showing("name", "attached")
@define(eq=False, repr=False)
class Device(Generic[M]):
    """A device that the host has attached.

    :ivar name: its name in messages, and in the inventory unless its kind has another form.
    :ivar attached: False once the host has detached it.
    """

    name: str
    settings: M
    attached: bool = field(default=True, init=False)

    def __str__(self) -> str:
        return self.name


class DeviceTable(DeviceKind[R], Generic[R, K, D]):
    """Devices by key: an Add needs a free key, all else a device.

    :cvar actions: the request types that it takes.
    """

    actions: ClassVar[tuple[str, ...]] = ("Add", "Update", "Remove")

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._attached: dict[K, D] = {}

    @property
    def count(self) -> int:
        """How many devices are attached."""
        return len(self._attached)

    def find(self, key: K) -> D | None:
        """Return a device; None if there is none."""
        return self._attached.get(key)

    def modify(self, request: Request[R]) -> None:
        """Attach, update or detach a device."""
        request.allow(*self.actions)
        key = self.key(request)
        found = self._attached.get(key)
        if request.action == "Add":
            device = self.make(request)
            if found is not None:
                raise request.taken(f"{found} is attached")
            self.attach(request, device)
            self._attached[key] = device
        elif found is None:
            raise request.missing("nothing is attached there")
        elif request.action == "Update":
            self.update(request, found)
        else:
            self.detach(self._attached.pop(key))

    def key(self, request: Request[R]) -> K:
        """Return the key of the device that a request is about."""
        raise NotImplementedError

    def make(self, request: Request[R]) -> D:
        """Return the device that a request describes, checked on its own."""
        raise NotImplementedError

    def attach(self, request: Request[R], device: D) -> None:
        """Take what a device needs of the host."""

    def update(self, request: Request[R], device: D) -> None:
        """Change the settings of a device."""
        raise NotImplementedError

    def detach(self, device: D) -> None:
        """Release what a device holds of the host."""
        device.attached = False

    def close(self) -> None:
        """Detach every device."""
        for device in self._attached.values():
            self.detach(device)
        self._attached.clear()

    def inventory(self) -> JSON:
        """Return the devices in the form of the document."""
        return {device.name: to_json(device.settings) for device in self._attached.values()}
