"""The CPU groups of a host: processors that the VMs of a group share (hcsshim ``internal/cpugroup``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio
from attrs import frozen

from uvm._arguments import items_of
from uvm._checks import checked, each, guid_of, whole
from uvm._repr import Value
from uvm.backend import Backend
from uvm.errors import HostError, OptionsError, is_refusal
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json, to_json
from uvm.schema.properties import PROPERTY_CPU_GROUP
from uvm.schema.requests import (
    CpuGroupConfigurations,
    CreateGroupOperation,
    DeleteGroupOperation,
    HostProcessorModificationRequest,
    ServiceSettingRequest,
)

#: How long a caller that was cancelled waits for a group, whose creation it asked for, to be deleted.
_GRACE_SECONDS = 10.0


@frozen(repr=False)
class CPUGroup(Value):
    """A CPU group of the host, which VMs are moved into (``CpuGroupConfig`` of the HCS schema).

    :ivar id: its GUID, which the option ``cpu_group_id`` and ``UtilityVM.set_cpu_group`` take.
    :ivar processors: the indexes of its logical processors on the host, in order.
    """

    id: str
    processors: tuple[int, ...]


async def cpu_groups(backend: Backend) -> tuple[CPUGroup, ...]:
    """Return the CPU groups of the host.

    :raises HostError: the host refused.
    :raises SchemaError: what it answered is no list of groups.
    """
    answer = await backend.service_properties(PROPERTY_CPU_GROUP)
    properties = answer.get("Properties")
    if not isinstance(properties, list) or len(properties) != 1:
        raise SchemaError("Properties should have the CPU groups alone")
    found = from_json(CpuGroupConfigurations, properties[0]).cpu_groups
    return tuple(
        CPUGroup(each.group_id, tuple(each.affinity.logical_processors if each.affinity else ()))
        for each in found
    )


async def create_cpu_group(backend: Backend, processors: Iterable[int]) -> CPUGroup:
    """Create a CPU group of some logical processors of the host, under a fresh id.

    It stays until :func:`delete_cpu_group`, and outlives the process. If the outcome is unknown, or the
    caller is cancelled, it is deleted again.

    :param processors: their indexes, from 0.
    :raises OptionsError: there are none, one is there twice, or the host does not have it; nothing was sent.
    :raises HostError: the host refused.
    :raises UnknownOutcomeError: the answer was lost; if a note does not say otherwise, there is no group.
    """
    given = checked(tuple(items_of(processors, "processors")), each(whole((1 << 32) - 1)), "processors")
    host = await backend.host()
    if not given or len({*given}) < len(given) or max(given) >= host.processors:
        raise OptionsError(
            f"a CPU group has one or more of the processors 0 to {host.processors - 1} of the host, each "
            f"once, not {given}; nothing was sent"
        )
    group = CPUGroup(backend.new_id(), tuple(sorted(given)))
    details = CreateGroupOperation(
        group_id=group.id, logical_processor_count=len(given), logical_processors=[*group.processors]
    )
    try:
        await _modify(backend, "CreateGroup", details)
    except BaseException as failure:
        if not is_refusal(failure):
            with anyio.move_on_after(_GRACE_SECONDS, shield=True):
                await _delete_again(backend, group, failure)
        raise
    return group


async def _delete_again(backend: Backend, group: CPUGroup, failure: BaseException) -> None:
    try:
        await delete_cpu_group(backend, group.id)
    except Exception as error:
        if not (isinstance(error, HostError) and error.hresult == HResult.ERROR_HV_INVALID_CPU_GROUP_ID):
            failure.add_note(f"and deleting CPU group {group.id} failed: {error}; it may exist")


async def delete_cpu_group(backend: Backend, group_id: str) -> None:
    """Delete a CPU group of the host; no VM may be in it.

    :raises OptionsError: it is no GUID; nothing was sent.
    :raises HostError: the host refused: there is no such group, or VMs are in it.
    """
    await _modify(backend, "DeleteGroup", DeleteGroupOperation(group_id=guid_of(group_id, "a CPU group id")))


async def _modify(backend: Backend, operation: str, details: Any) -> None:
    change = HostProcessorModificationRequest(operation=operation, operation_details=details)
    await backend.modify_service(
        to_json(ServiceSettingRequest(property_type=PROPERTY_CPU_GROUP, settings=change))
    )
