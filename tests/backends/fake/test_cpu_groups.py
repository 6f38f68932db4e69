"""The CPU groups of the fake host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backends.fake.support import JSON, SERVICE, expect_refusal, host_files, lcow, running
from uvm.backend import HostInfo
from uvm.backends.fake import Checks, FakeBackend
from uvm.hresult import HResult
from uvm.schema.guest import NULL_GUID
from uvm.schema.requests import CpuGroupAssignment

pytestmark = pytest.mark.anyio

OTHER = "11111111-2222-3333-4444-666666666666"


def change(operation: str, **details: Any) -> JSON:
    """The request that creates or deletes a group."""
    return {
        "PropertyType": "CpuGroup",
        "Settings": {"Operation": operation, "OperationDetails": details},
    }


def create_group(group: str, processors: list[int], count: int | None = None) -> JSON:
    """The request that creates a group of some processors."""
    count = len(processors) if count is None else count
    return change("CreateGroup", GroupId=group, LogicalProcessorCount=count, LogicalProcessors=processors)


def described(group: str, processors: list[int]) -> JSON:
    """What the host says of a group."""
    affinity = {"LogicalProcessorCount": len(processors), "LogicalProcessors": processors}
    return {"GroupId": group, "Affinity": affinity}


def move(group: str) -> JSON:
    """The request that moves a VM into a group."""
    return {"ResourcePath": CpuGroupAssignment.PATH, "Settings": {"Id": group}}


async def groups_of(backend: FakeBackend) -> list[JSON]:
    [found] = (await backend.service_properties("CpuGroup"))["Properties"]
    groups: list[JSON] = found["CpuGroups"]
    return groups


async def test_groups_are_listed_from_their_creation_to_their_deletion() -> None:
    backend = FakeBackend()
    await backend.modify_service(create_group(SERVICE, [2, 0]))
    await backend.modify_service(create_group(OTHER, [0]))
    assert await groups_of(backend) == [described(SERVICE, [0, 2]), described(OTHER, [0])]
    await backend.modify_service(change("DeleteGroup", GroupId=SERVICE.upper()))
    assert await groups_of(backend) == [described(OTHER, [0])]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"PropertyType": "Weather"}, HResult.HCS_E_INVALID_JSON),
        ({"PropertyType": "CpuGroup", "Settings": []}, HResult.HCS_E_INVALID_JSON),
        ({"PropertyType": "CpuGroup", "Other": 1}, HResult.HCS_E_INVALID_JSON),
        (change("SetProperty"), HResult.HCS_E_INVALID_JSON),
        (change("CreateGroup", Group=SERVICE), HResult.HCS_E_INVALID_JSON),
        (create_group("mine", [0]), HResult.E_INVALIDARG),
        (create_group(NULL_GUID, [0]), HResult.E_INVALIDARG),
        (create_group(OTHER, []), HResult.E_INVALIDARG),
        (create_group(OTHER, [0], 2), HResult.E_INVALIDARG),
        (create_group(OTHER, [0, 0]), HResult.E_INVALIDARG),
        (create_group(OTHER, [4]), HResult.E_INVALIDARG),
        (create_group(SERVICE.upper(), [1]), HResult.ERROR_ALREADY_EXISTS),
        (change("DeleteGroup", GroupId=OTHER), HResult.ERROR_HV_INVALID_CPU_GROUP_ID),
    ],
)
async def test_what_is_no_group_is_refused_and_changes_nothing(request_: JSON, code: HResult) -> None:
    backend = FakeBackend(host=HostInfo(processors=4))
    await backend.modify_service(create_group(SERVICE, [0]))
    before = await groups_of(backend)
    with expect_refusal(code):
        await backend.modify_service(request_)
    assert await groups_of(backend) == before


async def test_a_group_is_deleted_once_no_vm_is_in_it() -> None:
    backend = FakeBackend(files=host_files())
    await backend.modify_service(create_group(SERVICE, [0]))
    delete = change("DeleteGroup", GroupId=SERVICE)
    async with running(backend=backend) as system:
        await system.modify(move(SERVICE))
        with expect_refusal(HResult.ERROR_HV_INVALID_CPU_GROUP_STATE):
            await backend.modify_service(delete)
        await system.modify(move(NULL_GUID))
        await system.modify(move(SERVICE))
        await system.terminate()
        await backend.modify_service(delete)
    assert await groups_of(backend) == []


async def test_a_vm_is_in_groups_that_exist() -> None:
    document = lcow()
    document["VirtualMachine"]["ComputeTopology"]["Processor"]["CpuGroup"] = {"Id": SERVICE}
    async with running() as system:
        with expect_refusal(HResult.ERROR_HV_INVALID_CPU_GROUP_ID):
            await system.modify(move(SERVICE))
    with expect_refusal(HResult.ERROR_HV_INVALID_CPU_GROUP_ID):
        await FakeBackend(files=host_files()).create("vm1", document)
    await FakeBackend(files=host_files(), checks=Checks(cpu_groups=False)).create("vm1", document)
