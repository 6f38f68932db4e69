"""Host Compute Network: the namespaces and endpoints of computenetwork.dll."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final
from uuid import UUID, uuid4

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.hcs.dlls import CData, ComputeNetwork, Library, NetworkQuery
from uvm.backends.hcs.text import check, compose, guid, parse_list, parse_object, refusal, take, wide
from uvm.backends.winerrors import tolerating
from uvm.backends.workers import Workers
from uvm.errors import HostError
from uvm.hresult import HResult

#: What an error calls the id of a namespace.
_WHAT: Final = "a namespace id"
_QUERY: Final[JSON] = {"SchemaVersion": {"Major": 2, "Minor": 0}}


@showing()
class HCSNetwork:
    """The networks of a Windows host (:class:`~uvm.backend.HostNetwork`).

    HCN has no operations: its calls block. Each method makes all of its calls in one go in a worker thread,
    and closes there what it opened.
    """

    def __init__(self, library: Library[ComputeNetwork], workers: Workers) -> None:
        self._library = library
        self._workers = workers

    async def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; ERROR_NOT_FOUND if there is none."""
        wanted = guid(namespace_id, _WHAT)
        return await self._workers.run(self._namespace, wanted)

    async def endpoint(self, endpoint: str) -> JSON:
        """Return the document of an endpoint; HCN_E_ENDPOINT_NOT_FOUND if none has this id or name."""

        def find() -> JSON:
            try:
                wanted = UUID(endpoint)
            except ValueError:
                return self._endpoint_by_name(endpoint)
            with tolerating(HResult.HCN_E_ENDPOINT_NOT_FOUND):
                return self._endpoint(wanted)
            # A name may look like an id, such as 32 hexadecimal digits.
            return self._endpoint_by_name(endpoint)

        return await self._workers.run(find)

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints of a namespace, in its order."""
        wanted, operation = guid(namespace_id, _WHAT), f"query namespace {namespace_id}"

        def endpoints() -> list[JSON]:
            found = _endpoint_ids(self._namespace(wanted), operation)
            return [self._endpoint(_listed_guid(each, operation)) for each in found]

        return await self._workers.run(endpoints)

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Add an endpoint to a namespace."""
        await self._change(namespace_id, endpoint_id, "Add")

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Remove an endpoint from a namespace."""
        await self._change(namespace_id, endpoint_id, "Remove")

    async def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, and return its document. For a caller who is cancelled it is deleted again."""
        operation = "create namespace"
        wanted, settings = self._to_create(document, operation)
        functions = self._library.functions

        def made(value: CData, out: CData, error: CData) -> int:
            return functions.HcnCreateNamespace(value, settings, out, error)

        def create() -> JSON:
            undone = self._deleted_on_failure(operation, wanted, functions.HcnDeleteNamespace)
            with self._open(operation, wanted, made, functions.HcnCloseNamespace) as handle, undone:
                return self._properties(operation, handle, functions.HcnQueryNamespaceProperties)

        undo = partial(self._delete, operation, wanted, functions.HcnDeleteNamespace)
        return await self._workers.run(create, undo=lambda _: undo())

    async def create_endpoint(self, network_id: str, document: JSON) -> JSON:
        """Create an endpoint in a network; as :meth:`create_namespace`. HCN_E_NETWORK_NOT_FOUND."""
        operation, network = f"create endpoint in network {network_id}", guid(network_id, "a network id")
        wanted, settings = self._to_create(document, operation)
        functions = self._library.functions

        def create() -> JSON:
            opener, closer = functions.HcnOpenNetwork, functions.HcnCloseNetwork
            undone = self._deleted_on_failure(operation, wanted, functions.HcnDeleteEndpoint)
            with self._open(operation, network, opener, closer) as parent:

                def made(value: CData, out: CData, error: CData) -> int:
                    return functions.HcnCreateEndpoint(parent, value, settings, out, error)

                with self._open(operation, wanted, made, functions.HcnCloseEndpoint) as handle, undone:
                    return self._properties(operation, handle, functions.HcnQueryEndpointProperties)

        undo = partial(self._delete, operation, wanted, functions.HcnDeleteEndpoint)
        return await self._workers.run(create, undo=lambda _: undo())

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint. Does nothing if it does not exist."""
        wanted, operation = guid(endpoint_id, "an endpoint id"), f"delete endpoint {endpoint_id}"

        def delete() -> None:
            with tolerating(HResult.HCN_E_ENDPOINT_NOT_FOUND):
                self._delete(operation, wanted, self._library.functions.HcnDeleteEndpoint)

        await self._workers.run(delete)

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace. Does nothing if it does not exist."""
        wanted, operation = guid(namespace_id, _WHAT), f"delete namespace {namespace_id}"

        def delete() -> None:
            with tolerating(HResult.ERROR_NOT_FOUND):
                self._delete(operation, wanted, self._library.functions.HcnDeleteNamespace)

        await self._workers.run(delete)

    def _to_create(self, document: JSON, operation: str) -> tuple[UUID, CData]:
        """Return the id of what is to be created, a fresh one by default, and its document with that."""
        wanted = guid(document.get("ID") or str(uuid4()), "the ID of a document")
        return wanted, wide(self._library, compose({**document, "ID": str(wanted)}, operation))

    async def _change(self, namespace_id: str, endpoint_id: str, request_type: str) -> None:
        wanted = guid(namespace_id, _WHAT)
        operation = f"{request_type.lower()} endpoint {endpoint_id} of namespace {namespace_id}"
        request = {
            "ResourceType": "Endpoint",
            "RequestType": request_type,
            "Settings": {"EndpointId": endpoint_id},
        }
        settings = wide(self._library, compose(request, operation))

        def change() -> None:
            functions = self._library.functions
            opener, closer = functions.HcnOpenNamespace, functions.HcnCloseNamespace
            with self._open(operation, wanted, opener, closer) as handle:
                self._ask(operation, lambda error: functions.HcnModifyNamespace(handle, settings, error))

        await self._workers.run(change)

    # In a worker thread.

    def _namespace(self, wanted: UUID) -> JSON:
        functions, operation = self._library.functions, f"query namespace {wanted}"
        with self._open(operation, wanted, functions.HcnOpenNamespace, functions.HcnCloseNamespace) as handle:
            return self._properties(operation, handle, functions.HcnQueryNamespaceProperties)

    def _endpoint(self, wanted: UUID) -> JSON:
        functions, operation = self._library.functions, f"query endpoint {wanted}"
        with self._open(operation, wanted, functions.HcnOpenEndpoint, functions.HcnCloseEndpoint) as handle:
            return self._properties(operation, handle, functions.HcnQueryEndpointProperties)

    def _endpoint_by_name(self, name: str) -> JSON:
        operation = f"find endpoint {name}"
        query = wide(self._library, compose({**_QUERY, "Filter": json.dumps({"Name": name})}, operation))
        enumerate_endpoints = self._library.functions.HcnEnumerateEndpoints
        answer = self._answer(operation, lambda out, error: enumerate_endpoints(query, out, error))
        for each in parse_list(answer, operation, str):
            # It may have been deleted since it was listed.
            with tolerating(HResult.HCN_E_ENDPOINT_NOT_FOUND):
                document = self._endpoint(_listed_guid(each, operation))
                # An HCN without this filter lists all endpoints.
                if document.get("Name") == name:
                    return document
        raise HostError(operation, HResult.HCN_E_ENDPOINT_NOT_FOUND, "no endpoint has this name")

    def _properties(self, operation: str, handle: CData, query: NetworkQuery) -> JSON:
        text = wide(self._library, compose(_QUERY, operation))
        answer = self._answer(operation, lambda out, error: query(handle, text, out, error))
        return parse_object(answer, operation)

    @contextmanager
    def _open(
        self,
        operation: str,
        wanted: UUID,
        opener: Callable[[CData, CData, CData], int],
        closer: Callable[[CData], object],
    ) -> Iterator[CData]:
        value, out = self._value_of(wanted), self._library.ffi.new("void **")
        try:
            self._ask(operation, lambda error: opener(value, out, error))
            yield out[0]
        finally:
            # HCN may both return a handle and report an error.
            if out[0] != self._library.ffi.NULL:
                closer(out[0])

    @contextmanager
    def _deleted_on_failure(
        self, operation: str, wanted: UUID, function: Callable[[CData, CData], int]
    ) -> Iterator[None]:
        """Delete what was created again, if it cannot be returned."""
        try:
            yield
        except Exception as failure:
            try:
                self._delete(operation, wanted, function)
            except HostError as error:
                failure.add_note(f"and deleting {wanted} again failed: {error}")
            raise

    def _delete(self, operation: str, wanted: UUID, function: Callable[[CData, CData], int]) -> None:
        value = self._value_of(wanted)
        self._ask(operation, lambda error: function(value, error))

    def _answer(self, operation: str, call: Callable[[CData, CData], int]) -> str:
        out = self._library.ffi.new("PWSTR *")
        try:
            self._ask(operation, lambda error: call(out, error))
        finally:
            text = take(self._library, out[0])
        return text

    def _ask(self, operation: str, call: Callable[[CData], int]) -> None:
        error = self._library.ffi.new("PWSTR *")
        hresult = call(error)
        record = take(self._library, error[0])
        if record and hresult >= 0:
            # As in hcsshim: an error record means failure, whatever the HRESULT.
            raise refusal(operation, _code(record), record)
        check(operation, hresult, record)

    def _value_of(self, wanted: UUID) -> CData:
        value = self._library.ffi.new("GUID *")
        self._library.ffi.buffer(value)[:] = wanted.bytes_le
        return value


def _code(record: str) -> int:
    """Return the HRESULT in HCN's error record; E_FAIL if it has none."""
    try:
        code = json.loads(record)["ErrorCode"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return HResult.E_FAIL
    return code if isinstance(code, int) and code & 0x80000000 else HResult.E_FAIL


def _listed_guid(text: str, operation: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        problem = f"the host lists an endpoint {text!r}, which is no GUID"
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, problem) from None


def _endpoint_ids(namespace: JSON, operation: str) -> list[str]:
    try:
        data = [r["Data"] for r in namespace.get("Resources") or () if r.get("Type") == "Endpoint"]
        # HCN writes "Id"; hcsshim, which ignores case when reading, writes "ID".
        return [str(d["Id"] if "Id" in d else d["ID"]) for d in data]
    except (AttributeError, TypeError, KeyError) as e:
        raise HostError(
            operation, HResult.HCS_E_INVALID_JSON, f"the host's own list of resources: {e!r}"
        ) from None
