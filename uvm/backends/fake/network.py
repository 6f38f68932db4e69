"""The networks of the fake host: HCN documents of namespaces and endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from uvm._names import guid_key
from uvm._repr import counted
from uvm.backend import JSON
from uvm.backends.fake.calls import copy_json
from uvm.backends.fake.exchange import Exchange
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json
from uvm.schema.network import HostComputeEndpoint, HostComputeNamespace

T = TypeVar("T")


class FakeNetwork:
    """The host's networks (:class:`~uvm.backend.HostNetwork`), and the calls that set them up.

    A namespace that does not exist is ERROR_NOT_FOUND: HCN has no code of its own for it.
    """

    def __init__(self, exchange: Exchange, new_id: Callable[[], str]) -> None:
        self._exchange = exchange
        self._new_id = new_id
        self._networks: dict[str, JSON] = {}
        self._namespaces: dict[str, JSON] = {}
        self._endpoints: dict[str, JSON] = {}
        # The endpoints that name a namespace, whether it exists or not; and the first of each name.
        self._members: dict[str, dict[str, None]] = {}
        self._named: dict[str, str] = {}
        self._attached: dict[str, str] = {}
        # Those that were created through the protocol, by kind and id.
        self._created: dict[tuple[str, str], None] = {}

    def __repr__(self) -> str:
        counts = counted(len(self._namespaces), "namespaces"), counted(len(self._endpoints), "endpoints")
        return f"<FakeNetwork: {', '.join(counts)}>"

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
        _add(self._namespaces, HostComputeNamespace, document, "add namespace")

    def add_endpoint(self, document: JSON) -> None:
        """Add an endpoint by its HCN document; it joins its ``HostComputeNamespace`` if that exists.

        :raises HostError: HCN_E_INVALID_JSON, or ERROR_ALREADY_EXISTS.
        """
        key = _add(self._endpoints, HostComputeEndpoint, document, "add endpoint")
        name = self._endpoints[key].get("Name")
        if name is not None:
            self._named.setdefault(name, key)
        self._members.setdefault(self._namespace_of(key), {})[key] = None

    def attachments(self) -> dict[str, str]:
        """Return the VM of each attached endpoint."""
        return dict(self._attached)

    def created(self) -> list[str]:
        """Return the namespaces and endpoints that were created, and not deleted, through the backend."""
        return [f"{kind} {key}" for kind, key in self._created]

    # For the network adapters of the fake

    def attach(self, endpoint_id: str, vm_id: str, operation: str) -> None:
        """Connect an endpoint to an adapter.

        :raises HostError: HCN_E_ENDPOINT_NOT_FOUND, or HCN_E_ENDPOINT_ALREADY_ATTACHED.
        """
        key = guid_key(endpoint_id)
        if key not in self._endpoints:
            raise HostError(operation, HResult.HCN_E_ENDPOINT_NOT_FOUND, endpoint_id)
        if key in self._attached:
            text = f"to VM {self._attached[key]}"
            raise HostError(operation, HResult.HCN_E_ENDPOINT_ALREADY_ATTACHED, text)
        self._attached[key] = vm_id

    def detach(self, endpoint_id: str) -> None:
        """Disconnect an endpoint."""
        self._attached.pop(guid_key(endpoint_id), None)

    # HostNetwork

    async def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; ERROR_NOT_FOUND if there is none."""
        return await self._ask("namespace", {"ID": namespace_id}, lambda: self._namespace(namespace_id))

    async def endpoint(self, endpoint: str) -> JSON:
        """Return an endpoint's document, found by id or by name; HCN_E_ENDPOINT_NOT_FOUND."""
        return await self._ask("endpoint", {"ID": endpoint}, lambda: self._endpoint(endpoint))

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints in a namespace, in the order in which they were added."""

        def endpoints() -> list[JSON]:
            self._namespace(namespace_id)
            return [copy_json(self._endpoints[k]) for k in self._members.get(guid_key(namespace_id), ())]

        return await self._ask("namespace endpoints", {"ID": namespace_id}, endpoints)

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Put an endpoint into a namespace; HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS if it is in one."""

        def add() -> None:
            namespace = self._namespace(namespace_id)
            key = guid_key(self._endpoint(endpoint_id)["ID"])
            if self._namespace_of(key) in self._namespaces:
                code = HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS
                raise HostError(f"add endpoint {endpoint_id}", code)
            self._move(key, namespace["ID"])

        await self._ask("add endpoint", {"ID": namespace_id, "EndpointId": endpoint_id}, add)

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Remove an endpoint from a namespace; ERROR_NOT_FOUND if it is not in it."""

        def remove() -> None:
            self._namespace(namespace_id)
            key = guid_key(self._endpoint(endpoint_id)["ID"])
            if self._namespace_of(key) != guid_key(namespace_id):
                text = "it is not in the namespace"
                raise HostError(f"remove endpoint {endpoint_id}", HResult.ERROR_NOT_FOUND, text)
            self._move(key, "")

        await self._ask("remove endpoint", {"ID": namespace_id, "EndpointId": endpoint_id}, remove)

    async def network(self, network_id: str) -> JSON:
        """Return a network's document; HCN_E_NETWORK_NOT_FOUND."""
        return await self._ask("network", {"ID": network_id}, lambda: self._network(network_id))

    async def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, without endpoints; refuse as :meth:`add_namespace` does."""

        def create() -> JSON:
            made = self._with_id(document, "create namespace")
            if made.get("Resources"):
                raise HostError("create namespace", HResult.E_INVALIDARG, "endpoints are added later")
            self.add_namespace(made)
            self._created["namespace", guid_key(made["ID"])] = None
            return self._namespace(made["ID"])

        return await self._ask("create namespace", document, create)

    async def create_endpoint(self, network_id: str, document: JSON) -> JSON:
        """Create an endpoint in a network; HCN_E_NETWORK_NOT_FOUND, or as :meth:`add_endpoint`.

        Its namespace cannot be chosen: E_INVALIDARG.
        """

        def create() -> JSON:
            operation = f"create endpoint in network {network_id}"
            network = self._network(network_id)
            made = self._with_id(document, operation)
            if made.get("HostComputeNamespace"):
                raise HostError(operation, HResult.E_INVALIDARG, "HostComputeNamespace is read-only")
            self.add_endpoint({**made, "HostComputeNetwork": network["ID"]})
            self._created["endpoint", guid_key(made["ID"])] = None
            return self._endpoint(made["ID"])

        return await self._ask("create endpoint", {**document, "HostComputeNetwork": network_id}, create)

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, if it exists; HCN_E_ENTITY_HAS_REFERENCES while an adapter connects to it."""

        def delete() -> None:
            key = guid_key(endpoint_id)
            if key in self._attached:
                text = f"VM {self._attached[key]} has an adapter for it"
                raise HostError(f"delete endpoint {endpoint_id}", HResult.HCN_E_ENTITY_HAS_REFERENCES, text)
            if key in self._endpoints:
                self._forget(key)

        await self._ask("delete endpoint", {"ID": endpoint_id}, delete)

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace, without its endpoints; do nothing if it does not exist."""

        def delete() -> None:
            key = guid_key(namespace_id)
            if self._namespaces.pop(key, None) is not None:
                self._created.pop(("namespace", key), None)
                for member in [*self._members.get(key, ())]:
                    self._move(member, "")

        await self._ask("delete namespace", {"ID": namespace_id}, delete)

    async def _ask(self, operation: str, document: JSON, change: Callable[[], T]) -> T:
        entry = self._exchange.request_log._begin("network", "", operation, document)
        return await self._exchange.carry_out(entry, change)

    def _with_id(self, document: JSON, operation: str) -> JSON:
        if not isinstance(document, dict):
            raise HostError(operation, HResult.HCN_E_INVALID_JSON, repr(document))
        return {**document, "ID": document.get("ID") or self._new_id()}

    def _network(self, network_id: str) -> JSON:
        found = self._networks.get(guid_key(network_id))
        if found is None:
            raise HostError(f"open network {network_id}", HResult.HCN_E_NETWORK_NOT_FOUND)
        document: JSON = copy_json(found)
        return document

    def _namespace(self, namespace_id: str) -> JSON:
        found = self._namespaces.get(guid_key(namespace_id))
        if found is None:
            raise HostError(f"open namespace {namespace_id}", HResult.ERROR_NOT_FOUND)
        document: JSON = copy_json(found)
        return document

    def _endpoint(self, endpoint: str) -> JSON:
        key = guid_key(endpoint)
        found = self._endpoints.get(key if key in self._endpoints else self._named.get(endpoint, ""))
        if found is None:
            raise HostError(f"open endpoint {endpoint}", HResult.HCN_E_ENDPOINT_NOT_FOUND)
        document: JSON = copy_json(found)
        return document

    def _forget(self, endpoint_key: str) -> None:
        """Delete an endpoint; a name that others have too is theirs then."""
        self._created.pop(("endpoint", endpoint_key), None)
        self._leave_namespace(endpoint_key)
        name = self._endpoints.pop(endpoint_key).get("Name")
        if name is not None and self._named.get(name) == endpoint_key:
            del self._named[name]
            for key in [key for key, each in self._endpoints.items() if each.get("Name") == name][:1]:
                self._named[name] = key

    def _leave_namespace(self, endpoint_key: str) -> None:
        left = self._namespace_of(endpoint_key)
        del self._members[left][endpoint_key]
        if not self._members[left]:
            del self._members[left]

    def _move(self, endpoint_key: str, namespace_id: str) -> None:
        """Have an endpoint name another namespace, or none."""
        self._leave_namespace(endpoint_key)
        self._endpoints[endpoint_key].pop("HostComputeNamespace", None)
        if namespace_id:
            self._endpoints[endpoint_key]["HostComputeNamespace"] = namespace_id
        self._members.setdefault(guid_key(namespace_id), {})[endpoint_key] = None

    def _namespace_of(self, endpoint_key: str) -> str:
        return guid_key(str(self._endpoints[endpoint_key].get("HostComputeNamespace") or ""))


def _add(
    documents: dict[str, JSON],
    cls: type[HostComputeNamespace] | type[HostComputeEndpoint],
    document: JSON,
    operation: str,
) -> str:
    """Check and add a document, and return its key."""
    try:
        checked = from_json(cls, document)
    except SchemaError as e:
        raise HostError(operation, HResult.HCN_E_INVALID_JSON, str(e)) from None
    if not checked.id:
        raise HostError(operation, HResult.HCN_E_INVALID_JSON, "ID is missing")
    key = guid_key(checked.id)
    if key in documents:
        raise HostError(f"{operation} {checked.id}", HResult.ERROR_ALREADY_EXISTS)
    documents[key] = copy_json(document)
    return key
