"""The compute agent: what a network configuration proxy may do with a VM.

It answers as hcsshim's does (``internal/uvm/computeagent.go``), save that it serves one container alone, and
refuses calls for others; hcsshim's does not look at the id.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from attrs import frozen

from uvm._checks import U16
from uvm._ncproxy import messages
from uvm._ncproxy.vm import VMOfAgent
from uvm._ttrpc.protobuf import Message
from uvm._ttrpc.server import Method, Services
from uvm.errors import RPCCode, RPCError
from uvm.schema.guest import LCOWIPConfig, LCOWNetworkAdapter
from uvm.schema.network import ProxyEndpoint, ProxyEndpointSettings, Route

_EMPTY: Final = "received empty field in request"
_MAX_PREFIX_LENGTH: Final = 128


@frozen
class ComputeAgent:
    """The agent of one container, the pod in a VM."""

    container_id: str
    vm: VMOfAgent

    @property
    def services(self) -> Services:
        """The methods that the agent serves."""
        methods: dict[str, Method[Any]] = {
            "AddNIC": Method(messages.AddNIC, self.add_nic),
            "ModifyNIC": Method(messages.ModifyNIC, self.modify_nic),
            "DeleteNIC": Method(messages.DeleteNIC, self.delete_nic),
            "AssignPCI": Method(messages.AssignPCI, self.assign_pci),
            "RemovePCI": Method(messages.RemovePCI, self.remove_pci),
        }
        return {messages.COMPUTE_AGENT: methods}

    async def add_nic(self, request: messages.AddNIC) -> Message:
        """Add an adapter for an endpoint of HCN, or in the guest alone for one of the proxy."""
        _require("AddNIC", request.nic_id, request.endpoint)
        self._require_ours("AddNIC", request.container_id)
        endpoint = messages.endpoint_of(request.endpoint, "AddNIC")
        if isinstance(endpoint, ProxyEndpoint):
            await self.vm.add_guest_adapter(_guest_adapter(request.nic_id, endpoint))
        else:
            await self.vm.add_adapter(endpoint.name, request.nic_id)
        return messages.Empty()

    async def modify_nic(self, request: messages.ModifyNIC) -> Message:
        """Change the SR-IOV settings of an adapter for an endpoint of HCN."""
        _require("ModifyNIC", request.nic_id, request.endpoint)
        given = request.iov_policy_settings
        if given is None:
            raise RPCError("ModifyNIC", RPCCode.INVALID_ARGUMENT, _EMPTY)
        endpoint = messages.endpoint_of(request.endpoint, "ModifyNIC")
        if isinstance(endpoint, ProxyEndpoint):
            text = "modifying ncproxy networking endpoints is not supported"
            raise RPCError("ModifyNIC", RPCCode.UNKNOWN, text)
        await self.vm.update_adapter(endpoint.name, request.nic_id, given)
        return messages.Empty()

    async def delete_nic(self, request: messages.DeleteNIC) -> Message:
        """Remove the adapter of an endpoint of HCN, or one from the guest alone."""
        _require("DeleteNIC", request.nic_id, request.endpoint)
        self._require_ours("DeleteNIC", request.container_id)
        endpoint = messages.endpoint_of(request.endpoint, "DeleteNIC")
        if isinstance(endpoint, ProxyEndpoint):
            await self.vm.remove_guest_adapter(request.nic_id)
        else:
            await self.vm.remove_adapter(endpoint.name)
        return messages.Empty()

    async def assign_pci(self, request: messages.AssignPCI) -> Message:
        """Assign a PCI device to the VM."""
        function = self._device("AssignPCI", request)
        return messages.AssignedPCI(await self.vm.assign_device(request.device_id, function, request.nic_id))

    async def remove_pci(self, request: messages.RemovePCI) -> Message:
        """Remove an assigned PCI device."""
        function = self._device("RemovePCI", request)
        await self.vm.remove_device(request.device_id, function)
        return messages.Empty()

    def _device(self, operation: str, request: messages.AssignPCI | messages.RemovePCI) -> int:
        """Return the function of a device; refuse what is no device, or another container's."""
        _require(operation, request.device_id)
        self._require_ours(operation, request.container_id)
        if request.virtual_function_index > U16:
            text = f"a virtual function has 16 bits, and {request.virtual_function_index} more"
            raise RPCError(operation, RPCCode.INVALID_ARGUMENT, text)
        return request.virtual_function_index

    def _require_ours(self, operation: str, container_id: str) -> None:
        if container_id != self.container_id:
            text = f"this agent serves the container {self.container_id!r}, not {container_id!r}"
            raise RPCError(operation, RPCCode.NOT_FOUND, text)


def _require(operation: str, *given: str | bytes) -> None:
    if not all(given):
        raise RPCError(operation, RPCCode.INVALID_ARGUMENT, _EMPTY)


def _guest_adapter(nic_id: str, endpoint: ProxyEndpoint) -> LCOWNetworkAdapter:
    """Return the guest's configuration of an adapter for an endpoint of the proxy."""
    settings = endpoint.settings
    if settings is None:
        # hcsshim's agent ends with a nil pointer.
        raise RPCError("AddNIC", RPCCode.INVALID_ARGUMENT, _EMPTY)
    length = settings.ip_address_prefix_length
    if not 0 <= length <= _MAX_PREFIX_LENGTH:
        raise RPCError("AddNIC", RPCCode.INVALID_ARGUMENT, f"invalid prefix length: {length}")
    return LCOWNetworkAdapter(
        namespace_id=endpoint.namespace_id,
        id=nic_id,
        vpci_assigned=True,
        ip_configs=[LCOWIPConfig(ip_address=settings.ip_address, prefix_length=length)],
        routes=_routes(settings),
    )


def _routes(settings: ProxyEndpointSettings) -> list[Route]:
    """Return the default route, if there is a gateway."""
    gateway = settings.default_gateway
    if not gateway:
        return []
    try:
        # One with a zone is none of a route.
        address = ipaddress.ip_address(gateway.replace("%", " "))
    except ValueError:
        raise RPCError("AddNIC", RPCCode.UNKNOWN, f"invalid gateway address: {gateway}") from None
    is_v4 = isinstance(address, ipaddress.IPv4Address) or address.ipv4_mapped is not None
    return [Route(next_hop=gateway, destination_prefix="0.0.0.0/0" if is_v4 else "::/0")]
