"""Requests for memory and processors."""

from __future__ import annotations

from typing import Final

from uvm.backends.requests.request import Request
from uvm.hresult import HResult
from uvm.schema.requests import ProcessorLimits, Resource

#: A limit or reservation of all of a processor, in 1/100,000.
FULL: Final = 100_000
_MAXIMUM_WEIGHT: Final = 10_000


def memory_mb(request: Request[Resource], host_mb: int) -> int:
    """Return the size of the memory that a request asks for.

    :param host_mb: the memory of the host.
    :raises HostError: HCS_E_INVALID_JSON, E_INVALIDARG, or ERROR_NO_SYSTEM_RESOURCES: the host has less.
    """
    size = request.settings
    if type(size) is not int:
        raise request.refuse(HResult.HCS_E_INVALID_JSON, "the size is a whole number of MB")
    # hcsshim's NormalizeMemorySize: the platform takes even sizes only.
    if size <= 0 or size % 2:
        raise request.invalid(f"a memory size is even and more than 0, not {size} MB")
    if size > host_mb:
        raise request.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, f"the host has {host_mb} MB")
    return size


def limits(request: Request[Resource]) -> ProcessorLimits:
    """Return the limits of the processors that a request asks for.

    :raises HostError: HCS_E_INVALID_JSON, or E_INVALIDARG.
    """
    asked = request.parse(ProcessorLimits)
    if not (0 <= asked.limit <= FULL and 0 <= asked.reservation <= FULL):
        raise request.invalid(f"Limit and Reservation are at most {FULL}")
    if not 0 <= asked.weight <= _MAXIMUM_WEIGHT:
        raise request.invalid(f"Weight is at most {_MAXIMUM_WEIGHT}")
    return asked
