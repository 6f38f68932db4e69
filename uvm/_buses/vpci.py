"""vPCI: devices of the host, assigned to the VM."""

from __future__ import annotations

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.holds import Hold
from uvm._buses.lease import Lease
from uvm._checks import U16, guid_of, whole
from uvm._names import pci_function, pci_key
from uvm._repr import Value
from uvm.devices.vpci import DeviceKey, PciDevice, PciDevices, vmbus_instance_id
from uvm.errors import OptionsError


@define(eq=False, repr=False)
class VPCILease(Lease):
    """An assigned device.

    :ivar instance_path: the device on the host.
    :ivar function: its virtual function.
    :ivar vmbus_guid: the device on the VM's VMBus.
    """

    instance_path: str
    function: int
    vmbus_guid: str

    @property
    def vmbus_instance_id(self) -> str:
        r"""The instance id of the device in a Windows guest, which installing a driver waits for."""
        return vmbus_instance_id(self.vmbus_guid)


@frozen(repr=False)
class VPCIDevice(Value):
    """A function of a PCI device of the host that is assigned to the VM.

    :ivar vmbus_guid: the device on the VM's VMBus.
    :ivar references: how many leases it has; one assigned at boot counts as one.
    :ivar orphaned: it is an orphan.
    """

    instance_path: str
    function: int
    vmbus_guid: str
    references: int
    orphaned: bool = False

    @property
    def vmbus_instance_id(self) -> str:
        """The instance id of the device in a Windows guest, which installing a driver waits for."""
        return vmbus_instance_id(self.vmbus_guid)


class VPCIBus(Bus):
    """The PCI devices that are assigned to a VM."""

    _ledgers = ("devices",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._devices = self._drive(PciDevices(context.plan.os, context.host.build), "vpci")

    @property
    def devices(self) -> tuple[VPCIDevice, ...]:
        """The devices that are assigned."""
        return tuple(
            VPCIDevice(
                device.instance_path,
                device.function,
                entry.slot,
                *self._devices.standing(entry),
            )
            for entry, device in self._devices.attached()
        )

    @opens
    async def assign(self, instance_path: str, function: int = 0, *, vmbus_guid: str = "") -> VPCILease:
        """Assign a device. Await it, or enter it.

        The same function of the same device again, however its path is spelled, is the same assignment,
        with one more reference.

        :param instance_path: its instance path, or ``<path>/<function>``, as a specification names it.
        :param vmbus_guid: the GUID that it gets on the VM's VMBus; a fresh one by default.
        :raises OptionsError: an argument is of the wrong kind, or another device has that GUID.
        """
        path, function = _device(instance_path, function)
        key = DeviceKey(pci_key(path), function)
        vmbus_guid = guid_of(vmbus_guid or self._context.backend.new_id(), "a VMBus GUID")
        await self._devices.clear(key)
        hold = await self._devices.acquire(key, PciDevice(path, function, vmbus_guid))
        return VPCILease(hold, path, function, hold.slot)

    def _adopt(self, instance_path: str, function: int, vmbus_guid: str) -> Hold[str]:
        """Enter a device that the VM was created with; it stays until its hold is released."""
        device = PciDevice(instance_path, function, vmbus_guid)
        return self._devices.adopt(device.key, device, device)

    async def remove(self, instance_path: str, function: int = 0) -> None:
        """Release the oldest lease of a device, however its path is spelled; also of one assigned at boot.

        :raises OptionsError: an argument is of the wrong kind.
        :raises NotAttachedError: it is not assigned.
        """
        path, function = _device(instance_path, function)
        await self._release_oldest(
            self._devices.oldest_on(DeviceKey(pci_key(path), function)),
            f"no device {path} with function {function} is assigned to {self._context.vm_id}",
        )


def _device(instance_path: str, function: int) -> tuple[str, int]:
    if allowed := whole(U16)(function):
        raise OptionsError(f"the function of a PCI device is {allowed}, not {function!r}")
    return pci_function(instance_path, function)
