"""Updates of containers in OCI terms, in both guests and over both ways to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import define

import uvm
from tests.vm.support import MIB, Attempt, Running, host_backend, lcow, quiet, running, wcow
from uvm.backend import HostInfo
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.errors import (
    AnswerLostError,
    NotSupportedError,
    OptionsError,
    RefusedError,
    UndoFailedError,
    UnknownOutcomeError,
    VMExitedError,
    VMStateError,
)

pytestmark = pytest.mark.anyio

BOTH_WAYS = pytest.mark.parametrize("external", [True, False], ids=["own connection", "through HCS"])
SPEC: dict[str, Any] = {"process": {"args": ["server"], "cwd": "/"}, "linux": {}}
DOCUMENT: dict[str, Any] = {
    "SchemaVersion": {"Major": 2, "Minor": 1},
    "Container": {"Memory": {"SizeInMB": 256}, "Processor": {"Weight": 100}},
}
MEMORY, PROCESSOR = "Container/Memory/SizeInMB", "Container/Processor"


@define
class Inside:
    """A container, and the VM that it is in."""

    run: Running
    container: uvm.Container
    init: uvm.Process | None = None

    @property
    def found(self) -> Any:
        """The container as the guest has it."""
        return self.run.backend.vms["vm1"].service.containers["c1"]

    @property
    def resources(self) -> Any:
        """What of its resources was changed, as the guest has it."""
        found = self.found
        return found.constraints if isinstance(found, LinuxContainer) else found.resources


async def _serve(process: Any) -> int:
    async for _ in process.stdin:
        pass
    return 0


@asynccontextmanager
async def inside(os: str, external: bool = True, **host: Any) -> AsyncIterator[Inside]:
    """A running container."""
    backend = host_backend(host=HostInfo(**host))
    backend.programs.register("server")(_serve)
    make = lcow if os == "linux" else wcow
    async with running(make(processors=2, external_guest_connection=external), backend=backend) as run:
        document = SPEC if os == "linux" else DOCUMENT
        async with await run.vm.create_container("c1", document) as container:
            await container.start()
            it = Inside(run, container)
            if os == "linux":
                it.init = await container.open_init(stdin=True)
            run.start = run.last
            yield it


def sent(it: Inside) -> list[Any]:
    return [entry.document for entry in it.run.sent("guest") if "RequestType" in entry.document]


# What is sent.


@BOTH_WAYS
async def test_a_linux_container_gets_its_resources_as_they_are(external: bool) -> None:
    asked = {
        "memory": {"limit": 64 * MIB, "swap": -1},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0-1"},
        "pids": {"limit": 100},
        "unified": None,
    }
    async with inside("linux", external) as it:
        await it.container.update(asked)
        del asked["unified"]
        assert it.resources == asked
        assert [each["Settings"] for each in sent(it)] == [{"Windows": {}, "Linux": asked}]
        assert {each["RequestType"] for each in sent(it)} == {"Update"}
        usage = (await it.container.statistics())["memory"]["usage"]
        assert usage["limit"] == 64 * MIB


@BOTH_WAYS
@pytest.mark.parametrize(
    ("cpu", "setting"),
    [
        ({"count": 1}, {"Count": 1}),
        ({"count": 64}, {"Count": 2}),
        ({"maximum": 2_500}, {"Maximum": 2_500}),
        ({"shares": 500}, {"Weight": 500}),
        ({"shares": 500, "count": 0, "affinity": []}, {"Weight": 500}),
    ],
)
async def test_a_windows_container_is_updated_setting_by_setting(
    external: bool, cpu: dict[str, Any], setting: dict[str, int]
) -> None:
    async with inside("windows", external) as it:
        await it.container.update({"memory": {"limit": 512 * MIB + 1}, "cpu": cpu})
        [(name, value)] = setting.items()
        assert it.resources == {MEMORY: 514, f"{PROCESSOR}/{name}": value}
        assert sent(it) == [
            {"ResourcePath": MEMORY, "RequestType": "Update", "Settings": 514},
            {"ResourcePath": PROCESSOR, "RequestType": "Update", "Settings": setting},
        ]


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_an_update_of_nothing_changes_nothing(os: str) -> None:
    async with inside(os) as it:
        await it.container.update({})
        await it.container.update({"memory": {}, "cpu": None})
        assert it.resources == {"memory": {}} if os == "linux" else it.resources == {}


# What is refused before anything is sent.

WRONG: dict[str, list[Any]] = {
    "linux": [
        1,
        {"memroy": {}},
        {"memory": 1},
        {"memory": {"limit": "1G"}},
        {"memory": {"limit": -2}},
        {"memory": {"swappiness": 101}},
        {"memory": {"disableOOMKiller": 1}},
        {"cpu": {"quota": 999}},
        {"cpu": {"period": 1_000_001}},
        {"cpu": {"shares": 1}},
        {"cpu": {"cpus": 1}},
        {"cpu": {"maximum": 5}},
        {"unified": []},
        {"rdma": {"a": object()}},
    ],
    "windows": [
        {"memory": {"limit": -1}},
        {"cpu": {"maximum": 10_001}},
        {"cpu": {"shares": 10_001}},
        {"cpu": {"maximum": 1, "shares": 1}},
        {"cpu": {"quota": 1_000}},
        {"storage": {"iops": 1}},
    ],
}


@pytest.mark.parametrize(("os", "wrong"), [(os, each) for os in WRONG for each in WRONG[os]])
async def test_what_are_no_resources_is_refused_before_anything_is_sent(os: str, wrong: Any) -> None:
    async with inside(os) as it:
        memory = {"memory": {"limit": 512 * MIB}}
        for each in (wrong, {**memory, **wrong} if isinstance(wrong, dict) else wrong):
            with pytest.raises(OptionsError):
                await it.container.update(each)
        assert sent(it) == []


async def test_the_processors_of_a_windows_container_cannot_be_chosen() -> None:
    async with inside("windows") as it:
        with pytest.raises(NotSupportedError, match="affinity"):
            await it.container.update({"cpu": {"affinity": [{"mask": 1}]}})
        assert sent(it) == []


async def test_an_old_host_does_not_change_the_processors_of_a_container_and_so_nothing() -> None:
    async with inside("windows", build=19041) as it:
        with pytest.raises(NotSupportedError, match="19042"):
            await it.container.update({"memory": {"limit": 512 * MIB}, "cpu": {"shares": 5}})
        assert sent(it) == []
        await it.container.update({"memory": {"limit": 512 * MIB}})


@BOTH_WAYS
@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_container_that_does_not_run_is_not_updated(os: str, external: bool) -> None:
    async with inside(os, external) as it:
        document = SPEC if os == "linux" else DOCUMENT
        async with await it.run.vm.create_container("c2", document) as unstarted:
            with pytest.raises(VMStateError, match="has not been started"):
                await unstarted.update({"memory": {"limit": 512 * MIB}})
        await it.container.terminate()
        if it.init is not None:
            await it.init.aclose()
        await it.container.wait()
        it.run.start = it.run.last
        with pytest.raises(VMStateError, match="has exited: ForcedExit"):
            await it.container.update({"memory": {"limit": 512 * MIB}})
        assert sent(it) == []


# What the guest refuses.


@BOTH_WAYS
@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ({"memory": {"limit": 8192}}, "current usage"),
        ({"cpu": {"cpus": "0-2"}}, "cpuset"),
        ({"cpu": {"cpus": "x"}}, "cpuset"),
    ],
)
async def test_a_linux_guest_refuses_what_its_kernel_does(
    external: bool, resources: dict[str, Any], problem: str
) -> None:
    async with inside("linux", external) as it:
        with pytest.raises(RefusedError, match=problem):
            await it.container.update({"pids": {"limit": 5}, **resources})
        assert it.resources == {}


@BOTH_WAYS
async def test_a_windows_guest_refuses_more_memory_than_the_vm_has(external: bool) -> None:
    async with inside("windows", external) as it:
        with pytest.raises(RefusedError, match="ERROR_NO_SYSTEM_RESOURCES"):
            await it.container.update({"memory": {"limit": 1 << 40}, "cpu": {"shares": 5}})
        assert it.resources == {}


# One run for each request, in which that one fails.

ASKED: dict[str, dict[str, Any]] = {
    "linux": {"memory": {"limit": 512 * MIB}},
    "windows": {"memory": {"limit": 512 * MIB}, "cpu": {"shares": 500}},
}
BEFORE = {MEMORY: 256, f"{PROCESSOR}/Weight": 100}
POINTS = pytest.mark.parametrize(("os", "nth"), [("linux", 1), ("windows", 1), ("windows", 2)])


def in_force(it: Inside) -> Any:
    """What of the resources is in force."""
    return it.resources if isinstance(it.found, LinuxContainer) else {**BEFORE, **it.resources}


@POINTS
@BOTH_WAYS
async def test_a_step_that_is_refused_has_those_before_it_changed_back(
    os: str, nth: int, external: bool
) -> None:
    async with inside(os, external) as it:
        before = in_force(it)
        rule = it.run.backend.faults.refuse(to="guest", operation="modify", nth=nth)
        with pytest.raises(RefusedError):
            await it.container.update(ASKED[os])
        assert rule.fired == 1
        assert in_force(it) == before


@BOTH_WAYS
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_step_whose_answer_is_lost_is_changed_back_or_reported(nth: int, external: bool) -> None:
    async with inside("windows", external) as it:
        before = in_force(it)
        it.run.backend.faults.lose(to="guest", operation="modify", nth=nth)
        with pytest.raises(UnknownOutcomeError) as caught:
            await it.container.update(ASKED["windows"])
        # Our own connection to a Windows guest has gone with the answer, and so has the guest.
        assert isinstance(caught.value, AnswerLostError) is external
        assert external or in_force(it) == before
        if external:
            changed = f"; {MEMORY} was changed" if nth == 2 else ""
            doubtful = (MEMORY, f"{PROCESSOR}/Weight")[nth - 1]
            assert str(caught.value).endswith(f"{changed}; {doubtful} may have been changed")


async def test_an_update_that_waits_for_one_that_is_cut_off_has_changed_nothing() -> None:
    async with inside("windows") as it:
        with it.run.backend.faults.hold(to="guest", operation="modify") as gate:
            async with anyio.create_task_group() as tasks:
                first = Attempt.begin(tasks, lambda: it.container.update({"cpu": {"shares": 500}}))
                await gate.wait()
                second = Attempt.begin(tasks, lambda: it.container.update(ASKED["windows"]))
                await quiet()
                gate.pending[0].lose(applied=True)
        assert str(first.error).endswith(f"; {PROCESSOR}/Weight may have been changed")
        assert str(second.error).endswith("; nothing was changed")
        assert it.resources == {f"{PROCESSOR}/Weight": 500}


@BOTH_WAYS
async def test_a_lost_answer_of_a_linux_guest_leaves_the_outcome_unknown(external: bool) -> None:
    async with inside("linux", external) as it:
        it.run.backend.faults.lose(to="guest", operation="modify")
        with pytest.raises(UnknownOutcomeError):
            await it.container.update(ASKED["linux"])


async def test_what_was_not_known_before_cannot_be_changed_back_and_is_reported() -> None:
    async with inside("windows") as it:
        await it.container.aclose()
        document = {**DOCUMENT, "Container": {}}
        async with await it.run.vm.create_container("c2", document) as container:
            await container.start()
            it.run.backend.faults.refuse(to="guest", operation="modify", nth=2)
            with pytest.raises(UndoFailedError, match=f"{MEMORY} stays changed.*is not known"):
                await container.update(ASKED["windows"])


@POINTS
@BOTH_WAYS
async def test_an_update_whose_caller_is_cancelled_is_carried_out(os: str, nth: int, external: bool) -> None:
    async with inside(os, external) as it:
        with it.run.backend.faults.hold(to="guest", operation="modify", nth=nth) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: it.container.update(ASKED[os]))
                await gate.wait()
                attempt.scope.cancel()
        await it.run.vm.settled()
        wanted = {MEMORY: 512, f"{PROCESSOR}/Weight": 500} if os == "windows" else ASKED[os]
        assert in_force(it) == wanted


@POINTS
@BOTH_WAYS
async def test_a_vm_that_exits_in_an_update_says_so(os: str, nth: int, external: bool) -> None:
    async with inside(os, external) as it:
        it.run.backend.faults.crash(to="guest", operation="modify", nth=nth)
        with pytest.raises(VMExitedError):
            await it.container.update(ASKED[os])
        with pytest.raises(VMExitedError):
            await it.container.update(ASKED[os])


# The request of hcsshim v0.8.16.


async def test_a_guest_that_does_not_say_that_it_can_is_not_asked_to_update_a_container() -> None:
    async with inside("linux") as it:
        assert not it.run.vm.features.update_container
        with pytest.raises(NotSupportedError, match="UpdateContainerSupported"):
            await it.run.vm.guest.update_container("c1", ASKED["linux"])
        with pytest.raises(OptionsError):
            await it.run.vm.guest.update_container("c1", {"memory": 1})
        assert sent(it) == []


async def test_a_guest_that_says_that_it_can_updates_a_container() -> None:
    capabilities = {"UpdateContainerSupported": True, "NamespaceAddRequestSupported": True}
    backend = host_backend(guest_capabilities=capabilities)
    backend.programs.register("server")(_serve)
    async with running(backend=backend) as run:
        container = await run.vm.create_container("c1", SPEC)
        async with container.open_init(stdin=True):
            await run.vm.guest.update_container("c1", ASKED["linux"])
            it = Inside(run, container)
            assert it.resources == ASKED["linux"]
            document = run.sent("guest")[-1].document
            assert document["Resources"] == '{"memory":{"limit":536870912}}'
            with pytest.raises(RefusedError):
                await run.vm.guest.update_container("c2", ASKED["linux"])
            await container.terminate()
