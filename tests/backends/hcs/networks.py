"""HCN's calls, carried out on the networks of the fake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from tests.backends.hcs.documents import read, write
from tests.backends.hcs.double.control import Answer, Question
from uvm.backend import JSON
from uvm.backends.fake import FakeNetwork
from uvm.errors import HostError
from uvm.hresult import HResult

__all__ = ["Networks"]


class Networks:
    """The namespaces and endpoints that the library has open.

    :ivar handlers: carries out each call.
    """

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._opened: dict[int, JSON] = {}
        self.handlers: Mapping[str, Callable[[Question], Awaitable[Answer]]] = {
            "HcnOpenNetwork": self._open_network,
            "HcnCloseNetwork": self._close,
            "HcnCreateNamespace": self._create_namespace,
            "HcnOpenNamespace": self._open_namespace,
            "HcnModifyNamespace": self._modify_namespace,
            "HcnQueryNamespaceProperties": self._query_namespace,
            "HcnDeleteNamespace": self._delete_namespace,
            "HcnCloseNamespace": self._close,
            "HcnEnumerateEndpoints": self._enumerate_endpoints,
            "HcnCreateEndpoint": self._create_endpoint,
            "HcnOpenEndpoint": self._open_endpoint,
            "HcnQueryEndpointProperties": self._query_endpoint,
            "HcnDeleteEndpoint": self._delete_endpoint,
            "HcnCloseEndpoint": self._close,
        }

    async def _open_network(self, question: Question) -> Answer:
        self._opened[question.object] = await self._network.network(question.subject)
        return Answer()

    async def _create_namespace(self, question: Question) -> Answer:
        document = _under_its_id(question)
        self._opened[question.object] = await self._network.create_namespace(document)
        return Answer()

    async def _create_endpoint(self, question: Question) -> Answer:
        network_id, document = self._opened[question.parent]["ID"], _under_its_id(question)
        self._opened[question.object] = await self._network.create_endpoint(network_id, document)
        return Answer()

    async def _delete_endpoint(self, question: Question) -> Answer:
        await self._network.delete_endpoint(question.subject)
        return Answer()

    async def _open_namespace(self, question: Question) -> Answer:
        self._opened[question.object] = await self._network.namespace(question.subject)
        return Answer()

    async def _modify_namespace(self, question: Question) -> Answer:
        namespace_id = self._opened[question.object]["ID"]
        request = read(question.document)
        changes = {
            "Add": self._network.add_namespace_endpoint,
            "Remove": self._network.remove_namespace_endpoint,
        }
        change = changes.get(request["RequestType"])
        if request["ResourceType"] != "Endpoint" or change is None:
            raise HostError("modify namespace", HResult.ERROR_NOT_SUPPORTED, question.document)
        await change(namespace_id, request["Settings"]["EndpointId"])
        return Answer()

    async def _query_namespace(self, question: Question) -> Answer:
        """Answer with the document as it was on opening, and the current endpoints."""
        namespace = self._opened[question.object]
        members = await self._network.namespace_endpoints(namespace["ID"])
        resources = [{"Type": "Endpoint", "Data": {"Id": each["ID"]}} for each in members]
        return Answer(document=write({**namespace, "Resources": resources} if resources else namespace))

    async def _delete_namespace(self, question: Question) -> Answer:
        await self._network.delete_namespace(question.subject)
        return Answer()

    async def _enumerate_endpoints(self, question: Question) -> Answer:
        """Return the endpoint of a name: the only filter that the library uses."""
        filters = read((read(question.document) or {}).get("Filter") or "{}")
        if set(filters) != {"Name"}:
            raise HostError("enumerate endpoints", HResult.ERROR_NOT_SUPPORTED, question.document)
        try:
            found = [(await self._network.endpoint(filters["Name"]))["ID"]]
        except HostError:
            found = []
        return Answer(document=write(found))

    async def _open_endpoint(self, question: Question) -> Answer:
        self._opened[question.object] = await self._network.endpoint(question.subject)
        return Answer()

    async def _query_endpoint(self, question: Question) -> Answer:
        return Answer(document=write(self._opened[question.object]))

    async def _close(self, question: Question) -> Answer:
        self._opened.pop(question.object, None)
        return Answer()


def _under_its_id(question: Question) -> JSON:
    """Return the document of what is created, whose id the call names as well."""
    document: JSON = read(question.document)
    if document["ID"] != question.subject:
        raise HostError("create", HResult.E_INVALIDARG, question.document)
    return document
