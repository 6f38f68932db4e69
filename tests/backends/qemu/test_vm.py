"""VMs over a stand-in for QEMU: how they end, and answers that are late, lost, twice or wrong."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.backends.qemu.standin import LostAnswer, Refusal, StandIn, StandInBackend, StandInLauncher
from tests.backends.qemu.test_runtime import CLAIMS
from tests.descriptors import descriptors
from uvm._wire.ports import vsock_service_id
from uvm.backend import JSON, System
from uvm.backends.qemu import backend as backends
from uvm.backends.qemu import lifetime
from uvm.backends.qemu.sockets import listening
from uvm.backends.qemu.users import Chosen
from uvm.errors import (
    BridgeClosedError,
    ExitStatus,
    HostError,
    HostPathError,
    NotSupportedError,
    VMExitedError,
    VMStateError,
)
from uvm.testing.backends.checks import until

pytestmark = pytest.mark.anyio


def document(kernel: str, **machine: Any) -> JSON:
    return {
        "Owner": "an owner",
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "ShouldTerminateOnLastHandleClosed": True,
        "VirtualMachine": {
            "Chipset": {"LinuxKernelDirect": {"KernelFilePath": kernel}},
            "ComputeTopology": {"Memory": {"SizeInMB": 512}, "Processor": {"Count": 1}},
            "Devices": {"Scsi": {"df6d0690-79e5-55b6-a5ec-c1e2f77f580a": {}}, "Plan9": {}},
            **machine,
        },
    }


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    (tmp_path / "vmlinux").touch()
    return str(tmp_path / "vmlinux")


@asynccontextmanager
async def entered(tmp_path: Path) -> AsyncIterator[StandInBackend]:
    async with StandInBackend(StandInLauncher(), tmp_path / "run") as backend:
        yield backend


@asynccontextmanager
async def running(tmp_path: Path, kernel: str, **machine: Any) -> AsyncIterator[tuple[System, StandIn]]:
    """A VM that runs, and its process."""
    async with entered(tmp_path) as backend:
        system = await backend.create("vm1", document(kernel, **machine))
        await system.start()
        yield system, backend.launcher.started["vm1"]


def _to_file(tmp_path: Path) -> JSON:
    return {"SaveType": "ToFile", "SaveStateFilePath": str(tmp_path / "state")}


def left(tmp_path: Path) -> list[str]:
    """What is in the runtime directory besides its lock."""
    return [path.name for path in (tmp_path / "run").iterdir() if path.name != "lock"]


# Ends.


@pytest.mark.parametrize(
    ("event", "exit_type", "code"),
    [
        (("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}), "GracefulExit", 0),
        (("SHUTDOWN", {"guest": True, "reason": "guest-reset"}), "Reset", 0),
        (("GUEST_PANICKED", {"action": "pause"}), "UnexpectedExit", 0x8037011C),
    ],
    ids=["shutdown", "reset", "panic"],
)
async def test_the_end_of_a_guest_is_reported_by_qemu_and_qemu_quits_after_its_last_words(
    tmp_path: Path, kernel: str, event: tuple[str, JSON], exit_type: str, code: int
) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.event(event[0], **event[1])
        status = await system.wait()
        assert (status.exit_type, status.code) == (exit_type, code)
        assert status.detail is not None
        assert status.detail["QEMU"]["Console"] == "the guest's last words"
        assert child.commands[-3:] == ["ringbuf-read", "set-action", "quit"]
        assert child.exit_code == 0
        assert left(tmp_path) == []


async def test_a_qemu_that_is_killed_by_others_exits_unexpectedly(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.end(-9)
        status = await system.wait()
        assert (status.exit_type, status.code) == ("UnexpectedExit", 0x80370106)
        assert status.detail is not None
        assert status.detail["Attribution"] == [{"WorkerExit": {"ExitCode": -9}}]


async def test_a_terminated_vm_is_killed_whatever_its_monitor_does(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.disturb = _never
        with anyio.move_on_after(0.05):
            await system.pause()
        await system.terminate()
        assert await system.wait() == ExitStatus("ForcedExit", 0, (await system.wait()).detail)
        assert child.exit_code == -9


async def test_a_guest_that_does_not_panic_when_it_is_asked_to_crash_is_killed(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "CRASH_SECONDS", 0.05)
    async with running(tmp_path, kernel) as (system, child):
        monkeypatch.setattr(child, "_inject_nmi", dict)
        await system.crash()
        status = await system.wait()
        assert (status.exit_type, status.code) == ("UnexpectedExit", 0x8037011C)
        assert child.exit_code == -9


async def test_a_qemu_that_does_not_quit_is_killed(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "QUIT_SECONDS", 0.05)
    async with running(tmp_path, kernel) as (system, child):
        monkeypatch.setattr(child, "_quit", dict)
        child.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        assert (await system.wait()).exit_type == "GracefulExit"
        assert child.exit_code == -9


async def test_a_qemu_that_quits_may_close_its_monitor_before_it_ends(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, kernel) as (system, child):

        async def end() -> None:
            await anyio.wait_all_tasks_blocked()
            child.end(0)

        def quit_slowly() -> JSON:
            child.close_monitor()
            child.tasks.start_soon(end)
            return {}

        monkeypatch.setattr(child, "_quit", quit_slowly)
        child.event("GUEST_PANICKED", action="pause")
        assert (await system.wait()).exit_type == "UnexpectedExit"
        assert child.exit_code == 0


async def test_a_qemu_that_never_comes_up_is_reported_with_its_last_words(
    tmp_path: Path, kernel: str
) -> None:
    async with entered(tmp_path) as backend:
        backend.launcher.prepare = lambda child: child.end(1, "-m: no such option")
        with pytest.raises(HostError, match=r"exit code 1 before it took commands: -m: no such option"):
            await backend.create("vm1", document(kernel))
        assert await backend.enumerate() == []
        assert left(tmp_path) == []


def _with_console(tmp_path: Path) -> JSON:
    return {"Devices": {"ComPorts": {"0": {"NamedPipe": str(tmp_path / "console")}}}}


async def test_the_console_is_removed_with_its_vm_and_what_came_in_its_place_is_not(
    tmp_path: Path, kernel: str
) -> None:
    console = anyio.Path(tmp_path / "console")
    for came in (False, True):
        async with running(tmp_path, kernel, **_with_console(tmp_path)) as (system, _):
            assert await console.is_socket()
            if came:
                # It has its number as long as it is there.
                await console.rename(tmp_path / "the console")
                with socket.socket(socket.AF_UNIX) as other:
                    other.bind(str(console))
            await system.terminate()
        assert await console.exists() == came


async def test_a_console_is_removed_if_qemu_does_not_start(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with entered(tmp_path) as backend:

        async def start(*arguments: Any, **options: Any) -> StandIn:
            assert await anyio.Path(tmp_path / "console").is_socket()
            raise OSError("no process can be started")

        monkeypatch.setattr(backend.launcher, "start", start)
        with pytest.raises(OSError, match="no process"):
            await backend.create("vm1", document(kernel, **_with_console(tmp_path)))
    assert not await anyio.Path(tmp_path / "console").exists()


def _full(tmp_path: Path) -> None:
    """Have nothing more noted of a VM."""
    [directory] = left(tmp_path)
    (tmp_path / "run" / directory / "vm.json.new").mkdir()


async def test_a_qemu_that_no_other_process_would_find_is_killed(tmp_path: Path, kernel: str) -> None:
    async with entered(tmp_path) as backend:
        backend.launcher.prepare = lambda child: _full(tmp_path)
        with pytest.raises(HostPathError, match=r"vm\.json: it cannot be written"):
            await backend.create("vm1", document(kernel))
        assert backend.launcher.started["vm1"].exit_code == -9
        assert await backend.enumerate() == []
        assert left(tmp_path) == []


async def test_a_state_that_cannot_be_noted_is_logged_and_the_vm_is_in_it(
    tmp_path: Path, kernel: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, kernel) as (system, _):
        _full(tmp_path)
        await system.pause()
        assert "vm1: it is Paused, and other processes do not see it" in caplog.text
        await system.resume()
        await system.terminate()
        assert left(tmp_path) == []


async def test_a_vm_whose_memory_cannot_be_sealed_exits_alone(tmp_path: Path, kernel: str) -> None:
    async with entered(tmp_path) as backend:
        template = await backend.create("vm1", document(kernel, IsTemplate=True))
        other = await backend.create("vm2", document(kernel))
        for system in (template, other):
            await system.start()
        await template.pause()
        with mmap.mmap(backend._vms["vm1"].memory.fd, 4096):
            with pytest.raises(HostError, match="ALREADY_STOPPED"):
                await template.save({"SaveType": "AsTemplate"})
            await template.wait()
        await other.pause()


async def test_a_monitor_that_breaks_the_protocol_ends_the_vm(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.say([])  # type: ignore[arg-type]
        assert (await system.wait()).exit_type == "UnexpectedExit"
        assert left(tmp_path) == []


async def test_leaving_the_backend_ends_what_runs(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        pass
    assert child.exit_code == -9
    assert (await system.wait()).exit_type == "ForcedExit"
    assert left(tmp_path) == []


async def test_leaving_the_backend_in_a_cancelled_scope_ends_what_runs(tmp_path: Path, kernel: str) -> None:
    with anyio.CancelScope() as scope:
        async with running(tmp_path, kernel) as (_, child):
            scope.cancel()
            await anyio.sleep_forever()
    assert child.exit_code == -9
    assert left(tmp_path) == []


async def test_a_cancelled_scope_of_a_caller_does_not_reach_the_vm(tmp_path: Path, kernel: str) -> None:
    async with entered(tmp_path) as backend:
        with anyio.CancelScope() as scope:
            system = await backend.create("vm1", document(kernel))
            scope.cancel()
            with suppress(HostError):
                await system.start()
        await system.start()
        assert (await system.properties())["State"] == "Running"


# Answers.


async def _never(name: str, arguments: JSON) -> None:
    await anyio.sleep_forever()


async def _lost(name: str, arguments: JSON) -> None:
    raise LostAnswer


async def test_a_caller_who_leaves_an_answer_that_is_lost_disturbs_nothing(
    tmp_path: Path, kernel: str
) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.disturb = _lost
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.pause)
            await until(lambda: child.fake.vms["guest"].state == "Paused")
            tasks.cancel_scope.cancel()
        child.disturb = lambda name, arguments: anyio.lowlevel.checkpoint()
        await system.terminate()


async def test_an_answer_that_comes_late_is_nobody_elses(tmp_path: Path, kernel: str) -> None:
    late = anyio.Event()

    async def hold(name: str, arguments: JSON) -> None:
        if name == "stop":
            await late.wait()

    async with running(tmp_path, kernel) as (system, child):
        child.disturb = hold
        with anyio.move_on_after(0.05):
            await system.pause()
        late.set()
        statistics = (await system.properties("Statistics"))["Statistics"]
        assert statistics["Memory"]["MemoryUsageCommitBytes"] > 0


async def test_answers_that_come_twice_are_taken_once(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.twice.update(["stop", "cont"])
        for _ in range(3):
            await system.pause()
            await system.resume()
        assert (await system.properties())["State"] == "Running"


async def test_what_is_asked_while_qemu_dies_ends_with_the_vm(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.disturb = _never

        async def die() -> None:
            child.end(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die)
            with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_STOPPED"):
                await system.pause()


async def test_a_creation_that_is_cancelled_leaves_nothing(tmp_path: Path, kernel: str) -> None:
    async with entered(tmp_path) as backend:
        scope = anyio.CancelScope()

        async def leave(name: str, arguments: JSON) -> None:
            scope.cancel()
            await anyio.sleep_forever()

        backend.launcher.prepare = lambda child: setattr(child, "disturb", leave)
        with scope:
            await backend.create("vm1", document(kernel))
        assert scope.cancelled_caught
        assert backend.launcher.started["vm1"].exit_code == -9
        assert await backend.enumerate() == []
        assert left(tmp_path) == []
        backend.launcher.prepare = lambda child: None
        await backend.create("vm1", document(kernel))


async def test_a_device_that_the_guest_keeps_stays_with_the_reason(tmp_path: Path, kernel: str) -> None:
    async with entered(tmp_path) as backend:
        await (await backend.create("vm1", document(kernel))).start()
        vm, child = backend._vms["vm1"], backend.launcher.started["vm1"]
        await vm.monitor.ask("add", "device_add", {"id": "d1", "driver": "virtio-net-pci"})
        child.keeps.add("d1")
        with pytest.raises(HostError, match=r"the guest refuses to release it; d1 stays"):
            await vm.monitor.unplug("remove", "d1")
        child.keeps.clear()
        await vm.monitor.unplug("remove", "d1")
        assert child.machine.devices == {}


async def test_an_event_about_no_device_is_ignored(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        child.event("DEVICE_DELETED", device=[], path="/machine/peripheral")
        await system.pause()
        assert (await system.properties())["State"] == "Paused"


async def test_a_guest_that_does_not_answer_keeps_a_device_for_so_long(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvm.backends.qemu.monitor.UNPLUG_SECONDS", 0.05)
    async with entered(tmp_path) as backend:
        await (await backend.create("vm1", document(kernel))).start()
        backend.launcher.started["vm1"].disturb = _lost
        with pytest.raises(HostError, match=r"the guest has not released it in 0.05 s; d1 stays"):
            await backend._vms["vm1"].monitor.unplug("remove", "d1")


# VMs that survive.


async def test_a_vm_that_survives_is_left_running_and_opened_by_the_next_process(
    tmp_path: Path, kernel: str
) -> None:
    async with entered(tmp_path) as backend:
        asked = document(kernel) | {"ShouldTerminateOnLastHandleClosed": False}
        system = await backend.create("vm1", asked)
        await system.start()
        child = backend.launcher.started["vm1"]
        await system.close()
    assert child.exit_code is None
    assert len(left(tmp_path)) == 1
    directory = tmp_path / "run" / left(tmp_path)[0]
    assert {path.name for path in directory.iterdir()} >= {"qmp.sock", "mux.sock", "kept.json", "vm.json"}


async def test_a_vm_that_cannot_be_reached_is_left_as_it_is_without_a_descriptor_more(
    tmp_path: Path, kernel: str
) -> None:
    async with entered(tmp_path) as backend:
        await backend.create("vm1", document(kernel) | {"ShouldTerminateOnLastHandleClosed": False})
    [directory] = left(tmp_path)
    monitor = tmp_path / "run" / directory / "qmp.sock"
    monitor.unlink()
    link = listening(str(monitor))
    with (tmp_path / "run" / directory / "lock").open() as lock, link.ours, link.theirs:
        # As QEMU does.
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with entered(tmp_path) as backend:
            before = descriptors()
            for _ in range(2):
                with pytest.raises(HostError, match="HCS_E_CONNECT_FAILED"):
                    await backend.open("vm1")
            assert descriptors() <= before
    assert left(tmp_path) == [directory]


async def test_a_vm_that_was_terminated_survives_nothing(tmp_path: Path, kernel: str) -> None:
    async with entered(tmp_path) as backend:
        asked = document(kernel) | {"ShouldTerminateOnLastHandleClosed": False}
        system = await backend.create("vm1", asked)
        await system.terminate()
    assert left(tmp_path) == []


# What cannot be.


async def test_a_backend_that_was_not_entered_starts_nothing(tmp_path: Path, kernel: str) -> None:
    backend = StandInBackend(StandInLauncher(), tmp_path / "run")
    with pytest.raises(VMStateError, match="not entered, and nothing was started"):
        await backend.create("vm1", document(kernel))


async def test_a_boot_file_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    async with entered(tmp_path) as backend:
        with pytest.raises(HostError, match=r"ERROR_FILE_NOT_FOUND.*: /nonesuch"):
            await backend.create("vm1", document("/nonesuch"))
        assert left(tmp_path) == []


async def test_a_boot_file_that_goes_as_the_vm_is_created_is_said_to_be_missing(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with entered(tmp_path) as backend:
        # How guests run is found out before.
        await (await backend.create("vm0", document(kernel))).terminate()

        def choose() -> Chosen:
            os.unlink(kernel)
            return Chosen()

        monkeypatch.setattr(backend, "_choose_user", choose)
        with pytest.raises(HostError, match=r"create vm1: ERROR_FILE_NOT_FOUND.*vmlinux"):
            await backend.create("vm1", document(kernel))
        assert left(tmp_path) == []


@pytest.mark.parametrize("again", ["ToFile", "AsTemplate"])
async def test_a_paused_vm_is_saved_once_and_again_after_it_was_resumed(
    tmp_path: Path, kernel: str, again: str
) -> None:
    path, save = tmp_path / "state", _to_file(tmp_path)
    async with running(tmp_path, kernel, IsTemplate=True) as (system, child):
        for _ in range(2):
            await system.pause()
            await system.save(save)
            child.commands.clear()
            with pytest.raises(HostError, match=r"HCS_E_INVALID_STATE.*resume it, and pause it again"):
                await system.save({"SaveType": again, "SaveStateFilePath": f"{path}2"})
            assert "migrate" not in child.commands
            assert (await system.properties())["State"] == "Paused"
            await system.resume()
        await system.pause()
        await system.save({"SaveType": again, "SaveStateFilePath": str(path)})
    assert [name for name in os.listdir(tmp_path) if name.startswith("state")] == ["state"]


async def test_a_vm_is_resumed_once_it_is_saved_and_at_once_if_that_is_cancelled(
    tmp_path: Path, kernel: str
) -> None:
    save = _to_file(tmp_path)
    begun, saved = anyio.Event(), anyio.Event()

    async def hold(name: str, arguments: JSON) -> None:
        if name == "migrate":
            begun.set()
            await saved.wait()

    async with running(tmp_path, kernel) as (system, child):
        child.disturb = hold
        for cancelled in (False, True):
            begun, saved = anyio.Event(), anyio.Event()
            await system.pause()
            child.commands.clear()
            async with anyio.create_task_group() as resuming, anyio.create_task_group() as saving:
                saving.start_soon(system.save, save)
                await begun.wait()
                resuming.start_soon(system.resume)
                await anyio.wait_all_tasks_blocked()
                assert "cont" not in child.commands
                if cancelled:
                    saving.cancel_scope.cancel()
                else:
                    saved.set()
            after = child.commands.index("cont")
            assert ("migrate_cancel" in child.commands[:after]) == cancelled
            assert (await system.properties())["State"] == "Running"
            saved.set()


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "saving"])
async def test_a_qemu_that_does_not_end_a_save_that_is_cancelled_is_killed(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(lifetime, "QUIT_SECONDS", 0.05)
    begun = anyio.Event()

    async def hold(name: str, arguments: JSON) -> None:
        if name == "migrate":
            begun.set()
            await anyio.sleep_forever()
        if name == "migrate_cancel" and silent:
            await anyio.sleep_forever()

    async with running(tmp_path, kernel) as (system, child):
        await system.pause()
        child.disturb = hold
        monkeypatch.setattr(child, "_query_migrate", lambda: {"status": "active"})
        async with anyio.create_task_group() as saving:
            saving.start_soon(system.save, _to_file(tmp_path))
            await begun.wait()
            saving.cancel_scope.cancel()
        assert (await system.wait()).exit_type == "UnexpectedExit"
        assert child.exit_code == -9
    assert not [name for name in os.listdir(tmp_path) if name.startswith("state")]


@pytest.mark.parametrize("refused", [False, True], ids=["cancelled", "refused"])
async def test_a_save_ends_in_qemu_before_its_caller_goes_on_however_often_asyncio_cancels_it(
    tmp_path: Path,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend_name: str,
    refused: bool,
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own cancellation")
    # No machine is so slow.
    monkeypatch.setattr(lifetime, "QUIT_SECONDS", 600.0)
    begun, ending, may_end = anyio.Event(), anyio.Event(), anyio.Event()

    async def hold(name: str, arguments: JSON) -> None:
        if name == "migrate":
            if refused:
                raise Refusal("GenericError", "Migration is disabled")
            begun.set()
            await anyio.sleep_forever()
        if name == "migrate_cancel":
            ending.set()
            await may_end.wait()

    async with running(tmp_path, kernel) as (system, child):
        await system.pause()
        child.disturb = hold
        saving = asyncio.create_task(system.save(_to_file(tmp_path)))
        if not refused:
            await begun.wait()
            saving.cancel()
        await ending.wait()
        for _ in range(2):
            saving.cancel()
            await anyio.wait_all_tasks_blocked()
        assert not saving.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert child.commands[-1] == "closefd"
        await system.resume()


async def test_a_save_that_qemu_refuses_leaves_no_file_open_there(tmp_path: Path, kernel: str) -> None:
    async def refuse(name: str, arguments: JSON) -> None:
        if name == "migrate":
            raise Refusal("GenericError", "Migration is disabled")

    async with running(tmp_path, kernel) as (system, child):
        await system.pause()
        child.disturb = refuse
        with pytest.raises(HostError, match=r"save vm1: E_FAIL .*: migrate: Migration is disabled"):
            await system.save(_to_file(tmp_path))
        assert child.commands[-1] == "closefd"


async def test_a_state_that_ends_qemu_is_said_to_be_damaged_with_its_last_words(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvm.backends.qemu.vm.open_saved", lambda *_: os.open(kernel, os.O_RDONLY))
    async with entered(tmp_path) as backend:

        def end_as_it_loads(child: StandIn) -> None:
            async def end(name: str, arguments: JSON) -> None:
                if name == "migrate-incoming":
                    child.end(1, "load of migration failed: Invalid argument")
                    raise LostAnswer

            child.disturb = end

        backend.launcher.prepare = end_as_it_loads
        with pytest.raises(HostError, match=r"restore /state: ERROR_INVALID_DATA .*load of migration failed"):
            await backend.create("vm1", document(kernel, RestoreState={"SaveStateFilePath": "/state"}))
        assert await backend.enumerate() == []
        assert left(tmp_path) == []


async def test_a_vm_whose_kernel_has_gone_is_not_saved_and_runs_on(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, _):
        await system.pause()
        os.unlink(kernel)
        with pytest.raises(HostError, match=r"ERROR_FILE_NOT_FOUND.*vmlinux"):
            await system.save(_to_file(tmp_path))
        assert not (tmp_path / "state").exists()
        await system.resume()


async def test_emulation_is_refused_where_isolation_is_required(tmp_path: Path, kernel: str) -> None:
    backend = StandInBackend(StandInLauncher(), tmp_path / "run", require_isolation=True)
    async with backend:
        with pytest.raises(NotSupportedError, match=r"no security boundary.*nothing was started"):
            await backend.create("vm1", document(kernel))


# VMs of other processes.


@pytest.fixture
def other(tmp_path: Path) -> Iterator[int]:
    """The process of a VM ``vm2`` that another process has."""
    command = [sys.executable, "-c", CLAIMS, str(tmp_path / "run"), "vm2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        qemu = int(process.stdout.readline())
        yield qemu
        process.kill()
    with suppress(ProcessLookupError):
        os.kill(qemu, signal.SIGKILL)


async def test_a_vm_of_another_process_is_listed_measured_and_terminated(tmp_path: Path, other: int) -> None:
    async with entered(tmp_path) as backend:
        [found] = await backend.enumerate({"Owners": ["owner"]})
        assert (found["Id"], found["State"]) == ("vm2", "Running")
        with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_EXISTS"):
            await backend.create("vm2", document(__file__))
        system = await backend.open("vm2")
        assert (await system.properties("Statistics"))["Statistics"]["Memory"]["MemoryUsageCommitBytes"] > 0
        assert await system.working_set_bytes() > 0
        await system.terminate()
        assert (await system.wait()).exit_type == "ForcedExit"
        with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_STOPPED"):
            await system.terminate()
        await system.close()
        with pytest.raises(HostError, match="E_HANDLE"):
            await system.wait()


async def test_what_needs_the_connections_of_another_process_is_refused_with_the_reason(
    tmp_path: Path, other: int
) -> None:
    async with entered(tmp_path) as backend:
        system = await backend.open("vm2")
        for call in (system.pause(), system.modify({}), system.listen(""), system.properties("Memory")):
            with pytest.raises(NotSupportedError, match=r"has this VM and the connections to it"):
                await call
        os.kill(other, signal.SIGKILL)
        assert (await system.wait()).exit_type == "Unknown"
        await system.close()
        with pytest.raises(HostError, match="HCS_E_SYSTEM_NOT_FOUND"):
            await backend.open("vm2")


# Connections of the guest.


async def test_a_wait_for_the_guest_ends_with_its_vm(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, child):
        listener = await system.listen(vsock_service_id(5000))

        async def die() -> None:
            child.end(-9)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die)
            with pytest.raises(VMExitedError, match=r"has exited \(exit: UnexpectedExit"):
                await listener.accept()
        await listener.aclose()
        with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_STOPPED"):
            await system.listen(vsock_service_id(5001))


async def test_a_guest_that_breaks_the_mux_ends_its_connections_and_not_the_vm(
    tmp_path: Path, kernel: str
) -> None:
    async with running(tmp_path, kernel) as (system, child):
        listener = await system.listen(vsock_service_id(5000))
        await child.fake.vms["guest"].until_listening(vsock_service_id(5000))
        child.garble(b"\0" * 64)
        with pytest.raises(BridgeClosedError, match="the guest broke its connection"):
            await listener.accept()
        with pytest.raises(BridgeClosedError, match="the guest broke its connection"):
            await system.listen(vsock_service_id(5001))
        assert (await system.properties())["State"] == "Running"


async def test_a_service_that_is_no_port_is_refused(tmp_path: Path, kernel: str) -> None:
    async with running(tmp_path, kernel) as (system, _):
        with pytest.raises(HostError, match="Linux guests reach no others"):
            await system.listen("11111111-2222-3333-4444-555555555555")


async def test_what_a_guest_wrote_before_it_panicked_is_logged_in_printable_form(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, kernel) as (system, child):
        said = base64.b64encode(b"first\nKernel panic \x1b[2J\xff\n").decode()
        monkeypatch.setattr(child, "_ringbuf_read", lambda device, size, format: said)
        child.event("GUEST_PANICKED", action="pause")
        await system.wait()
    assert "vm1: console: first" in caplog.messages
    assert r"vm1: console: Kernel panic \x1b[2J" in "\n".join(caplog.messages)


async def test_a_process_that_does_not_end_does_not_keep_the_backend(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "_END_SECONDS", 0.05)
    async with running(tmp_path, kernel) as (system, child):
        monkeypatch.setattr(child, "kill", lambda: None)
    assert "vm1: QEMU was killed, and had not ended within 0.05 s" in caplog.messages
    assert child.exit_code is None
    assert (await system.wait()).exit_type == "ForcedExit"
