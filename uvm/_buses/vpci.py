"""vPCI: devices of the host, assigned to the VM."""

from __future__ import annotations

from attrs import define

from uvm._buses.context import Context
from uvm._buses.driver import Driver, Hold
from uvm._buses.lease import Lease, Pending
from uvm.devices.ledger import Ledger
from uvm.devices.vpci import DeviceKey, PciDevices
from uvm.errors import NotAttachedError


@define(eq=False)
class VPCILease(Lease):
    """An assigned device.

    :ivar instance_path: the device on the host; :ivar function: its virtual function.
    :ivar vmbus_guid: the device on the VM's VMBus.
    """

    instance_path: str
    function: int
    vmbus_guid: str


class VPCIBus:
    """The PCI devices that are assigned to a VM."""

    def __init__(self, context: Context) -> None:
        self._context = context
        device = PciDevices(context.plan.os, context.host.build)
        self.devices: Driver[DeviceKey, str, str, bool] = Driver(
            context.link, Ledger(device), context.lane("vpci")
        )

    def assign(self, instance_path: str, function: int = 0, *, vmbus_guid: str = "") -> Pending[VPCILease]:
        """Assign a device. Await it, or enter it.

        The same function of the same device again is the same assignment, with one more reference.

        :param vmbus_guid: the GUID it gets on the VM's VMBus; a fresh one where none is given.
        """
        return Pending(lambda: self._assign(DeviceKey(instance_path, function), vmbus_guid))

    async def _assign(self, key: DeviceKey, vmbus_guid: str) -> VPCILease:
        hold = await self.devices.acquire(key, vmbus_guid or self._context.backend.new_id())
        return VPCILease(hold, key.instance_path, key.function, hold.ticket.entry.slot)

    def adopt(self, key: DeviceKey, vmbus_guid: str) -> Hold:
        """Take note of a device that the VM was created with; it stays until its holder gives it up."""
        return self.devices.adopt(key, vmbus_guid, True)

    async def remove(self, instance_path: str, function: int = 0) -> None:
        """Give up one reference to a device, by its path on the host: also of one assigned at boot.

        :raises NotAttachedError: it is not assigned.
        """
        if not await self.devices.release_one(DeviceKey(instance_path, function)):
            raise NotAttachedError(
                f"no device {instance_path} with function {function} is assigned to {self._context.vm_id}"
            )
