"""Guests that are not reached over our own connection: through HCS, which relays, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import Factory, define, evolve

from uvm._async import opens
from uvm._guest.access import GuestFeatures
from uvm._guest.container import Container
from uvm._guest.process import Launch, Process
from uvm._guest.run import GuestHost
from uvm._hcsguest.access import RelayAccess
from uvm._hcsguest.container import create_relayed
from uvm._hcsguest.process import start_relayed
from uvm.backend import JSON
from uvm.errors import HostError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.container import HostedSystem
from uvm.schema.gcs import LinuxHostedSystem
from uvm.schema.json import to_json
from uvm.schema.requests import ModificationRequest

T = TypeVar("T")


class RelayGuest(GuestHost):
    """A :class:`~uvm.backend.Guest` behind HCS's own connection to it.

    Each guest request goes alone, without a ``ResourcePath``, so that what the host did and what the guest
    did are distinguished when one of them refuses.

    :ivar capabilities: what the guest said of itself.
    :ivar features: what of that uvm knows of.
    :ivar protocol_version: the version of the protocol that HCS and the guest speak; 0 if HCS does not say.
    """

    def __init__(
        self, access: RelayAccess, capabilities: Mapping[str, Any], protocol_version: int = 0
    ) -> None:
        self.protocol_version = protocol_version
        self.features = GuestFeatures.of(capabilities)
        self.capabilities = capabilities
        self._guest: RelayAccess = evolve(access, features=self.features)

    def __repr__(self) -> str:
        return f"<RelayGuest of {self._guest.name}>"

    @classmethod
    async def connect(cls, access: RelayAccess) -> RelayGuest:
        """Ask HCS about its connection to the guest (``GuestConnectionInfo``).

        :raises HostError: HCS refused; HCS_E_PROTOCOL_ERROR if what the guest says of itself cannot be read.
        """
        said = await access.system.properties("GuestConnection")
        info = _said(access, said, "GuestConnectionInfo", dict[str, Any]())
        capabilities = _said(access, info, "GuestDefinedCapabilities", dict[str, Any]())
        return cls(access, capabilities, _said(access, info, "ProtocolVersion", 0))

    async def modify(self, request: JSON | ModificationRequest) -> None:
        """Have HCS relay one request; HostError with the guest's code where the guest refuses."""
        await self._guest.system.modify({"GuestRequest": _as_json(request)})

    def close(self) -> None:
        """Nothing is ours to close."""

    @opens
    async def create_container(
        self, container_id: str, document: LinuxHostedSystem | HostedSystem | Mapping[str, Any]
    ) -> Container:
        """Have HCS create a container in the guest. It is not started. Await it, or enter it.

        See :func:`uvm._hcsguest.container.create_relayed`.
        """
        access = self._guest
        return await access.call(access.ask(create_relayed(access, container_id, document)))

    async def _launch(self, launch: Launch) -> Process:
        return await self._guest.ask(start_relayed(self._guest, launch))


@define(eq=False, repr=False)
class NoGuest:
    """The guest of a VM that was created with ``use_guest_connection=False``: it cannot be asked."""

    vm_id: str
    capabilities: Mapping[str, Any] = Factory(dict)

    async def modify(self, request: JSON | ModificationRequest) -> None:
        """Refuse the request.

        :raises NotSupportedError: always.
        """
        asked = _as_json(request)
        raise NotSupportedError(
            f"{self.vm_id}: {asked.get('RequestType')} {asked.get('ResourceType')}: the VM was created "
            "with use_guest_connection=False, so its guest cannot be asked"
        )

    def close(self) -> None:
        """Nothing is there to close."""


def _said(access: RelayAccess, said: Mapping[str, Any], name: str, default: T) -> T:
    """Return what HCS says of its connection to a guest, of the kind of the default if it says nothing."""
    value = said.get(name)
    if value is None:
        return default
    if isinstance(value, type(default)):
        return value
    raise HostError(
        f"ask about the guest of {access.name}",
        HResult.HCS_E_PROTOCOL_ERROR,
        f"{name} is of another type: {str(value)[:200]}",
    )


def _as_json(request: JSON | ModificationRequest) -> JSON:
    return to_json(request) if isinstance(request, ModificationRequest) else request
