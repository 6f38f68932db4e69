"""Guests that are not reached over our own connection: through HCS, which relays, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, define

from uvm.backends.base import JSON, System
from uvm.errors import NotSupportedError

__all__ = ["NoGuest", "RelayGuest"]


@define(eq=False)
class RelayGuest:
    """A :class:`~uvm.backends.base.Guest` behind HCS's own connection to it.

    Each guest request goes alone, without a ``ResourcePath``, so that what the host did and what the guest
    did are told apart when one of them refuses.
    """

    system: System
    capabilities: Mapping[str, Any]

    @classmethod
    async def connect(cls, system: System) -> RelayGuest:
        """Ask HCS about its connection to the guest (``GuestConnectionInfo``)."""
        properties = await system.properties("GuestConnection")
        info = properties.get("GuestConnectionInfo") or {}
        return cls(system, info.get("GuestDefinedCapabilities") or {})

    async def modify(self, request: JSON) -> None:
        """Have HCS relay one request; HostError with the guest's code where the guest refuses."""
        await self.system.modify({"GuestRequest": request})

    def close(self) -> None:
        """Nothing is ours to close."""


@define(eq=False)
class NoGuest:
    """The guest of a VM that was created with ``use_guest_connection=False``: nobody to talk to."""

    vm_id: str
    capabilities: Mapping[str, Any] = Factory(dict)

    async def modify(self, request: JSON) -> None:
        """Refuse the request.

        :raises NotSupportedError: always.
        """
        raise NotSupportedError(
            f"{self.vm_id}: {request.get('RequestType')} {request.get('ResourceType')}: the VM was created "
            "with use_guest_connection=False, so its guest cannot be asked"
        )

    def close(self) -> None:
        """Nothing is there to close."""
