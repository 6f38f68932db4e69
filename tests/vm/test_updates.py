"""Updates of a running VM in OCI terms: checked first, sent in order, and all of it or nothing."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import uvm
from tests.points import Point, spoil
from tests.vm.support import MIB, Attempt, Running, host_backend, lcow, quiet, running, wcow
from uvm.backend import HostInfo
from uvm.errors import (
    GuestError,
    HostError,
    NotSupportedError,
    OptionsError,
    UndoFailedError,
    UndoUnknownError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
)
from uvm.schema.guest import NULL_GUID

pytestmark = pytest.mark.anyio

MEMORY = "VirtualMachine/ComputeTopology/Memory/SizeInMB"
LIMITS = "VirtualMachine/ComputeTopology/Processor/Limits"
GROUP = "VirtualMachine/ComputeTopology/Processor/CpuGroup"
PODS = "PodCgroupMemoryLimit"
CPU_GROUP = "io.microsoft.virtualmachine.cpugroup.id"

LINUX: dict[str, Any] = {
    "memory": {"limit": 2048 * MIB},
    "cpu": {"quota": 50_000, "period": 100_000, "shares": 512},
}
WINDOWS: dict[str, Any] = {"memory": {"limit": 2048 * MIB}, "cpu": {"maximum": 2_500, "shares": 50}}
#: What was asked for before, so that there is something to change back to.
BEFORE: dict[str, dict[str, Any]] = {
    "linux": {"memory": {"limit": 512 * MIB}, "cpu": {"quota": 100_000, "shares": 1024}},
    "windows": {"memory": {"limit": 512 * MIB}, "cpu": {"maximum": 5_000, "shares": 100}},
}
AFTER = {"linux": LINUX, "windows": WINDOWS}
OPTIONS: dict[str, Any] = {"linux": lcow, "windows": wcow}
BOTH = pytest.mark.parametrize("os", ["linux", "windows"])
BOTH_WAYS = pytest.mark.parametrize("external", [True, False], ids=["own connection", "through HCS"])


def changes(run: Running) -> list[tuple[str, Any]]:
    """What was asked for, host and guest alike."""
    return [(entry.call.resource, entry.document.get("Settings")) for entry in run.sent("host", "guest")]


def topology(run: Running) -> Any:
    found: Any = run.inventory["ComputeTopology"]
    return found


async def updated(run: Running, os: str) -> tuple[Any, dict[str, str]]:
    """Update a VM once; return what it is then, and the annotations of an update that changes the rest."""
    group = await uvm.create_cpu_group(run.backend, [0])
    await run.vm.update(BEFORE[os])
    run.start = run.last
    return topology(run), {CPU_GROUP: group.id}


@BOTH_WAYS
async def test_a_linux_vm_is_updated_in_order(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        group = await uvm.create_cpu_group(run.backend, [0])
        run.start = run.last
        await run.vm.update(LINUX, {CPU_GROUP: "{" + group.id + "}", "some.other": "1"})
        host = [(entry.call.resource, entry.document.get("Settings")) for entry in run.sent("host")]
        assert [each for each in host if each[0]] == [
            (MEMORY, 2048),
            # Half a processor of two, and half of the default weight.
            (LIMITS, {"Limit": 25_000, "Weight": 50}),
            (GROUP, {"Id": group.id}),
        ]
        assert [entry.call.resource for entry in run.sent("guest")] == [PODS]
        assert [entry.call.resource for entry in run.sent("host", "guest") if entry.call.resource][1] == PODS


@BOTH_WAYS
async def test_a_windows_vm_is_updated_in_order(external: bool) -> None:
    async with running(wcow(external_guest_connection=external)) as run:
        await run.vm.update(WINDOWS)
        assert changes(run) == [(MEMORY, 2048), (LIMITS, {"Limit": 25_000, "Weight": 50})]


@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        ({"quota": 200_000}, {"Limit": 100_000}),
        ({"quota": -1}, {"Limit": 100_000}),
        ({"quota": 1_000, "period": 1_000_000}, {"Limit": 50}),
        ({"quota": 100_001, "period": 100_000}, {"Limit": 50_001}),
        ({"quota": 20_000, "period": 10_000}, {"Limit": 100_000}),
        ({"shares": 1024}, {"Weight": 100}),
        ({"shares": 2}, {"Weight": 1}),
        ({"shares": 102_400}, {"Weight": 10_000}),
        ({"shares": 1024, "quota": None, "cpus": "", "idle": 0, "burst": None}, {"Weight": 100}),
    ],
)
async def test_quota_and_shares_are_converted(asked: dict[str, Any], limits: dict[str, int]) -> None:
    async with running(lcow(processors=2)) as run:
        await run.vm.update({"cpu": asked})
        assert changes(run) == [(LIMITS, limits)]


async def test_what_is_not_asked_for_stays() -> None:
    async with running() as run:
        await run.vm.update_cpu_limits(limit=7, weight=8, reservation=5, maximum_frequency_mhz=6)
        await run.vm.update({"cpu": {"shares": 512}})
        await run.vm.update({"cpu": {"quota": 100_000}})
        assert changes(run)[-1][1] == {
            "Limit": 50_000,
            "Weight": 50,
            "Reservation": 5,
            "MaximumFrequencyMHz": 6,
        }
        assert len(run.sent()) == 3
        await run.vm.update()
        await run.vm.update({}, {})
        await run.vm.update({"memory": None, "cpu": {}, "devices": [], "unified": {}})
        assert len(run.sent()) == 3


async def test_a_vm_that_is_in_its_group_is_not_moved() -> None:
    async with running() as run:
        group = await uvm.create_cpu_group(run.backend, [0])
        await run.vm.set_cpu_group(group.id)
        run.start = run.last
        await run.vm.update({}, {CPU_GROUP: group.id.upper()})
        assert run.sent() == []


NONE_LINUX: dict[str, Any] = {
    "no object": 1,
    "unknown": {"memroy": {}},
    "unknown in a part": {"memory": {"limits": 1}},
    "no number": {"memory": {"limit": "1G"}},
    "a flag": {"memory": {"limit": True}},
    "no limit": {"memory": {"limit": -1}},
    "below 1 MiB": {"memory": {"limit": MIB - 1}},
    "too large": {"memory": {"limit": 1 << 63}},
    "more processors than there are": {"cpu": {"quota": 200_001}},
    "quota below the kernel's": {"cpu": {"quota": 999}},
    "period out of range": {"cpu": {"quota": 1000, "period": 999}},
    "period alone": {"cpu": {"period": 100_000}},
    "shares below the kernel's": {"cpu": {"shares": 1}},
    "shares above a VM's weight": {"cpu": {"shares": 200_000}},
    "shares above the kernel's": {"cpu": {"shares": 262_145}},
    "what a VM has not": {"pids": {"limit": 5}},
    "what its memory has not": {"memory": {"swap": 5 * MIB}},
    "what its processors have not": {"cpu": {"cpus": "0"}},
    "what is Windows'": {"cpu": {"maximum": 5}},
    "a fragment with others": {"fragment": "YQ==", "memory": {}},
    "a fragment that is none": {"fragment": 1},
    "no JSON": {"unified": {"a": {1}}},
}


@pytest.mark.parametrize("resources", NONE_LINUX.values(), ids=NONE_LINUX)
async def test_what_cannot_work_is_refused_before_anything_is_sent(resources: Any) -> None:
    async with running(lcow(processors=2)) as run:
        also = {"memory": {"limit": 2048 * MIB}, **resources} if isinstance(resources, dict) else resources
        for each in (resources, also):
            with pytest.raises(OptionsError):
                await run.vm.update(each)
        assert run.sent() == []


@pytest.mark.parametrize(
    "resources",
    [
        {"cpu": {"maximum": 10_001}},
        {"cpu": {"shares": 10_001}},
        {"cpu": {"count": 1}},
        {"cpu": {"quota": 1_000}},
        {"storage": {"iops": 5}},
        {"memory": {"limit": -1}},
    ],
)
async def test_a_windows_vm_refuses_what_it_has_not(resources: Any) -> None:
    async with running(wcow()) as run:
        with pytest.raises(OptionsError):
            await run.vm.update(resources)
        assert run.sent() == []


@pytest.mark.parametrize("annotations", [1, {CPU_GROUP: 1}, {CPU_GROUP: "x"}, {1: "x"}, [CPU_GROUP]])
async def test_annotations_that_are_none_are_refused(annotations: Any) -> None:
    async with running() as run:
        with pytest.raises(OptionsError):
            await run.vm.update(LINUX, annotations)
        assert run.sent() == []


async def test_an_old_host_changes_no_processors_and_so_nothing() -> None:
    async with running(backend=host_backend(host=HostInfo(build=19041))) as run:
        with pytest.raises(NotSupportedError, match="19042"):
            await run.vm.update(LINUX)
        assert run.sent() == []
        await run.vm.update({"memory": LINUX["memory"]})


async def test_a_fragment_of_the_policy_is_injected_alone() -> None:
    options = lcow(security_policy_enabled=True, security_policy="eyJhbGxvd19hbGwiOnRydWV9")
    async with running(options) as run:
        await run.vm.update({"fragment": "YQ=="})
        assert [each.fragment for each in run.guest.fragments] == ["YQ=="]
        with pytest.raises(OptionsError, match="annotations"):
            await run.vm.update({"fragment": "YQ=="}, {CPU_GROUP: NULL_GUID})


async def test_a_vm_that_does_not_run_is_not_updated() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
        with pytest.raises(VMStateError):
            await vm.update(LINUX)
        await vm.start()
        await vm.terminate()
        with pytest.raises(VMExitedError):
            await vm.update(LINUX)


# One run for each request of an update, in which that one fails.


def points(os: str) -> list[dict[str, Any]]:
    """The requests of an update."""
    sent = [{"to": "host", "resource": path} for path in (MEMORY, LIMITS, GROUP)]
    return [*sent, {"to": "guest", "resource": PODS}] if os == "linux" else sent


POINTS = pytest.mark.parametrize(
    ("os", "point"),
    [(os, point) for os in ("linux", "windows") for point in points(os)],
    ids=lambda each: each if isinstance(each, str) else each["resource"].rpartition("/")[2],
)


@POINTS
@BOTH_WAYS
async def test_a_step_that_is_refused_has_those_before_it_changed_back(
    os: str, point: dict[str, Any], external: bool
) -> None:
    async with running(OPTIONS[os](external_guest_connection=external)) as run:
        before, annotations = await updated(run, os)
        with run.backend.faults.hold(**point) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: run.vm.update(AFTER[os], annotations))
                [parked] = await gate.wait()
                parked.refuse()
        assert isinstance(attempt.error, HostError | GuestError)
        assert topology(run) == before
        # What had not been sent is not.
        await run.vm.update(AFTER[os], annotations)
        assert topology(run) != before


@POINTS
@BOTH_WAYS
@pytest.mark.parametrize("applied", [True, False])
async def test_a_step_whose_answer_is_lost_is_changed_back_as_well(
    os: str, point: dict[str, Any], external: bool, applied: bool
) -> None:
    async with running(OPTIONS[os](external_guest_connection=external)) as run:
        before, annotations = await updated(run, os)
        run.backend.faults.lose(applied=applied, nth=1, **point)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.update(AFTER[os], annotations)
        assert topology(run) == {**before, "Processor": topology(run)["Processor"]}
        found = topology(run)["Processor"]
        assert {k: v for k, v in found.items() if k != "CpuGroup"} == before["Processor"]
        assert found.get("CpuGroup", {"Id": NULL_GUID}) == {"Id": NULL_GUID}


@POINTS
async def test_an_update_whose_caller_is_cancelled_is_carried_out(os: str, point: dict[str, Any]) -> None:
    async with running(OPTIONS[os]()) as run:
        before, annotations = await updated(run, os)
        with run.backend.faults.hold(**point) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: run.vm.update(AFTER[os], annotations))
                await gate.wait()
                attempt.scope.cancel()
        await run.vm.settled()
        assert topology(run)["Memory"] == {"SizeInMB": 2048}
        assert topology(run)["Processor"] == {
            "Count": before["Processor"]["Count"],
            "Limit": 25_000,
            "Weight": 50,
            "CpuGroup": {"Id": annotations[CPU_GROUP]},
        }


@POINTS
async def test_a_vm_that_exits_in_an_update_says_so(os: str, point: dict[str, Any]) -> None:
    async with running(OPTIONS[os]()) as run:
        _, annotations = await updated(run, os)
        run.backend.faults.crash(**point)
        with pytest.raises(VMExitedError):
            await run.vm.update(AFTER[os], annotations)


@pytest.mark.parametrize("fault", ["refuse", "lose"])
async def test_what_cannot_be_changed_back_is_reported(fault: str) -> None:
    async with running() as run:
        await updated(run, "linux")
        run.backend.faults.refuse(resource=LIMITS, nth=1)
        getattr(run.backend.faults, fault)(resource=MEMORY, nth=2)
        with pytest.raises(UndoFailedError) as caught:
            await run.vm.update(LINUX)
        assert MEMORY in str(caught.value)
        assert isinstance(caught.value, UnknownOutcomeError) is (fault == "lose")
        assert len(caught.value.exceptions) == 2
        assert isinstance(caught.value.exceptions[0], HostError)


async def test_what_may_have_been_changed_and_cannot_be_changed_back_is_unknown() -> None:
    async with running() as run:
        before, _ = await updated(run, "linux")
        run.backend.faults.lose(resource=MEMORY, nth=1)
        rule = run.backend.faults.refuse(resource=MEMORY, nth=2)
        with pytest.raises(UndoUnknownError, match="may have been changed"):
            await run.vm.update(LINUX)
        rule.remove()
        await run.vm.update(BEFORE["linux"])
        assert topology(run) == before


async def test_a_setting_that_was_changed_anew_meanwhile_is_left_at_that() -> None:
    async with running() as run:
        await updated(run, "linux")
        with run.backend.faults.hold(resource=LIMITS) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: run.vm.update(LINUX))
                [parked] = await gate.wait()
                await run.vm.update_memory(memory_mb=1024)
                parked.refuse()
        assert isinstance(attempt.error, HostError)
        assert topology(run)["Memory"] == {"SizeInMB": 1024}


async def test_of_two_updates_the_second_waits_for_the_first() -> None:
    async with running() as run:
        before, _ = await updated(run, "linux")
        with run.backend.faults.hold(resource=LIMITS, nth=1) as gate:
            async with anyio.create_task_group() as tasks:
                first = Attempt.begin(tasks, lambda: run.vm.update(LINUX))
                [parked] = await gate.wait()
                second = Attempt.begin(tasks, lambda: run.vm.update({"memory": {"limit": 1024 * MIB}}))
                await quiet()
                assert topology(run)["Memory"] == {"SizeInMB": 2048}
                parked.refuse()
        assert isinstance(first.error, UVMError)
        assert second.error is None
        assert topology(run) == {**before, "Memory": {"SizeInMB": 1024}}


async def test_of_two_updates_at_once_each_leaves_what_it_does_not_ask_for() -> None:
    async with running() as run:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.vm.update, {"cpu": {"quota": 50_000}})
            tasks.start_soon(run.vm.update, {"cpu": {"shares": 512}})
        assert topology(run)["Processor"] == {"Count": 2, "Limit": 25_000, "Weight": 50}


# CPU groups of hosts that cannot set them at the creation of a VM.


@BOTH
async def test_an_old_host_moves_the_vm_into_its_group_once_it_runs_and_out_as_it_closes(os: str) -> None:
    backend = host_backend(host=HostInfo(build=19041))
    group = await uvm.create_cpu_group(backend, [0, 1])
    async with running(OPTIONS[os](cpu_group_id=group.id), backend=backend) as run:
        assert "CpuGroup" not in str(run.vm.plan.document)
        assert topology(run)["Processor"]["CpuGroup"] == {"Id": group.id}
        assert run.vm.options.cpu_group_id == group.id
    moves = [e.document["Settings"]["Id"] for e in backend.request_log if e.call.resource == GROUP]
    assert moves == [group.id, NULL_GUID]
    await uvm.delete_cpu_group(backend, group.id)


async def test_a_vm_that_cannot_be_moved_into_its_group_does_not_start() -> None:
    backend = host_backend(host=HostInfo(build=19041))
    async with uvm.UtilityVM.create(lcow(cpu_group_id=NULL_GUID[:-1] + "1"), backend=backend) as vm:
        with pytest.raises(HostError, match="ERROR_HV_INVALID_CPU_GROUP_ID"):
            await vm.start()
        assert vm.exit_status is not None
    assert backend.leftovers() == []


@pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])
async def test_a_start_that_fails_as_the_vm_is_moved_into_its_group_leaves_nothing(how: str) -> None:
    backend = host_backend(host=HostInfo(build=19041))
    group = await uvm.create_cpu_group(backend, [0])

    async def live() -> None:
        async with uvm.UtilityVM.create(lcow(cpu_group_id=group.id), backend=backend) as vm:
            await vm.start()

    assert not await spoil(backend, how, Point("host", "modify", "", 1), live)
    assert backend.leftovers() == []
    await uvm.delete_cpu_group(backend, group.id)


@pytest.mark.parametrize("fault", ["refuse", "lose"])
async def test_a_group_that_cannot_be_left_keeps_no_vm_from_closing(fault: str, caplog: Any) -> None:
    async with running() as run:
        group = await uvm.create_cpu_group(run.backend, [0])
        await run.vm.set_cpu_group(group.id)
        getattr(run.backend.faults, fault)(resource=GROUP)
        await run.vm.close()
        assert "vm1: closing it" in caplog.text
        await uvm.delete_cpu_group(run.backend, group.id)


async def test_a_vm_that_was_moved_into_no_group_asks_for_nothing_as_it_closes() -> None:
    async with running() as run:
        await run.vm.update(LINUX)
        run.start = run.last
        await run.vm.close()
        assert run.sent() == []
