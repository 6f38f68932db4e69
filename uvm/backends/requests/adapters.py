"""Requests for network adapters."""

from __future__ import annotations

import re
from typing import Final

from uvm.backends.requests.request import Request
from uvm.hresult import HResult
from uvm.schema.devices import INTERRUPT_MODERATION, NetworkAdapter
from uvm.schema.requests import VirtualAdapter

_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([-:][0-9A-Fa-f]{2}){5}")


def checked(request: Request[VirtualAdapter]) -> NetworkAdapter:
    """Return the adapter that a request describes.

    :raises HostError: there is none such: HCS_E_INVALID_JSON, or E_INVALIDARG.
    """
    settings = request.parse(NetworkAdapter)
    if settings.mac_address and _MAC.fullmatch(settings.mac_address) is None:
        raise request.invalid(f"MacAddress is {settings.mac_address!r}")
    return settings


def changed(request: Request[VirtualAdapter], before: NetworkAdapter) -> NetworkAdapter:
    """Return what a request makes of an adapter, of which only the SR-IOV settings can change.

    :raises HostError: it changes something else, or to what is not known: E_INVALIDARG, HCS_E_INVALID_JSON.
    """
    settings = request.parse(NetworkAdapter)
    if settings != before.replaced(iov_settings=settings.iov_settings):
        raise request.invalid("only the SR-IOV settings of an adapter can change")
    moderation = settings.iov_settings and settings.iov_settings.interrupt_moderation
    if moderation is not None and moderation not in INTERRUPT_MODERATION.values():
        raise request.refuse(HResult.HCS_E_INVALID_JSON, f"InterruptModeration is {moderation!r}")
    return settings
