"""PCI devices of the host, assigned to a VM.

The key is the folded instance path of the device, and its function; a member has the path that is sent and
the VMBus GUID under which the guest is to see it; the slot is the GUID of the first member. ADD: host Add,
guest ``VPCIDevice`` Add (Linux only: it waits for the device). REMOVE: host Remove only; the guest is not
asked.

Source: hcsshim ``internal/uvm/virtual_device.go``, ``internal/controller/device/vpci/utils.go``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from attrs import field, frozen

from uvm._names import GuestOS, guid_key, guid_text, pci_key
from uvm._repr import Value
from uvm.devices.base import REMOVE, Operation, Step, in_guest, on_host
from uvm.devices.kinds import FirstComeDevice, Named
from uvm.errors import OptionsError
from uvm.schema import guest, requests
from uvm.schema.common import V25H1_SERVER
from uvm.schema.devices import VirtualPciDevice, VirtualPciFunction
from uvm.schema.requests import VirtualPci

#: The types of ids that a specification has for PCI devices to assign (``windows.devices[].idType``).
PCI_ID_TYPES: Final = frozenset({"vpci", "vpci-instance-id", "gpu"})

#: The type of the VMBus channels of assigned devices.
_CHANNEL_TYPE: Final = "{44c4f61d-4444-4400-9d52-802e27ede19f}"


class DeviceKey(NamedTuple):
    """A function of a PCI device of the host, by the key of its instance path."""

    instance_path: str
    function: int = 0


@frozen(repr=False)
class PciDevice(Value):
    """A function of a PCI device as it is sent; the GUID is the one that it has on the VM's VMBus."""

    instance_path: str
    function: int
    vmbus_guid: str = field(converter=guid_text)

    @property
    def key(self) -> DeviceKey:
        """What makes two devices one."""
        return DeviceKey(pci_key(self.instance_path), self.function)


def vmbus_instance_id(vmbus_guid: str) -> str:
    r"""Return the instance id that an assigned device has in a Windows guest: ``VMBUS\{type}\{guid}``.

    It is that of the VMBus channel, whose child the device is; a driver is installed once it is there.
    """
    return rf"VMBUS\{_CHANNEL_TYPE}\{{{vmbus_guid}}}"


class PciDevices(Named[DeviceKey, PciDevice, PciDevice], FirstComeDevice[DeviceKey, PciDevice, str]):
    """The PCI devices of a VM.

    :param build: the host's Windows build.
    """

    def __init__(self, os: GuestOS, build: int) -> None:
        super().__init__(fold=guid_key)
        self._linux = os == "linux"
        self._build = build

    def place(self, key: DeviceKey, member: PciDevice) -> str:
        """Take the VMBus GUID that was asked for.

        :raises OptionsError: another device has it.
        """
        if not self._slots.take(member.vmbus_guid):
            raise OptionsError(
                f"{member.instance_path} was not assigned: another device has the VMBus GUID "
                f"{member.vmbus_guid}"
            )
        return member.vmbus_guid

    def describe(self, key: DeviceKey, slot: str, value: PciDevice) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"PCI device {value.instance_path}, function {value.function}", f"VMBus GUID {slot}"

    def steps(self, operation: Operation[DeviceKey, PciDevice, str, PciDevice]) -> tuple[Step, ...]:
        """Assign it on the host and announce it to a Linux guest, or remove it on the host."""
        device, guid = operation.value, operation.slot
        path = VirtualPci(guid).path
        remove = on_host(requests.REMOVE, path)
        if operation.kind is REMOVE:
            return (remove,)
        function = VirtualPciFunction(
            device_instance_path=device.instance_path, virtual_function=device.function
        )
        # Older builds cannot report to the guest which NUMA node a device is close to.
        numa = True if self._build >= V25H1_SERVER else None
        settings = VirtualPciDevice(functions=[function], propagate_numa_affinity=numa)
        add = on_host(requests.ADD, path, settings, undo=remove)
        if not self._linux:
            return (add,)
        announced = guest.LCOWMappedVPCIDevice(vmbus_guid=guid)
        return add, in_guest(requests.ADD, guest.RESOURCE_VPCI_DEVICE, announced)
