"""PCI devices of the host, given to a VM.

The key is the device's instance path and function; a member is the VMBus GUID under which the guest is to see
it, and the slot is the GUID of who came first. ADD: host Add, guest ``VPCIDevice`` Add (Linux only: it waits
for the device). REMOVE: host Remove only; the guest is not asked.

Source: hcsshim ``internal/uvm/virtual_device.go``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from uvm.devices.base import REMOVE, Operation, Step
from uvm.devices.kinds import Named, PresentOrAbsent
from uvm.errors import OptionsError
from uvm.schema import guest, requests
from uvm.schema.common import V25H1_SERVER
from uvm.schema.devices import VirtualPciDevice, VirtualPciFunction
from uvm.schema.requests import ModificationRequest, ModifySettingRequest, virtual_pci_path


class DeviceKey(NamedTuple):
    """A function of a PCI device of the host."""

    instance_path: str
    function: int = 0


def pci_device(key: DeviceKey, build: int) -> VirtualPciDevice:
    """Make the settings of a device, for a request or the create document, on a host of that build."""
    return VirtualPciDevice(
        functions=[VirtualPciFunction(device_instance_path=key.instance_path, virtual_function=key.function)],
        # Older builds cannot report to the guest which NUMA node a device is close to.
        propagate_numa_affinity=True if build >= V25H1_SERVER else None,
    )


class PciDevices(Named[DeviceKey, str, bool], PresentOrAbsent[DeviceKey, str, str]):
    """The PCI devices of a VM.

    :param build: the host's Windows build.
    """

    def __init__(self, os: Literal["linux", "windows"], build: int) -> None:
        super().__init__(fold=str.lower)
        self._linux = os == "linux"
        self._build = build

    def place(self, key: DeviceKey, member: str) -> str:
        """Take the VMBus GUID that was asked for.

        :raises OptionsError: another device has it.
        """
        if not self._names.take(member):
            raise OptionsError(
                f"{key.instance_path} was not assigned: another device has the VMBus GUID {member}"
            )
        return member

    def steps(self, operation: Operation[DeviceKey, str, str, bool]) -> tuple[Step, ...]:
        """Give it on the host and announce it to a Linux guest, or take it on the host."""
        guid = operation.slot
        path = virtual_pci_path(guid)
        remove = Step(ModifySettingRequest(resource_path=path, request_type=requests.REMOVE))
        if operation.kind is REMOVE:
            return (remove,)
        request = ModifySettingRequest(
            resource_path=path,
            request_type=requests.ADD,
            settings=pci_device(operation.key, self._build),
        )
        add = Step(request, undo=remove)
        if not self._linux:
            return (add,)
        announce = ModificationRequest(
            request_type=requests.ADD,
            resource_type=guest.RESOURCE_VPCI_DEVICE,
            settings=guest.LCOWMappedVPCIDevice(vmbus_guid=guid),
        )
        return add, Step(announce)
