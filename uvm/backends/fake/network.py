"""The networks of the fake host: HCN documents of namespaces and endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.fake.exchange import Exchange
from uvm.backends.requests.networks import NetworkTable
from uvm.backends.requests.request import copy_json
from uvm.errors import HostError
from uvm.hresult import HResult

T = TypeVar("T")


class FakeNetwork:
    """The host's networks (:class:`~uvm.backend.HostNetwork`), and the calls that set them up.

    A namespace that does not exist is ERROR_NOT_FOUND: HCN has no code of its own for it.
    """

    def __init__(self, exchange: Exchange, new_id: Callable[[], str]) -> None:
        self._exchange = exchange
        self._networks: dict[str, JSON] = {}
        self._table = NetworkTable(new_id)
        # Those that were created through the protocol, by kind and id.
        self._created: dict[tuple[str, str], None] = {}

    def __repr__(self) -> str:
        return f"<FakeNetwork: {self._table}>"

    # Setting up

    def add_network(self, document: JSON) -> None:
        """Add a network by its HCN document, for endpoints to be created in; ``ID`` is its id.

        :raises HostError: HCN_E_INVALID_JSON, or HCN_E_NETWORK_ALREADY_EXISTS.
        """
        network_id = document.get("ID")
        if not isinstance(network_id, str) or not network_id:
            raise HostError("add network", HResult.HCN_E_INVALID_JSON, "ID is missing")
        if guid_key(network_id) in self._networks:
            raise HostError(f"add network {network_id}", HResult.HCN_E_NETWORK_ALREADY_EXISTS)
        self._networks[guid_key(network_id)] = copy_json(document)

    def add_namespace(self, document: JSON) -> None:
        """Add a namespace by its HCN document; ``ID`` is its id.

        :raises HostError: HCN_E_INVALID_JSON, or ERROR_ALREADY_EXISTS.
        """
        self._table.add_namespace(document, "add namespace")

    def add_endpoint(self, document: JSON) -> None:
        """Add an endpoint by its HCN document; it joins its ``HostComputeNamespace`` if that exists.

        :raises HostError: HCN_E_INVALID_JSON, or ERROR_ALREADY_EXISTS.
        """
        self._table.add_endpoint(document, "add endpoint")

    def attachments(self) -> dict[str, str]:
        """Return the VM of each attached endpoint."""
        return self._table.attachments()

    def created(self) -> list[str]:
        """Return the namespaces and endpoints that were created, and not deleted, through the backend."""
        return [f"{kind} {key}" for kind, key in self._created]

    # For the network adapters of the fake

    def attach(self, endpoint_id: str, vm_id: str, operation: str) -> None:
        """Connect an endpoint to an adapter.

        :raises HostError: HCN_E_ENDPOINT_NOT_FOUND, or HCN_E_ENDPOINT_ALREADY_ATTACHED.
        """
        self._table.attach(endpoint_id, vm_id, operation)

    def detach(self, endpoint_id: str) -> None:
        """Disconnect an endpoint."""
        self._table.detach(endpoint_id)

    # HostNetwork

    async def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; ERROR_NOT_FOUND if there is none."""
        return await self._ask("namespace", {"ID": namespace_id}, lambda: self._table.namespace(namespace_id))

    async def endpoint(self, endpoint: str) -> JSON:
        """Return an endpoint's document, found by id or by name; HCN_E_ENDPOINT_NOT_FOUND."""
        return await self._ask("endpoint", {"ID": endpoint}, lambda: self._table.endpoint(endpoint))

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints in a namespace, in the order in which they were added."""
        document = {"ID": namespace_id}
        return await self._ask("namespace endpoints", document, lambda: self._table.members(namespace_id))

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Put an endpoint into a namespace; HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS if it is in one."""
        document = {"ID": namespace_id, "EndpointId": endpoint_id}
        await self._ask("add endpoint", document, lambda: self._table.join(namespace_id, endpoint_id))

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Remove an endpoint from a namespace; ERROR_NOT_FOUND if it is not in it."""
        document = {"ID": namespace_id, "EndpointId": endpoint_id}
        await self._ask("remove endpoint", document, lambda: self._table.leave(namespace_id, endpoint_id))

    async def network(self, network_id: str) -> JSON:
        """Return a network's document; HCN_E_NETWORK_NOT_FOUND."""
        return await self._ask("network", {"ID": network_id}, lambda: self._network(network_id))

    async def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, without endpoints; refuse as :meth:`add_namespace` does."""

        def create() -> JSON:
            made = self._table.create_namespace(document)
            self._created["namespace", guid_key(made["ID"])] = None
            return made

        return await self._ask("create namespace", document, create)

    async def create_endpoint(self, network_id: str, document: JSON) -> JSON:
        """Create an endpoint in a network; HCN_E_NETWORK_NOT_FOUND, or as :meth:`add_endpoint`.

        Its namespace cannot be chosen: E_INVALIDARG.
        """

        def create() -> JSON:
            placed = {"HostComputeNetwork": self._network(network_id)["ID"]}
            operation = f"create endpoint in network {network_id}"
            made = self._table.create_endpoint(document, operation, lambda made: made.update(placed))
            self._created["endpoint", guid_key(made["ID"])] = None
            return made

        return await self._ask("create endpoint", {**document, "HostComputeNetwork": network_id}, create)

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, if it exists; HCN_E_ENTITY_HAS_REFERENCES while an adapter connects to it."""

        def delete() -> None:
            self._table.delete_endpoint(endpoint_id)
            self._created.pop(("endpoint", guid_key(endpoint_id)), None)

        await self._ask("delete endpoint", {"ID": endpoint_id}, delete)

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace, without its endpoints; do nothing if it does not exist."""

        def delete() -> None:
            self._table.delete_namespace(namespace_id)
            self._created.pop(("namespace", guid_key(namespace_id)), None)

        await self._ask("delete namespace", {"ID": namespace_id}, delete)

    async def _ask(self, operation: str, document: JSON, change: Callable[[], T]) -> T:
        entry = self._exchange.request_log._begin("network", "", operation, document)
        return await self._exchange.carry_out(entry, change)

    def _network(self, network_id: str) -> JSON:
        found = self._networks.get(guid_key(network_id))
        if found is None:
            raise HostError(f"open network {network_id}", HResult.HCN_E_NETWORK_NOT_FOUND)
        document: JSON = copy_json(found)
        return document
