"""Properties of a VM, in HCS's shapes, from what Linux knows of QEMU's process and QEMU of its disks.

====================  ============================================================================
processor             the time of QEMU's process: what the guest used, and its emulation. HCS's part
                      of it in the kernel is the part of the process's in the kernel of the host
memory                what QEMU's process occupies: its resident set, and its peak
storage               reads and writes of all disks; the counts in units of 8 KiB
====================  ============================================================================

A type that is not known is refused with HCS_E_INVALID_JSON, as HCS does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from uvm._repr import Value
from uvm.backend import JSON, HostInfo
from uvm.backends.qemu.vm import VM
from uvm.backends.requests import properties
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema import properties as schema
from uvm.schema.common import MIB, PAGE_BYTES
from uvm.schema.json import to_json

#: HCS's unit of time, in seconds.
_TICK: Final = 1e-7
_BLOCK_BYTES: Final = 8192


@frozen(repr=False)
class Usage(Value):
    """What a process has used, in seconds and bytes.

    :ivar running_seconds: how long it has run.
    """

    user_seconds: float
    kernel_seconds: float
    running_seconds: float
    resident_bytes: int
    peak_bytes: int

    @classmethod
    def of(cls, pid: int, proc: str = "/proc") -> Usage:
        """Return the figures of a process.

        :raises OSError: it has ended; or another error, if it is just ending.
        """
        hertz = os.sysconf("SC_CLK_TCK")
        directory = Path(proc, str(pid))
        # The second field is in parentheses, and may hold any; the third is the state.
        fields = (directory / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        user, kernel, started = (int(fields[at]) / hertz for at in (11, 12, 19))
        status = dict(
            line.split(":", 1) for line in (directory / "status").read_text("ascii", "replace").splitlines()
        )
        resident, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        uptime = float(Path(proc, "uptime").read_text("ascii").split()[0])
        return cls(user, kernel, max(0.0, uptime - started), resident, peak)


async def query(vm: VM, info: HostInfo, types: Sequence[str], queries: Sequence[str] = ()) -> JSON:
    """Return the properties of the named types, on top of the summary: see :func:`.properties.answer`.

    :raises HostError: HCS_E_INVALID_JSON for an unknown type; a type needs a running VM and this one is not.
    """
    values = {name: await _value(vm, info, name) for name in dict.fromkeys((*types, *queries))}
    return properties.answer(vm.summary(), values, types, queries)


async def _value(vm: VM, info: HostInfo, name: str) -> Any:
    match name:
        case schema.PROPERTY_MEMORY:
            return _memory(vm)
        case schema.PROPERTY_STATISTICS:
            return await _statistics(vm)
        case schema.PROPERTY_GUEST_CONNECTION:
            return await vm.guest_connection()
        case schema.PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED:
            return vm.ends_with_last_handle
        case schema.PROPERTY_SYSTEM_GUID:
            return vm.runtime_id
        case schema.PROPERTY_PROCESSOR_TOPOLOGY:
            return to_json(host_processors(info))
        case schema.PROPERTY_CPU_GROUP:
            # There are none, as there is no Hyper-V.
            return {"CpuGroups": []}
    raise properties.unknown(f"query {vm.id}", name)


def usage_of(vm_id: str, pid: int) -> Usage:
    """Return what QEMU's process has used; HCS_E_SYSTEM_ALREADY_STOPPED if it has ended."""
    try:
        return Usage.of(pid)
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise HostError(f"query {vm_id}", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, "QEMU has ended") from error


def _memory(vm: VM) -> JSON:
    vm.require("query", "Running", "Paused")
    topology = vm.devices.topology
    size, used = topology.size_in_mb * MIB, usage_of(vm.id, vm.pid).resident_bytes
    # A VM without overcommit has all of its memory from the start.
    pages = min(used, size) // PAGE_BYTES
    return to_json(properties.memory(size, used, pages, topology.processor.count))


async def _statistics(vm: VM) -> JSON:
    vm.require("query", "Running", "Paused")
    usage = usage_of(vm.id, vm.pid)
    return process_statistics(usage, _storage(await vm.monitor.ask("query", "query-blockstats")))


def process_statistics(usage: Usage, storage: schema.StorageStats | None = None) -> JSON:
    """Return the ``Statistics`` of what a process of QEMU has used.

    :param storage: what its disks have.
    """
    now = datetime.now(UTC)
    started = now - timedelta(seconds=usage.running_seconds)
    user, kernel = _ticks(usage.user_seconds), _ticks(usage.kernel_seconds)
    found = schema.Statistics(
        timestamp=_written(now),
        container_start_time=_written(started),
        uptime_100ns=_ticks(usage.running_seconds),
        processor=schema.ProcessorStats(
            total_runtime_100ns=user + kernel, runtime_user_100ns=user, runtime_kernel_100ns=kernel
        ),
        memory=schema.MemoryStats(
            memory_usage_commit_bytes=usage.resident_bytes,
            memory_usage_commit_peak_bytes=usage.peak_bytes,
            memory_usage_private_working_set_bytes=usage.resident_bytes,
        ),
        storage=storage,
    )
    return to_json(found)


def _storage(answer: Any) -> schema.StorageStats:
    """Return the sums over QEMU's statistics of its block devices."""
    found = schema.StorageStats()
    for device in answer if isinstance(answer, list) else ():
        stats = device.get("stats", {})
        # Only what a guest sees has a device; its nodes have statistics of their own.
        if device.get("qdev"):
            found.read_size_bytes += stats.get("rd_bytes", 0)
            found.write_size_bytes += stats.get("wr_bytes", 0)
    found.read_count_normalized = -(-found.read_size_bytes // _BLOCK_BYTES)
    found.write_count_normalized = -(-found.write_size_bytes // _BLOCK_BYTES)
    return found


def host_processors(info: HostInfo) -> schema.ProcessorTopology:
    """Return the processors of the host, each a core of its own: which share one is not said."""
    each = [schema.LogicalProcessor(lp_index=i, core_id=i, root_vp_index=i) for i in range(info.processors)]
    return schema.ProcessorTopology(logical_processor_count=info.processors, logical_processors=each)


def service_property(name: str, info: HostInfo) -> JSON:
    """Return one property of the compute service, which is this backend; HCS_E_INVALID_JSON if it is unknown.

    Source: the HCS schema (``GetPropertyType``, ``BasicInformation``, ``CpuGroupConfigurations``, ...).
    """
    match name:
        case "Basic":
            return {"SupportedSchemaVersions": [{"Major": 2, "Minor": 1}]}
        case schema.PROPERTY_PROCESSOR_TOPOLOGY:
            return to_json(host_processors(info))
        case schema.PROPERTY_CPU_GROUP:
            return {"CpuGroups": []}
        case "QoSCapabilities":
            return {"ProcessorQoSSupported": False}
    raise properties.unknown("query the compute service", name)


def _ticks(seconds: float) -> int:
    return round(seconds / _TICK)


def _written(time: datetime) -> str:
    """Return a time as HCS writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
