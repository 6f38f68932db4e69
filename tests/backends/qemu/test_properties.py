"""Properties of a VM, in HCS's shapes, from figures of QEMU and of its process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from tests.backends.qemu.machine import ScriptedMachine, rig
from uvm.backend import JSON, HostInfo
from uvm.backends.qemu.properties import Usage, query, service_property
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import from_json
from uvm.schema.properties import Properties

pytestmark = pytest.mark.anyio

_INFO = HostInfo(paths="posix", processors=3)


@define
class _VM(ScriptedMachine):
    """A VM whose QEMU is the process of the tests."""

    state: str = "Running"
    pid: int = os.getpid()
    runtime_id: str = "aaaaaaaa-0000-0000-0000-000000000001"
    ends_with_last_handle: bool = True
    devices: Any = None

    @property
    def monitor(self) -> ScriptedMachine:
        return self

    def summary(self) -> JSON:
        return {"Id": self.id, "State": self.state}

    def require(self, operation: str, *states: Any) -> None:
        if self.state not in states:
            raise HostError(operation, HResult.HCS_E_INVALID_STATE)

    async def guest_connection(self) -> JSON:
        return {"ProtocolVersion": 4}

    async def ask(self, *args: Any, **kwargs: Any) -> Any:
        await ScriptedMachine.ask(self, *args, **kwargs)
        return [
            {"qdev": "disk-0-0", "stats": {"rd_bytes": 8193, "wr_bytes": 512}},
            {"qdev": "disk-0-1", "stats": {"rd_bytes": 4096}},
            {"node-name": "disk-0-0", "stats": {"rd_bytes": 8193}},
        ]


async def _query(tmp_path: Path, vm: Any, *types: str, queries: tuple[str, ...] = ()) -> JSON:
    vm.devices = (await rig(tmp_path)).tree
    return await query(vm, _INFO, types, queries)


async def test_without_types_there_is_the_summary(tmp_path: Path) -> None:
    assert await _query(tmp_path, _VM()) == {"Id": "vm1", "State": "Running"}


async def test_statistics_are_those_of_the_process_and_of_what_the_guest_read(tmp_path: Path) -> None:
    found = from_json(Properties, await _query(tmp_path, _VM(), "Statistics")).statistics
    assert found is not None
    assert found.processor is not None
    assert found.memory is not None
    assert found.storage is not None
    parts = found.processor.runtime_user_100ns, found.processor.runtime_kernel_100ns
    assert found.processor.total_runtime_100ns == sum(parts) > 0
    assert 0 < found.memory.memory_usage_commit_bytes <= found.memory.memory_usage_commit_peak_bytes
    assert (found.storage.read_size_bytes, found.storage.read_count_normalized) == (12289, 2)
    assert (found.storage.write_size_bytes, found.storage.write_count_normalized) == (512, 1)
    assert found.container_start_time < found.timestamp


async def test_memory_is_what_the_vm_was_created_with_and_what_it_occupies(tmp_path: Path) -> None:
    found = from_json(Properties, await _query(tmp_path, _VM(), "Memory")).memory
    assert found is not None
    assert found.virtual_machine_memory is not None
    assert found.virtual_machine_memory.reserved_memory == (1024 << 20) // 4096
    assert 0 < found.virtual_machine_memory.assigned_memory <= found.virtual_machine_memory.reserved_memory
    assert found.virtual_nodes[0].virtual_processor_count == 2


async def test_each_type_has_its_field_or_is_a_response(tmp_path: Path) -> None:
    types = ("TerminateOnLastHandleClosed", "SystemGUID", "GuestConnection", "ProcessorTopology", "CpuGroup")
    found = await _query(tmp_path, _VM(), *types)
    assert found["TerminateOnLastHandleClosed"] is True
    assert found["SystemGUID"] == _VM().runtime_id
    assert found["GuestConnectionInfo"] == {"ProtocolVersion": 4}
    assert found["PropertyResponses"]["ProcessorTopology"]["Response"]["LogicalProcessorCount"] == 3
    assert found["PropertyResponses"]["CpuGroup"] == {"Response": {"CpuGroups": []}}


async def test_queries_are_answered_in_responses(tmp_path: Path) -> None:
    found = await _query(tmp_path, _VM(), queries=("Memory",))
    assert found["PropertyResponses"]["Memory"]["Response"]["VirtualNodeCount"] == 1
    assert "Memory" not in found


async def test_unknown_types_are_refused_and_figures_need_a_vm_that_runs(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"HCS_E_INVALID_JSON.*Weather"):
        await _query(tmp_path, _VM(), "Memory", "Weather")
    for name in ("Memory", "Statistics"):
        with pytest.raises(HostError, match="HCS_E_INVALID_STATE"):
            await _query(tmp_path, _VM(state="Created"), name)
        with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_STOPPED"):
            await _query(tmp_path, _VM(pid=2**22 + 1), name)


def test_the_figures_of_a_process_are_read_whatever_it_is_called(tmp_path: Path) -> None:
    process = tmp_path / "7"
    process.mkdir()
    fields = ["S", *["0"] * 10, "250", "50", *["0"] * 6, "1000"]
    (process / "stat").write_text(f"7 (a) b) c) {' '.join(fields)}\n")
    (process / "status").write_text("Name:\ta\nVmHWM:\t    20 kB\nVmRSS:\t    10 kB\n")
    (tmp_path / "uptime").write_text("15.5 3.0\n")
    hertz = os.sysconf("SC_CLK_TCK")
    expected = Usage(250 / hertz, 50 / hertz, 15.5 - 1000 / hertz, 10240, 20480)
    assert Usage.of(7, str(tmp_path)) == expected


def test_the_compute_service_has_properties() -> None:
    assert service_property("Basic", _INFO)["SupportedSchemaVersions"]
    assert service_property("ProcessorTopology", _INFO)["LogicalProcessorCount"] == 3
    assert service_property("CpuGroup", _INFO) == {"CpuGroups": []}
    with pytest.raises(HostError, match="HCS_E_INVALID_JSON"):
        service_property("Weather", _INFO)
