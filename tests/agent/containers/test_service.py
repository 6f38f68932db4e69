"""Containers, as a host asks for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.containers.rig import FOREVER, JSON, Rig, reaping
from tests.descriptors import descriptors
from uvm._wire.frames import Procedure
from uvm.hresult import HResult

UNKNOWN = (HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND, "HRESULT: 0xc037010e")
NOT_FOUND = (HResult.ERROR_NOT_FOUND, "HRESULT: 0x80070490")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with reaping(tmp_path) as rig:
        yield rig


# Its first process.


def test_a_container_runs_its_first_process_and_its_exit_follows_that_of_the_process(rig: Rig) -> None:
    rig.create("sh", "-c", "cat; exit 3")
    rig.ask(Procedure.START)
    process = rig.start("StdIn", "StdOut")
    rig.send(process, b"hello")
    assert rig.wait(process) == 3
    assert process.output == b"hello"
    rig.until(lambda: rig.notifications)
    assert rig.notifications == [
        {
            "ContainerId": "c",
            "ActivityId": "activity-c",
            "Type": "UnexpectedExit",
            "Operation": "None",
            "Result": 0,
        }
    ]


def test_an_exit_that_no_request_waits_for_is_not_reported(rig: Rig) -> None:
    rig.create("true")
    rig.start()
    rig.until(lambda: not rig.adapters.joined)  # it has exited
    rig.ask(Procedure.DELETE_CONTAINER_STATE)
    assert rig.notifications == []


def test_the_exit_of_a_container_is_reported_once_to_the_host_and_to_each_that_waits(rig: Rig) -> None:
    rig.create("cat")
    process = rig.start("StdIn", "StdOut")
    body = {"ProcessId": process.pid, "TimeoutInMs": FOREVER}
    waiting = [rig.later(Procedure.WAIT_FOR_PROCESS, "c", **body) for _ in range(3)]
    rig.send(process, b"")
    rig.until(lambda: all(waiting))
    assert [answer[0]["ExitCode"] for answer in waiting] == [0, 0, 0]
    assert rig.wait(process) == 0
    rig.until(lambda: rig.notifications)
    assert len(rig.notifications) == 1


def test_a_wait_ends_at_its_own_limit(rig: Rig) -> None:
    rig.create("sleep", "1000")
    process = rig.start()
    refused = rig.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=1)
    assert refused[0] == HResult.ERROR_VMCOMPUTE_TIMEOUT


def test_one_that_is_killed_has_exited_by_the_signal(rig: Rig) -> None:
    rig.create("sleep", "1000")
    process = rig.start()
    rig.ask(Procedure.SIGNAL_PROCESS, ProcessId=process.pid, Options={"Signal": 10})
    assert rig.wait(process) == 128 + 10
    rig.until(lambda: rig.notifications)
    assert rig.notifications[0]["Type"] == "UnexpectedExit"


@pytest.mark.parametrize(
    ("procedure", "code", "how"),
    [
        (Procedure.SHUTDOWN_GRACEFUL, 128 + 15, "GracefulExit"),
        (Procedure.SHUTDOWN_FORCED, 128 + 9, "ForcedExit"),
    ],
)
def test_a_container_is_asked_to_end(rig: Rig, procedure: Procedure, code: int, how: str) -> None:
    rig.create("sleep", "1000")
    process = rig.start()
    rig.ask(procedure)
    assert rig.wait(process) == code
    rig.until(lambda: rig.notifications)
    assert rig.notifications[0]["Type"] == how
    stopped = (HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED, "HRESULT 0xc0370110: container not running")
    assert rig.refusal(procedure) == stopped


def test_output_that_was_not_read_keeps_an_exit_from_its_report(rig: Rig) -> None:
    rig.create("sh", "-c", "echo first; sleep 1000 & exit 4")
    process = rig.start()
    waiting = rig.later(Procedure.WAIT_FOR_PROCESS, "c", ProcessId=process.pid, TimeoutInMs=FOREVER)
    rig.until(lambda: not rig.adapters.joined)  # it has exited
    assert waiting == []
    rig.loop.post(process.streams["StdOut"].receiver.closed)
    rig.until(lambda: waiting)
    assert waiting[0]["ExitCode"] == 4


def test_streams_that_the_host_does_not_want_are_closed(rig: Rig) -> None:
    rig.create("sh", "-c", "cat; trap '' PIPE; echo out || exit 5")
    process = rig.start("StdErr")
    assert rig.wait(process) == 5
    assert process.streams["StdErr"].ended


def test_a_container_starts_once(rig: Rig) -> None:
    rig.create("sleep", "1000")
    rig.start()
    body, _ = rig.parameters((), None)
    refused = rig.refusal(Procedure.EXECUTE_PROCESS, **body)
    assert refused == (HResult.E_FAIL, "cannot start a container that is running")


def test_one_that_was_killed_before_it_started_does_not_start_and_leaves_no_streams(rig: Rig) -> None:
    before = descriptors()
    rig.create("true")
    rig.ask(Procedure.SHUTDOWN_FORCED)
    rig.until(lambda: not rig.adapters.joined)
    body, _ = rig.parameters((), None)
    refused = rig.refusal(Procedure.EXECUTE_PROCESS, **body)
    assert refused == (HResult.E_FAIL, "cannot start a container that is stopped")
    assert descriptors() <= before


def test_a_port_at_which_no_host_listens_is_refused(rig: Rig) -> None:
    rig.create("true")
    body, ports = rig.parameters(("StdOut",), None)
    rig.refusing |= set(ports.values())
    code, text = rig.refusal(Procedure.EXECUTE_PROCESS, **body)
    assert code == HResult.E_FAIL
    assert text.startswith("failed creating stdout Connection: vsock Dial port")
    assert rig.wait(rig.start()) == 0


# Other processes.


def test_other_processes_run_beside_the_first(rig: Rig) -> None:
    rig.create("cat")
    first = rig.start("StdIn", "StdOut")
    other = rig.execute("sh", "-c", "cat; echo err >&2; exit 7")
    rig.send(other, b"mine")
    assert rig.wait(other) == 7
    assert (other.output, other.streams["StdErr"].data) == (b"mine", b"err\n")
    assert rig.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=other.pid) == NOT_FOUND
    rig.send(first, b"yours")
    assert rig.wait(first) == 0
    assert first.output == b"yours"


def test_no_process_starts_in_a_container_that_has_ended(rig: Rig) -> None:
    rig.create("true")
    rig.wait(rig.start())
    body, _ = rig.parameters((), {"args": ["true"]})
    refused = rig.refusal(Procedure.EXECUTE_PROCESS, **body)
    assert refused == (HResult.E_FAIL, "exec failed: cannot exec in a stopped container")


def test_a_guest_whose_image_has_no_runtime_says_so_and_makes_no_container(tmp_path: Path) -> None:
    with reaping(tmp_path, runtime=False) as rig:
        config = rig.config("c", process={"args": ["true"]})
        code, text = rig.refusal(Procedure.CREATE, ContainerConfig=config)
        assert code == HResult.E_FAIL
        assert "neither crun nor runc is in its image; install one where the image is built" in text
        assert rig.refusal(Procedure.SHUTDOWN_FORCED) == UNKNOWN


def test_a_program_that_is_not_there_is_refused_in_the_words_of_the_runtime(rig: Rig) -> None:
    rig.create("sleep", "1000")
    rig.start()
    before = descriptors()
    body, _ = rig.parameters(("StdOut",), {"args": ["not-there"]})
    refused = rig.refusal(Procedure.EXECUTE_PROCESS, **body)
    assert refused == (HResult.E_FAIL, "crun exec failed: not-there: no such program")
    assert descriptors() <= before


def test_a_process_that_has_exited_is_not_signalled(rig: Rig) -> None:
    rig.create("sleep", "1000")
    rig.start()
    other = rig.execute("true")
    rig.until(lambda: other.streams["StdOut"].ended)
    assert rig.wait(other) == 0
    assert rig.refusal(Procedure.SIGNAL_PROCESS, ProcessId=other.pid) == NOT_FOUND


def test_a_signal_that_is_none_is_refused(rig: Rig) -> None:
    rig.create("sleep", "1000")
    process = rig.start()
    refused = rig.refusal(Procedure.SIGNAL_PROCESS, ProcessId=process.pid, Options={"Signal": 99})
    assert refused == (HResult.E_FAIL, "invalid argument")


# Terminals.


def test_a_terminal_has_its_size_from_its_start_and_another_when_asked(rig: Rig) -> None:
    size = {"height": 9, "width": 8}
    rig.create("sh", "-c", "stty size; read x; stty size", terminal=True, consoleSize=size)
    process = rig.start("StdIn", "StdOut")
    rig.until(lambda: b"9 8" in process.output)
    rig.ask(Procedure.RESIZE_CONSOLE, ProcessId=process.pid, Height=30, Width=100)
    rig.loop.post(lambda: process.streams["StdIn"].receiver.received(b"x\n"))
    assert rig.wait(process) == 0
    assert process.output.replace(b"\r", b"").endswith(b"30 100\n")


def test_other_processes_have_terminals_of_their_own(rig: Rig) -> None:
    rig.create("sleep", "1000")
    rig.start()
    other = rig.execute("sh", "-c", "test -t 0 && test -t 2 && stty size", terminal=True)
    assert rig.wait(other) == 0
    assert other.output == b"0 0\r\n"
    assert other.streams["StdErr"].closed


def test_one_without_a_terminal_cannot_be_resized(rig: Rig) -> None:
    rig.create("sleep", "1000")
    process = rig.start()
    refused = rig.refusal(Procedure.RESIZE_CONSOLE, ProcessId=process.pid, Height=1, Width=1)
    assert refused == (HResult.E_FAIL, f"pid: {process.pid}, is not a tty and cannot be resized")


# Creation.


def test_a_container_that_cannot_be_made_leaves_nothing(rig: Rig) -> None:
    before = descriptors()
    config = rig.config(process={"args": ["not-there"]})
    text = "failed to create container: crun create failed: not-there: no such program"
    assert rig.refusal(Procedure.CREATE, ContainerConfig=config) == (HResult.E_FAIL, text)
    assert not rig.bundle().exists()
    assert os.listdir(rig.directory / "f") == []
    assert descriptors() <= before
    rig.create("true")


def test_a_root_that_was_there_stays_if_a_container_cannot_be_made(rig: Rig) -> None:
    root = rig.bundle() / "rootfs"
    root.mkdir(parents=True)
    rig.refusal(Procedure.CREATE, ContainerConfig=rig.config(process={"args": ["not-there"]}))
    assert os.listdir(rig.bundle()) == ["rootfs"]
    root.rmdir()
    rig.bundle().rmdir()


def test_an_id_is_taken_until_the_container_is_deleted(rig: Rig) -> None:
    rig.create("true")
    code = HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS
    assert rig.refusal(Procedure.CREATE, ContainerConfig=rig.config()) == (code, "HRESULT: 0xc037010f")
    rig.ask(Procedure.DELETE_CONTAINER_STATE)
    assert rig.refusal(Procedure.DELETE_CONTAINER_STATE) == UNKNOWN
    assert not rig.bundle().exists()
    rig.create("true")


def test_a_container_that_is_being_made_is_not_ready(rig: Rig) -> None:
    made = rig.later(Procedure.CREATE, "c", ContainerConfig=rig.config())
    code = HResult.HCS_E_INVALID_STATE
    refused = rig.refusal(Procedure.SHUTDOWN_FORCED)
    assert refused == (code, "container is still being created: HRESULT: 0x80370105")
    rig.until(lambda: made)


@pytest.mark.parametrize("part", ["process", "root", "linux"])
def test_a_specification_without_the_essential_is_refused(rig: Rig, part: str) -> None:
    config = json.loads(rig.config())
    del config["OciSpecification"][part]
    code, text = rig.refusal(Procedure.CREATE, ContainerConfig=json.dumps(config))
    assert (code, part in text) == (HResult.ERROR_VMCOMPUTE_INVALID_JSON, True)


def test_an_older_schema_is_refused(rig: Rig) -> None:
    config = json.loads(rig.config())
    config["SchemaVersion"] = {"Major": 2, "Minor": 0}
    code = HResult.ERROR_VMCOMPUTE_INVALID_JSON
    refused = rig.refusal(Procedure.CREATE, ContainerConfig=json.dumps(config))
    assert refused == (code, "HRESULT 0xc037010d: invalid schema version: {2 0}")


def test_an_id_that_a_runtime_would_take_for_an_option_is_refused(rig: Rig) -> None:
    refused = rig.refusal(Procedure.CREATE, "--help", ContainerConfig=rig.config())
    assert refused == (HResult.E_INVALIDARG, "HRESULT 0x80070057: invalid container ID")


def test_one_that_the_runtime_cannot_finish_leaves_no_state_and_no_process(rig: Rig) -> None:
    config = rig.config(process={"args": ["sleep", "1000"]}, hostname="fails-late")
    refused = rig.refusal(Procedure.CREATE, ContainerConfig=config)
    assert refused == (
        HResult.E_FAIL,
        "failed to create container: crun create failed: it failed late",
    )
    rig.create("true")
    assert rig.wait(rig.start()) == 0


def test_a_network_namespace_is_assigned_to_one_container_at_a_time(rig: Rig) -> None:
    named = {"windows": {"network": {"networkNamespace": "N"}}}
    rig.ask(Procedure.CREATE, "a", ContainerConfig=rig.config("a", **named))
    assert list(rig.adapters.joined) == ["n"]
    code, text = rig.refusal(Procedure.CREATE, "b", ContainerConfig=rig.config("b", **named))
    assert (code, "previously assigned" in text) == (HResult.E_FAIL, True)
    assert not rig.bundle("b").exists()
    rig.wait(rig.start(container="a"), "a")
    rig.ask(Procedure.CREATE, "b", ContainerConfig=rig.config("b", **named))


def test_containers_that_name_no_network_namespace_have_their_own(rig: Rig) -> None:
    rig.create("true", container="a")
    rig.create("true", container="b")
    assert list(rig.adapters.joined) == ["a", "b"]
    assert (rig.bundle("b") / "resolv.conf").read_text() == "search b\n"


def test_one_that_ends_disturbs_no_other(rig: Rig) -> None:
    rig.create("cat", container="a")
    rig.create("cat", container="b")
    first, second = (rig.start("StdIn", "StdOut", container=each) for each in "ab")
    rig.ask(Procedure.SHUTDOWN_FORCED, "a")
    assert rig.wait(first, "a") == 128 + 9
    rig.ask(Procedure.DELETE_CONTAINER_STATE, "a")
    rig.send(second, b"still here")
    assert rig.wait(second, "b") == 0
    assert second.output == b"still here"


# Its end.


def test_the_state_of_a_running_container_is_not_deleted(rig: Rig) -> None:
    rig.create("sleep", "1000")
    rig.start()
    refused = rig.refusal(Procedure.DELETE_CONTAINER_STATE)
    assert refused == (HResult.HCS_E_INVALID_STATE, "HRESULT 0x80370105: container not stopped")
    rig.ask(Procedure.SHUTDOWN_FORCED)


def test_one_that_was_not_started_ends_with_its_state(rig: Rig) -> None:
    before = descriptors()
    rig.create("sleep", "1000")
    rig.ask(Procedure.DELETE_CONTAINER_STATE)
    rig.until(lambda: not rig.adapters.joined)
    assert descriptors() <= before


def test_all_in_a_container_end_with_its_first_process(rig: Rig) -> None:
    rig.create("cat")
    first = rig.start("StdIn", "StdOut")
    other = rig.execute("sleep", "1000")
    cgroup = rig.cgroups / "pods" / "c"
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.procs").write_text(f"{other.pid}\n")
    rig.send(first, b"")
    assert rig.wait(first) == 0
    assert rig.wait(other) == 128 + 9
    (cgroup / "cgroup.procs").unlink()


def test_a_container_that_is_not_there_is_not_found(rig: Rig) -> None:
    for procedure in (
        Procedure.EXECUTE_PROCESS,
        Procedure.WAIT_FOR_PROCESS,
        Procedure.SIGNAL_PROCESS,
        Procedure.RESIZE_CONSOLE,
        Procedure.GET_PROPERTIES,
        Procedure.SHUTDOWN_GRACEFUL,
        Procedure.SHUTDOWN_FORCED,
        Procedure.DELETE_CONTAINER_STATE,
    ):
        assert rig.refusal(procedure, "none") == UNKNOWN


# Properties and resources.


def properties(rig: Rig, *types: str) -> Any:
    query = json.dumps({"PropertyTypes": types})
    return json.loads(rig.ask(Procedure.GET_PROPERTIES, Query=query)["Properties"])


def test_the_processes_and_figures_of_a_container_are_those_of_its_cgroup(rig: Rig) -> None:
    rig.create("sleep", "1000")
    cgroup = rig.cgroups / "pods" / "c"
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.procs").write_text("7\n9\n")
    (cgroup / "memory.current").write_text("4096\n")
    found = properties(rig, "ProcessList", "Statistics")
    assert found["ProcessList"] == [{"ProcessId": 7}, {"ProcessId": 9}]
    assert found["LCOWMetrics"]["memory"]["usage"] == {"usage": 4096}
    assert properties(rig) == {}
    (cgroup / "cgroup.procs").unlink()


def constrain(linux: JSON) -> JSON:
    settings = {"Linux": linux}
    return {"ResourceType": "ContainerConstraints", "RequestType": "Update", "Settings": settings}


def test_resources_are_changed_by_the_runtime(rig: Rig) -> None:
    rig.create("sleep", "1000")
    rig.ask(Procedure.MODIFY_SETTINGS, Request=constrain({"cpu": {"shares": 512}}))
    assert json.loads((rig.directory / "states" / "c" / "resources").read_text()) == {"cpu": {"shares": 512}}


def test_resources_of_a_container_that_has_ended_are_not_changed(rig: Rig) -> None:
    rig.create("true")
    rig.wait(rig.start())
    refused = rig.refusal(Procedure.MODIFY_SETTINGS, Request=constrain({}))
    assert refused == (HResult.E_FAIL, "crun update failed: container is stopped")


def test_what_is_no_resource_of_a_container_is_refused(rig: Rig) -> None:
    rig.create("true")
    other = {"ResourceType": "PodCgroupMemoryLimit", "RequestType": "Update"}
    text = 'the ResourceType "PodCgroupMemoryLimit" is not supported for containers'
    assert rig.refusal(Procedure.MODIFY_SETTINGS, Request=other) == (HResult.E_FAIL, text)
    unknown = {"ResourceType": "Moon", "RequestType": "Add"}
    refused = rig.refusal(Procedure.MODIFY_SETTINGS, Request=unknown)
    assert refused == (HResult.E_FAIL, "invalid ResourceType 'Moon'")
