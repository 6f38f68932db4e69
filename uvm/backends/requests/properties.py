"""Properties of VMs: where an answer has them, and what each backend says alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from uvm.backend import JSON
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema import properties as schema
from uvm.schema.common import MIB, PAGE_BYTES

#: The field of an answer that holds a property; those that have none are responses only.
_FIELDS: Final = {
    schema.PROPERTY_MEMORY: "Memory",
    schema.PROPERTY_STATISTICS: "Statistics",
    schema.PROPERTY_GUEST_CONNECTION: "GuestConnectionInfo",
    schema.PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED: "TerminateOnLastHandleClosed",
    schema.PROPERTY_SYSTEM_GUID: "SystemGUID",
}


def answer(
    summary: JSON, values: Mapping[str, Any], types: Collection[str], queries: Collection[str]
) -> JSON:
    """Return the answer to a query, on top of the summary.

    :param values: what is asked for, by type.
    :param queries: those that are answered in ``PropertyResponses``, as are `types` that have no field.
    """
    fields = {_FIELDS[name]: value for name, value in values.items() if name in types and name in _FIELDS}
    responses = {
        name: {"Response": value} for name, value in values.items() if name in queries or name not in _FIELDS
    }
    return summary | fields | ({"PropertyResponses": responses} if responses else {})


def unknown(operation: str, name: str) -> HostError:
    """Return the error of a query for a type that is not known."""
    return HostError(operation, HResult.HCS_E_INVALID_JSON, f"unknown property {name!r}")


def memory(
    size_bytes: int, used_bytes: int, assigned_pages: int, processors: int
) -> schema.MemoryInformationForVm:
    """Return the memory of a VM with one node.

    :param assigned_pages: what it has of the host's.
    """
    whole = schema.VmMemory(
        available_memory=max(0, size_bytes - used_bytes) // MIB,
        reserved_memory=size_bytes // PAGE_BYTES,
        assigned_memory=assigned_pages,
    )
    node = schema.VirtualNodeInfo(virtual_processor_count=processors, memory_usage_in_pages=assigned_pages)
    return schema.MemoryInformationForVm(
        virtual_node_count=1, virtual_machine_memory=whole, virtual_nodes=[node]
    )
