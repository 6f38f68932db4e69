"""Namespaces and endpoints, kept in memory and refused as HCN does it.

The document of an endpoint names the namespace that it is in, whether that exists or not. Endpoints are also
found by their names, of which the first that came has each. Both are indexed: nothing looks through all
endpoints. Documents are copied when they come and when they go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvm._names import guid_key
from uvm._repr import counted
from uvm.backend import JSON
from uvm.backends.requests.request import copy_json
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import from_json
from uvm.schema.network import HostComputeEndpoint, HostComputeNamespace


class NetworkTable:
    """The namespaces and endpoints of a host, and which adapters endpoints connect to.

    A namespace that does not exist is ERROR_NOT_FOUND: HCN has no code of its own for it.

    :param new_id: returns a fresh GUID.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._namespaces: dict[str, JSON] = {}
        self._endpoints: dict[str, JSON] = {}
        # The keys of endpoints by the key of their namespace, and by name; in the order in which they came.
        self._members: dict[str, dict[str, None]] = {}
        self._named: dict[str, dict[str, None]] = {}
        self._attached: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __str__(self) -> str:
        counts = counted(len(self._namespaces), "namespaces"), counted(len(self._endpoints), "endpoints")
        return ", ".join(counts)

    # Documents that come.

    def add_namespace(self, document: JSON, operation: str) -> None:
        """Add a namespace by its document, which has its id.

        :raises HostError: HCN_E_INVALID_JSON, or ERROR_ALREADY_EXISTS.
        """
        added = _checked(HostComputeNamespace, document, operation)
        self._namespaces[_free_key(self._namespaces, added, operation)] = added

    def add_endpoint(self, document: JSON, operation: str) -> None:
        """Add an endpoint by its document, which has its id and may name a namespace.

        :raises HostError: HCN_E_INVALID_JSON, or ERROR_ALREADY_EXISTS.
        """
        added = _checked(HostComputeEndpoint, document, operation)
        self._enter(_free_key(self._endpoints, added, operation), added)

    def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, without endpoints, and return its document, with a fresh id if it had none.

        :raises HostError: as of :meth:`add_namespace`; or it names endpoints: E_INVALIDARG.
        """
        operation = "create namespace"
        made = _checked(HostComputeNamespace, self._with_id(document, operation), operation)
        if made.get("Resources"):
            raise HostError(operation, HResult.E_INVALIDARG, "endpoints are added later")
        self._namespaces[_free_key(self._namespaces, made, operation)] = made
        return self.namespace(made["ID"])

    def create_endpoint(self, document: JSON, operation: str, complete: Callable[[JSON], None]) -> JSON:
        """Create an endpoint in no namespace, and return its document, with a fresh id if it had none.

        :param complete: adds to the document what the host chooses, or raises; then nothing is created.
        :raises HostError: as of :meth:`add_endpoint`; or it names a namespace: E_INVALIDARG.
        """
        made = _checked(HostComputeEndpoint, self._with_id(document, operation), operation)
        if made.get("HostComputeNamespace"):
            raise HostError(operation, HResult.E_INVALIDARG, "HostComputeNamespace is read-only")
        key = _free_key(self._endpoints, made, operation)
        complete(made)
        self._enter(key, made)
        return self.endpoint(made["ID"])

    # What there is.

    def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; ERROR_NOT_FOUND if there is none."""
        found = self._namespaces.get(guid_key(namespace_id))
        if found is None:
            raise HostError(f"open namespace {namespace_id}", HResult.ERROR_NOT_FOUND)
        document: JSON = copy_json(found)
        return document

    def endpoint(self, endpoint: str) -> JSON:
        """Return an endpoint's document, found by id or by name; HCN_E_ENDPOINT_NOT_FOUND."""
        found = self._endpoints.get(guid_key(endpoint))
        if found is None:
            named = next(iter(self._named.get(endpoint, ())), None)
            if named is None:
                raise HostError(f"open endpoint {endpoint}", HResult.HCN_E_ENDPOINT_NOT_FOUND)
            found = self._endpoints[named]
        document: JSON = copy_json(found)
        return document

    def members(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints in a namespace, in the order in which they were added."""
        self.namespace(namespace_id)
        return [copy_json(self._endpoints[key]) for key in self._members.get(guid_key(namespace_id), ())]

    def comes_first(self, endpoint_id: str) -> bool:
        """Return whether an endpoint is the first of its namespace, or in none."""
        key = guid_key(endpoint_id)
        namespace_key = self._namespace_of(key)
        return not namespace_key or next(iter(self._members[namespace_key])) == key

    # Membership.

    def join(self, namespace_id: str, endpoint: str) -> None:
        """Put an endpoint into a namespace; HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS if it is in one."""
        namespace = self.namespace(namespace_id)
        key = guid_key(self.endpoint(endpoint)["ID"])
        if self._namespace_of(key) in self._namespaces:
            raise HostError(f"add endpoint {endpoint}", HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS)
        self._move(key, namespace["ID"])

    def leave(self, namespace_id: str, endpoint: str) -> None:
        """Remove an endpoint from a namespace; ERROR_NOT_FOUND if it is not in it."""
        self.namespace(namespace_id)
        key = guid_key(self.endpoint(endpoint)["ID"])
        if self._namespace_of(key) != guid_key(namespace_id):
            text = "it is not in the namespace"
            raise HostError(f"remove endpoint {endpoint}", HResult.ERROR_NOT_FOUND, text)
        self._move(key, "")

    # Deletion.

    def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace, without its endpoints; do nothing if it does not exist."""
        key = guid_key(namespace_id)
        if self._namespaces.pop(key, None) is not None:
            for member in [*self._members.get(key, ())]:
                self._move(member, "")

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, if it exists; HCN_E_ENTITY_HAS_REFERENCES while an adapter connects to it."""
        key = guid_key(endpoint_id)
        if key in self._attached:
            text = f"VM {self._attached[key]} has an adapter for it"
            raise HostError(f"delete endpoint {endpoint_id}", HResult.HCN_E_ENTITY_HAS_REFERENCES, text)
        if key in self._endpoints:
            _take_out(self._members, self._namespace_of(key), key)
            name = self._endpoints.pop(key).get("Name")
            if name is not None:
                _take_out(self._named, name, key)

    # Adapters.

    def attachments(self) -> dict[str, str]:
        """Return the VM of each attached endpoint."""
        return dict(self._attached)

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
        """Disconnect an endpoint; do nothing if it is not connected."""
        self._attached.pop(guid_key(endpoint_id), None)

    def _with_id(self, document: JSON, operation: str) -> JSON:
        if not isinstance(document, dict):
            raise HostError(operation, HResult.HCN_E_INVALID_JSON, repr(document))
        return {**document, "ID": document.get("ID") or self._new_id()}

    def _enter(self, endpoint_key: str, document: JSON) -> None:
        self._endpoints[endpoint_key] = document
        self._members.setdefault(self._namespace_of(endpoint_key), {})[endpoint_key] = None
        name = document.get("Name")
        if name is not None:
            self._named.setdefault(name, {})[endpoint_key] = None

    def _move(self, endpoint_key: str, namespace_id: str) -> None:
        """Have an endpoint name another namespace, or none."""
        _take_out(self._members, self._namespace_of(endpoint_key), endpoint_key)
        self._endpoints[endpoint_key].pop("HostComputeNamespace", None)
        if namespace_id:
            self._endpoints[endpoint_key]["HostComputeNamespace"] = namespace_id
        self._members.setdefault(guid_key(namespace_id), {})[endpoint_key] = None

    def _namespace_of(self, endpoint_key: str) -> str:
        return guid_key(self._endpoints[endpoint_key].get("HostComputeNamespace") or "")


def _checked(
    cls: type[HostComputeNamespace] | type[HostComputeEndpoint], document: Any, operation: str
) -> JSON:
    """Return a copy of a document that has an id; HCN_E_INVALID_JSON."""
    try:
        model = from_json(cls, document)
        copied: JSON = copy_json(document)
    except (ValueError, RecursionError) as error:
        raise HostError(operation, HResult.HCN_E_INVALID_JSON, str(error)) from None
    if not guid_key(model.id):
        raise HostError(operation, HResult.HCN_E_INVALID_JSON, "ID is missing")
    return copied


def _free_key(documents: dict[str, JSON], document: JSON, operation: str) -> str:
    """Return the key of a document that is to be among others; ERROR_ALREADY_EXISTS."""
    key = guid_key(document["ID"])
    if key in documents:
        raise HostError(f"{operation} {document['ID']}", HResult.ERROR_ALREADY_EXISTS)
    return key


def _take_out(groups: dict[str, dict[str, None]], name: str, key: str) -> None:
    """Remove a key from a group, and the group with the last."""
    del groups[name][key]
    if not groups[name]:
        del groups[name]
