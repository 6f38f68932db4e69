"""How the network of a VM is set up: by the VM itself, or by a network configuration proxy."""

from __future__ import annotations

from typing import Protocol

from attrs import define

from uvm._buses.context import Context
from uvm._buses.network import NetworkBus
from uvm._buses.vpci import VPCIBus
from uvm._names import host_path, pipe_path


class NetworkSetup(Protocol):
    """Sets up the network of a VM. :meth:`uvm.UtilityVM.network_setup` returns one."""

    async def setup(self, namespace_id: str) -> None:
        """Put the VM into a network namespace of the host, with its adapters; roll back what fails."""

    async def teardown(self, namespace_id: str) -> None:
        """Take the VM out of the namespace, with its adapters."""


@define(eq=False, repr=False)
class InternalNetworkSetup:
    """Adds an adapter for each endpoint of a namespace itself (:class:`NetworkSetup`)."""

    _network: NetworkBus

    def __repr__(self) -> str:
        return f"<InternalNetworkSetup with {self._network!r}>"

    async def setup(self, namespace_id: str) -> None:
        """Put the VM into a namespace with all its endpoints; see :meth:`NetworkBus.setup`."""
        await self._network.setup(namespace_id)

    async def teardown(self, namespace_id: str) -> None:
        """Take the VM out of the namespace, with its adapters; do nothing if it is not in it."""
        await self._network.remove_namespace(namespace_id)


def external_network_setup(
    context: Context,
    network: NetworkBus,
    vpci: VPCIBus,
    container_id: str,
    agent_address: str,
    timeout_seconds: float,
) -> NetworkSetup:
    """Return the set-up by the network configuration proxy of a VM; see ``UtilityVM.network_setup``."""
    from uvm._ncproxy.proxy import NetworkConfigProxy
    from uvm._ncproxy.setup import ExternalNetworkSetup

    path = context.options.network_config_proxy
    proxy = NetworkConfigProxy(context.backend.pipes, path, timeout_seconds, context.vm_id)
    address = _agent_address(context, agent_address, container_id)
    return ExternalNetworkSetup(proxy, address, container_id, context, network, vpci)


def _agent_address(context: Context, given: str, container_id: str) -> str:
    if context.host.paths == "windows":
        return pipe_path(given or rf"\\.\pipe\computeagent-{container_id}", "agent_address")
    return host_path(given or f"/run/computeagent-{container_id}.sock", "posix", "agent_address")
