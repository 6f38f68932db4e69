"""Requests for network adapters."""

from __future__ import annotations

import re
from typing import Final

from uvm.backends.requests.request import Request
from uvm.schema.devices import NetworkAdapter
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
