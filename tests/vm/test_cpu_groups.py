"""CPU groups of the host: created, listed, deleted; what fails or is cancelled leaves none behind."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import uvm
from tests.vm.support import host_backend, running
from uvm.errors import HostError, OptionsError, UnknownOutcomeError

pytestmark = pytest.mark.anyio


async def test_a_group_lives_from_its_creation_to_its_deletion() -> None:
    backend = host_backend()
    group = await uvm.create_cpu_group(backend, [3, 1])
    assert group.processors == (1, 3)
    other = await uvm.create_cpu_group(backend, range(2))
    assert await uvm.cpu_groups(backend) == (group, other)
    await uvm.delete_cpu_group(backend, "{" + group.id + "}")
    assert await uvm.cpu_groups(backend) == (other,)


@pytest.mark.parametrize("processors", [[], [0, 0], [8], [-1], ["0"], [True], 1, "01"])
async def test_what_are_no_processors_of_the_host_is_refused_before_anything_is_sent(processors: Any) -> None:
    backend = host_backend()
    with pytest.raises(OptionsError, match="processors"):
        await uvm.create_cpu_group(backend, processors)
    assert not [entry for entry in backend.request_log if entry.to == "host"]


async def test_a_group_that_vms_are_in_is_not_deleted() -> None:
    async with running() as run:
        group = await uvm.create_cpu_group(run.backend, [0])
        await run.vm.set_cpu_group(group.id)
        with pytest.raises(HostError, match="ERROR_HV_INVALID_CPU_GROUP_STATE"):
            await uvm.delete_cpu_group(run.backend, group.id)
        await run.vm.release_cpu_group()
        await uvm.delete_cpu_group(run.backend, group.id)


@pytest.mark.parametrize("applied", [True, False])
async def test_a_creation_whose_answer_is_lost_leaves_no_group(applied: bool) -> None:
    backend = host_backend()
    backend.faults.lose(operation="modify service", applied=applied, nth=1)
    with pytest.raises(UnknownOutcomeError) as caught:
        await uvm.create_cpu_group(backend, [0])
    assert not getattr(caught.value, "__notes__", [])
    assert await uvm.cpu_groups(backend) == ()


async def test_a_group_that_could_not_be_deleted_again_is_named() -> None:
    backend = host_backend()
    backend.faults.lose(operation="modify service", applied=True, nth=1)
    backend.faults.refuse(operation="modify service", nth=2)
    with pytest.raises(UnknownOutcomeError) as caught:
        await uvm.create_cpu_group(backend, [0])
    [left] = await uvm.cpu_groups(backend)
    assert any(left.id in note for note in caught.value.__notes__)


async def test_a_creation_that_is_refused_sends_nothing_else() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="modify service")
    with pytest.raises(HostError, match="E_FAIL"):
        await uvm.create_cpu_group(backend, [0])
    assert len([entry for entry in backend.request_log if entry.call.operation == "modify service"]) == 1


async def test_a_cancelled_creation_leaves_no_group() -> None:
    backend = host_backend()
    gate = backend.faults.hold(operation="modify service", nth=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(uvm.create_cpu_group, backend, [0])
        await gate.wait()
        tasks.cancel_scope.cancel()
    assert await uvm.cpu_groups(backend) == ()


@pytest.mark.parametrize("answer", [{}, {"Properties": []}, {"Properties": [{"CpuGroups": 1}]}])
async def test_what_is_no_list_of_groups_is_an_error(answer: Any, monkeypatch: Any) -> None:
    backend = host_backend()

    async def answered(*types: str) -> Any:
        return answer

    monkeypatch.setattr(backend, "service_properties", answered)
    with pytest.raises(uvm.SchemaError):
        await uvm.cpu_groups(backend)
