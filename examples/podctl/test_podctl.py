"""The tool on the in-memory host: each command, each kind of failure, and ctrl-C at each request."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from podctl import INTERRUPTED, main

from uvm.backends.fake import FakeBackend, FakeProcess

LAYER, SCRATCH = r"C:\layers\base.vhd", r"C:\scratch\{}.vhdx"


@pytest.fixture
def host(uvm_backend: FakeBackend) -> FakeBackend:
    """Return a host with the files of the pod; `uvm_backend` asserts that nothing is left on it."""
    for path in (LAYER, SCRATCH.format("web"), SCRATCH.format("log")):
        uvm_backend.files.add(path, size=1 << 20)
    return uvm_backend


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    return write(tmp_path, web=["sleep", "3600"], log=["sleep", "3600"])


def write(directory: Path, **commands: list[str]) -> Path:
    """Write the file of a pod, whose containers run commands."""
    containers: dict[str, Any] = {
        name: {
            "layers": [LAYER],
            "scratch": SCRATCH.format(name),
            "spec": {"process": {"args": args, "cwd": "/"}, "linux": {}},
        }
        for name, args in commands.items()
    }
    file = directory / "pod.json"
    file.write_text(json.dumps({"vm": {"memory_mb": 512}, "containers": containers}), "utf-8")
    return file


def test_a_command_runs_in_a_container_and_its_exit_code_is_that_of_the_tool(
    host: FakeBackend, pod: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["exec", str(pod), "web", "echo", "hello"], backend=host) == 0
    assert capfd.readouterr().out == "hello\n"
    assert main(["exec", str(pod), "log", "false"], backend=host) == 1


def test_the_devices_of_a_pod_are_those_of_its_containers(
    host: FakeBackend, pod: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", str(pod), "--json"], backend=host) == 0
    disks = json.loads(capsys.readouterr().out)["disks"]
    assert {each["host_path"] for each in disks} == {SCRATCH.format("web"), SCRATCH.format("log")}


def test_it_waits_for_the_containers(
    host: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", str(write(tmp_path, web=["true"], log=["false"]))], backend=host) == 1
    assert "web has exited with 0\nlog has exited with 1" in capsys.readouterr().out


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="no main thread")
def test_ctrl_c_while_it_runs_ends_the_pod(host: FakeBackend, tmp_path: Path) -> None:
    @host.programs.register("serve")
    async def serve(process: FakeProcess) -> None:
        threading.Thread(target=interrupt_main).start()
        await anyio.sleep_forever()

    assert main(["up", str(write(tmp_path, web=["serve"]))], backend=host) == INTERRUPTED
    assert not host.vms


@pytest.mark.parametrize("nth", range(1, 6))
def test_whatever_the_host_refuses_nothing_is_left(
    nth: int, host: FakeBackend, pod: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.faults.refuse("E_FAIL", to=("host", "guest"), request_type="Add", nth=nth)
    assert main(["exec", str(pod), "web", "true"], backend=host) == 1
    assert "E_FAIL" in capsys.readouterr().err


def test_a_vm_that_dies_is_reported(host: FakeBackend, pod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.faults.crash(operation="execute process", nth=3)
    assert main(["exec", str(pod), "web", "true"], backend=host) == 1
    assert "podctl: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no file of a pod"),
        ('{"containers": {"web": {"spec": {}}}}', "container web has no layers, scratch"),
        ('{"vm": {"memory": 5}, "containers": {}}', "did you mean memory_mb"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(
    text: str, said: str, host: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pod.json"
    file.write_text(text, "utf-8")
    assert main(["up", str(file)], backend=host) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_container_that_is_not_there_is_named(
    host: FakeBackend, pod: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exec", str(pod), "db", "true"], backend=host) == 1
    assert "no container db, but web, log" in capsys.readouterr().err


def interrupt_main() -> None:
    """Press ctrl-C."""
    if sys.platform == "win32":
        import _thread

        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
