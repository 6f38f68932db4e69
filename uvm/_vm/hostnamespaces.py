"""Network namespaces that are created on the host, with the endpoints in them.

Source: hcsshim ``internal/hcsoci/network.go`` (``createNetworkNamespace``) and ``internal/uvm/network.go``
(``NetworkEndpoints``), which stops at the first error, and deletes no endpoints.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from functools import partial
from typing import Any

import anyio
from attrs import define, field

from uvm._arguments import items_of
from uvm._async import errors_of, opens
from uvm._buses.lease import Releasable
from uvm._checks import checked, choice, guid_of, instance, optional
from uvm._log import Log
from uvm._names import guid_key
from uvm._repr import brief_call
from uvm.backend import JSON, Backend
from uvm.errors import (
    AlreadyReleasedError,
    HostError,
    OptionsError,
    UnknownOutcomeError,
    is_refusal,
    together,
)
from uvm.hresult import HResult
from uvm.schema.json import to_json
from uvm.schema.network import HostComputeNamespace, SchemaVersion

_log = Log("uvm")

#: How long the host may take to delete what was created, also for a caller who is cancelled.
_GRACE_SECONDS = 10.0
_GONE = (HResult.ERROR_NOT_FOUND, HResult.HCN_E_ENDPOINT_NOT_FOUND)


@define(eq=False, repr=False)
class HostNamespace(Releasable):
    """A network namespace that was created on the host. It is released with the endpoints in it.

    It outlives VMs, and the process unless it is released.

    :ivar id: its id, a GUID, which ``vm.network.setup`` takes.
    """

    id: str
    _backend: Backend = field(repr=False)
    #: Those that may be in it, in order, and whether they were created for it.
    _endpoints: dict[str, bool] = field(factory=dict, init=False)
    _released: bool = field(default=False, init=False)
    #: One caller changes it at a time.
    _turn: anyio.Lock = field(factory=anyio.Lock, init=False, repr=False)

    __repr__ = brief_call

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The ids of the endpoints that were put into it, in order."""
        return tuple(self._endpoints)

    @property
    def released(self) -> bool:
        """Whether its release is complete."""
        return self._released

    async def add_endpoint(self, endpoint_id: str) -> None:
        """Put an endpoint of the host into it; its release takes the endpoint out again.

        :raises AlreadyReleasedError: it was released before.
        :raises HostError: the host refused: there is no such endpoint, or it is in a namespace.
        :raises UnknownOutcomeError: the answer was lost; the release takes it out, if it is there.
        """
        await self._put(guid_of(endpoint_id, "the id of an endpoint"), None, {})

    async def create_endpoint(self, network_id: str, document: Mapping[str, Any] | None = None) -> str:
        """Create an endpoint in it, and return its id; its release deletes the endpoint.

        If that fails, it is deleted again.

        :param network_id: the HCN network in which it is.
        :param document: its HCN document; it has the schema version 2.0, and a fresh id unless it says one.
        :raises AlreadyReleasedError: it was released before.
        :raises HostError: the host refused; one of that id is there.
        :raises UnknownOutcomeError: the answer was lost.
        """
        checked(document, optional(instance(Mapping)), "document")
        asked = {"SchemaVersion": {"Major": 2, "Minor": 0}, **(document or {})}
        given = asked.get("ID")
        asked["ID"] = guid_of(given or self._backend.new_id(), "the id of an endpoint")
        if given:
            self._check_held()
            what = f"create the endpoint {given}"
            await _refuse_if_there(self._backend.network.endpoint(asked["ID"]), what)
        await self._put(asked["ID"], network_id, asked)
        endpoint_id: str = asked["ID"]
        return endpoint_id

    async def release(self) -> None:
        """Take its endpoints out, delete those that were created for it, and then itself.

        What is gone already is no error. If the host refuses some of it, the rest is done all the same, and a
        further release goes on with what is left. A second release waits for the first. A caller who is
        cancelled waits for it, for 10 s at most.

        :raises AlreadyReleasedError: a release of it has succeeded before.
        :raises HostError: the host refused.
        :raises UnknownOutcomeError: the host did not answer.
        """
        self._check_held()
        failures: list[Exception] = []

        async def delete() -> None:
            try:
                await self._delete()
            except Exception as error:
                failures.append(error)

        try:
            # A task of its own: asyncio cancels its caller in spite of any shield.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(delete)
        finally:
            for failure in failures:
                # It outlives the process, and a caller who is cancelled may not see the error.
                _log.warning(None, "%r is still on the host: %s", self, failure, operation="delete namespace")
                raise failure

    async def _delete(self) -> None:
        errors: list[Exception] = []
        with anyio.move_on_after(_GRACE_SECONDS, shield=True) as scope:
            async with self._turn:
                if self._released:
                    return
                for endpoint_id in reversed(self.endpoints):
                    errors += await errors_of([partial(self._remove, endpoint_id)])
                errors += await errors_of([partial(self._backend.network.delete_namespace, self.id)])
                self._released = not errors
        if scope.cancelled_caught:
            errors.append(UnknownOutcomeError(f"the host did not answer within {_GRACE_SECONDS:g} s"))
        if errors:
            raise together(f"deleting the network namespace {self.id}", errors)

    async def _put(self, endpoint_id: str, network_id: str | None, document: JSON) -> None:
        async with self._turn:
            await self._create_in(endpoint_id, network_id, document)

    async def _create_in(self, endpoint_id: str, network_id: str | None, document: JSON) -> None:
        """Note an endpoint, create it if it is to be, and put it into the namespace."""
        self._check_held()
        if guid_key(endpoint_id) in map(guid_key, self._endpoints):
            raise OptionsError(f"the endpoint {endpoint_id} is in the network namespace {self.id} already")
        self._endpoints[endpoint_id] = made = False
        network = self._backend.network
        try:
            if network_id is not None:
                await network.create_endpoint(network_id, document)
                self._endpoints[endpoint_id] = made = True
            await network.add_namespace_endpoint(self.id, endpoint_id)
        except BaseException as failure:
            if is_refusal(failure) and not made:
                del self._endpoints[endpoint_id]
            elif network_id is not None:
                self._endpoints[endpoint_id] = True
                with anyio.move_on_after(_GRACE_SECONDS, shield=True):
                    for error in await errors_of([partial(self._remove, endpoint_id)]):
                        failure.add_note(f"and deleting the endpoint {endpoint_id} again failed: {error}")
            raise

    async def _remove(self, endpoint_id: str) -> None:
        network = self._backend.network
        try:
            await network.remove_namespace_endpoint(self.id, endpoint_id)
        except HostError as error:
            if error.hresult not in _GONE:
                raise
        if self._endpoints[endpoint_id]:
            await network.delete_endpoint(endpoint_id)
        del self._endpoints[endpoint_id]

    def _check_held(self) -> None:
        if self._released:
            raise AlreadyReleasedError(f"the network namespace {self.id} was released before")


@opens
async def create_namespace(
    backend: Backend, *, id: str = "", type: str = "", endpoints: Iterable[str] = ()
) -> HostNamespace:
    """Create a network namespace on the host. Await it, or enter it, and leaving it releases it.

    If it fails, or the caller is cancelled, it is deleted again.

    :param id: its id; a fresh GUID by default.
    :param type: ``Host``, ``HostDefault``, ``Guest`` or ``GuestDefault``; HCN chooses by default.
    :param endpoints: the ids of endpoints of the host to put into it.
    :raises OptionsError: an argument is of the wrong kind; nothing was sent.
    :raises HostError: the host refused; one of that id is there.
    :raises UnknownOutcomeError: the answer was lost.
    """
    checked(type, choice("", "Host", "HostDefault", "Guest", "GuestDefault"), "type")
    wanted = [guid_of(each, "the id of an endpoint") for each in items_of(endpoints, "endpoints")]
    namespace = HostNamespace(guid_of(id or backend.new_id(), "the id of a namespace"), backend)
    document = HostComputeNamespace(id=namespace.id, type=type, schema_version=SchemaVersion(major=2))
    if id:
        await _refuse_if_there(
            backend.network.namespace(namespace.id), f"create the namespace {namespace.id}"
        )
    made = False
    try:
        await backend.network.create_namespace(to_json(document))
        made = True
        for each in wanted:
            await namespace.add_endpoint(each)
    except BaseException as failure:
        # What the host refused to create may be another's.
        if made or not is_refusal(failure):
            for error in await errors_of([namespace.release]):
                failure.add_note(f"and deleting it again failed: {error}")
        raise
    return namespace


async def _refuse_if_there(found: Awaitable[JSON], operation: str) -> None:
    """Refuse an id that is in use before anything is done: what may have been created is deleted by its id.

    :raises HostError: ERROR_ALREADY_EXISTS.
    """
    try:
        await found
    except HostError as error:
        if error.hresult not in _GONE:
            raise
    else:
        raise HostError(operation, HResult.ERROR_ALREADY_EXISTS, "it is another's; nothing was created")
