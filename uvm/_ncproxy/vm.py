"""What a compute agent does to its VM. An endpoint is named by its name on the host."""

from __future__ import annotations

from attrs import define, field

from uvm._buses.context import Context
from uvm._buses.network import AdapterLease, NetworkBus
from uvm._buses.vpci import VPCIBus, VPCILease
from uvm._names import pci_function, pci_key
from uvm._ncproxy.messages import IovSettings
from uvm.backend import JSON
from uvm.devices.network import adapter_key
from uvm.devices.vpci import DeviceKey
from uvm.schema.guest import LCOWNetworkAdapter


@define(eq=False)
class VMOfAgent:
    """A VM as its agent sees it, which removes what it has added before what others have."""

    _context: Context
    _network: NetworkBus
    _vpci: VPCIBus
    _leases: list[AdapterLease | VPCILease] = field(factory=list, init=False)

    async def add_adapter(self, endpoint: str, nic_id: str) -> None:
        """Add an adapter for an endpoint, in the namespace of the endpoint."""
        namespace_id, document = await self._found(endpoint)
        self._note(await self._network.add_endpoint(namespace_id, document, nic_id=nic_id))

    async def update_adapter(self, endpoint: str, nic_id: str, iov: IovSettings) -> None:
        """Change the SR-IOV settings of an adapter, on the host, which has to know its endpoint."""
        await self._found(endpoint)
        await self._network.update_adapter(
            nic_id,
            offload_weight=iov.offload_weight,
            queue_pairs=iov.queue_pairs_requested,
            interrupt_moderation=iov.interrupt_moderation,
        )

    async def remove_adapter(self, endpoint: str) -> None:
        """Remove the adapter of an endpoint, however often it was added, as after an answer that was lost."""
        namespace_id, document = await self._found(endpoint)
        endpoint_id = str(document.get("ID", ""))
        added = self._on(adapter_key(self._network._key(namespace_id), endpoint_id))
        for lease in added:
            await self._release(lease)
        if not added:
            await self._network.remove_endpoint(namespace_id, endpoint_id)

    async def add_guest_adapter(self, adapter: LCOWNetworkAdapter) -> None:
        """Add an adapter in the guest alone: it is a PCI device that is assigned to the VM."""
        self._note(await self._network.add_guest_adapter(adapter))

    async def remove_guest_adapter(self, nic_id: str) -> None:
        """Remove an adapter from the guest alone."""
        await self._network.remove_guest_adapter(nic_id)

    async def assign_device(self, instance_path: str, function: int, vmbus_guid: str) -> str:
        """Assign a PCI device; return its GUID on the VM's VMBus, a fresh one by default."""
        lease = await self._vpci.assign(instance_path, function, vmbus_guid=vmbus_guid)
        self._note(lease)
        return lease.vmbus_guid

    async def remove_device(self, instance_path: str, function: int) -> None:
        """Remove an assigned PCI device, which is assigned as often as it was asked for."""
        path, function = pci_function(instance_path, function)
        for lease in self._on(DeviceKey(pci_key(path), function)):
            await self._release(lease)
            return
        await self._vpci.remove(path, function)

    async def _found(self, endpoint: str) -> tuple[str, JSON]:
        """Return the namespace and the document of an endpoint."""
        document = await self._context.backend.network.endpoint(endpoint)
        return str(document.get("HostComputeNamespace", "")), document

    def _held(self) -> list[AdapterLease | VPCILease]:
        return [lease for lease in self._leases if not lease.released]

    def _on(self, key: object) -> list[AdapterLease | VPCILease]:
        return [lease for lease in self._held() if lease._hold.ticket.key == key]

    def _note(self, lease: AdapterLease | VPCILease) -> None:
        self._leases = [*self._held(), lease]

    async def _release(self, lease: AdapterLease | VPCILease) -> None:
        # Not noted meanwhile: another call is for another lease.
        self._leases.remove(lease)
        try:
            await lease.release()
        except BaseException:
            self._leases.append(lease)
            raise

    def outside(self, namespace_id: str) -> list[AdapterLease | VPCILease]:
        """Return what it has added, the last first, that does not go with a namespace."""
        held = reversed(self._held())
        return [lease for lease in held if isinstance(lease, VPCILease) or lease.namespace_id != namespace_id]
