"""Calls without await: devices, processes, containers, pools; from any thread but that of the loop."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import uvm
import uvm.sync
from tests.descriptors import collect
from uvm._sync.files import ProcessInput, ProcessOutput
from uvm._sync.loop import Loop, running
from uvm.devices.scsi import ScsiSlot

pytestmark = pytest.mark.usefixtures("loop")

DISK = r"C:\vm\scratch.vhdx"
SPEC: dict[str, Any] = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}


def test_a_vm_its_devices_and_its_end(backend: uvm.FakeBackend) -> None:
    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm:
        assert isinstance(vm, uvm.sync.UtilityVM)
        assert vm.scsi is vm.scsi
        with vm.scsi.attach(DISK, mount=uvm.Mount()) as lease:
            assert isinstance(lease, uvm.sync.ScsiLease)
            assert isinstance(lease, uvm.sync.Lease)
            assert vm.scsi.find(DISK) == ScsiSlot(lease.controller, lease.lun)
        assert lease.state is uvm.LeaseState.GONE
        vm.pause()
        vm.resume()
        assert vm.stats().working_set_bytes > 0
        assert vm.devices().disks == ()
        with pytest.raises(uvm.NotAttachedError):
            vm.scsi.detach(DISK)
    assert vm.state is uvm.VMState.CLOSED
    with pytest.raises(uvm.VMExitedError):
        vm.run(["true"])
    assert backend.leftovers() == []


def test_a_vm_and_its_devices_are_printed_as_those_of_the_other_api(backend: uvm.FakeBackend) -> None:
    options = uvm.LCOWOptions(id="vm1")
    with uvm.sync.create_vm(options, backend=backend) as vm, vm.scsi.attach(DISK):
        assert str(vm) == "vm1: a Linux VM, running, with 1 disk"
        assert DISK in str(vm.devices())


def test_what_the_body_raises_is_raised_as_it_is(backend: uvm.FakeBackend) -> None:
    error = LookupError("of the body")
    with (
        pytest.raises(LookupError) as caught,
        uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm,
        vm.scsi.attach(DISK),
    ):
        raise error
    assert caught.value is error
    assert backend.leftovers() == []


def test_a_vm_that_is_started_keeps_the_loop_until_it_is_closed(backend: uvm.FakeBackend) -> None:
    vm = uvm.sync.start_vm(uvm.LCOWOptions(), backend=backend)
    assert running()
    assert vm.run(["echo", "x"], text=True).stdout == "x\n"
    vm.close()
    vm.close()
    assert not running()


def test_an_error_of_the_api_is_raised_and_leaves_no_loop(backend: uvm.FakeBackend) -> None:
    backend.faults.refuse(operation="create")
    with pytest.raises(uvm.HostError), uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend):
        pass
    with pytest.raises(uvm.HostError):
        uvm.sync.start_vm(uvm.LCOWOptions(), backend=backend)
    with uvm.sync.UtilityVM.create(uvm.LCOWOptions(), backend="fake") as vm:
        vm.terminate()
        with pytest.raises(uvm.VMExitedError):
            vm.start()
    assert not running()


def test_streams_are_files(backend: uvm.FakeBackend) -> None:
    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm:
        with vm.open_process(["cat"]) as process:
            process.stdin.write(b"one\ntwo\nthree")
            process.stdin.close()
            assert process.stdout.readline() == b"one\n"
            assert process.stdout.peek()[:3] == b"two"
            assert [*process.stdout] == [b"two\n", b"three"]
            assert process.wait() == 0
        assert process.stdin.closed
        with pytest.raises(ValueError, match="closed"):
            process.stdin.write(b"more")
        with vm.open_process(["cat"]) as process:
            with io.TextIOWrapper(process.stdin, "utf-8", write_through=True) as stdin:
                print("Zeile für Zeile", file=stdin)
            assert io.TextIOWrapper(process.stdout, "utf-8").read() == "Zeile für Zeile\n"
        with vm.open_process(["echo", "x"]) as process:
            assert [*process.stream()] == [("stdout", b"x\n")]


def test_text_for_a_process_is_refused_as_by_every_binary_file(backend: uvm.FakeBackend) -> None:
    with (
        uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm,
        vm.open_process(["cat"]) as process,
        pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"),
    ):
        process.stdin.write("text")  # type: ignore[arg-type]


def test_a_vm_that_was_not_entered_says_so(backend: uvm.FakeBackend) -> None:
    with pytest.raises(AttributeError, match="'run' is of what a 'with' statement has: enter this first"):
        _ = uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend).run  # type: ignore[attr-defined]


def test_a_file_that_is_forgotten_closes_nothing() -> None:
    closed: list[str] = []

    class Stream:
        async def aclose(self) -> None:
            closed.append("closed")

        send_eof = aclose

    for kind in (ProcessInput, ProcessOutput):
        kind(Stream())
        collect()
        assert closed == []
        kind(Stream()).close()
        assert closed.pop() == "closed"
        closed.clear()


def test_containers(backend: uvm.FakeBackend) -> None:
    with (
        uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm,
        vm.create_container("c", SPEC) as container,
        container.open_init(stdin=True) as init,
    ):
        assert container.run(["echo", "in it"]).stdout == b"in it\n"
        init.stdin.close()
        assert init.stdout.read() == b""
        assert container.wait().result == 0
    assert backend.leftovers() == []


def test_files(backend: uvm.FakeBackend, tmp_path: Path) -> None:
    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm:
        vm.files.write("/etc/name", b"content")
        assert vm.files.read("/etc/name") == b"content"
        vm.files.copy_out("/etc", tmp_path / "copy")
        assert (tmp_path / "copy" / "name").read_bytes() == b"content"
        assert [file.name for file in vm.files.list("/etc")] == ["name"]


def test_callbacks_are_called_in_threads_of_their_own_with_faces(backend: uvm.FakeBackend) -> None:
    came: list[object] = []
    threads: list[threading.Thread] = []

    def note(chunk: str) -> None:
        came.append(chunk)
        threads.append(threading.current_thread())

    def prepare(vm: uvm.sync.UtilityVM) -> None:
        came.append(vm.run(["echo", "prepared"], text=True, on_stdout=note).stdout)

    with uvm.sync.Pool(uvm.LCOWOptions(), backend=backend, ready=1, prepare=prepare) as pool:
        with pool.vm() as vm:
            assert vm.state is uvm.VMState.RUNNING
        acquired = pool.acquire()
        pool.release(acquired)
    assert came[:2] == ["prepared\n", "prepared\n"]
    assert not any(isinstance(thread, Loop) or thread is threading.main_thread() for thread in threads)
    # The loop ends, as after each test, once the call of a preparation that the pool has left has ended.


def test_the_output_of_the_guest_is_a_file(backend: uvm.FakeBackend) -> None:
    read: list[bytes] = []

    def handler(output: uvm.sync.ProcessOutput) -> None:
        read.append(output.readline())

    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend, guest_output=handler):
        pass
    assert b"GCS started" in read[0]


def test_any_thread_may_call(backend: uvm.FakeBackend) -> None:
    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm, ThreadPoolExecutor(8) as threads:
        runs = [threads.submit(vm.run, ["echo", str(n)]) for n in range(40)]
        assert [run.result().stdout for run in runs] == [b"%d\n" % n for n in range(40)]


def test_threads_that_come_and_go_share_one_loop_or_start_another() -> None:
    def live(n: int) -> bytes:
        with uvm.sync.create_vm(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
            return vm.run(["echo", str(n)]).stdout

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(live, range(12))] == [b"%d\n" % n for n in range(12)]
    assert not running()


def test_a_call_in_the_thread_of_the_loop_is_refused(backend: uvm.FakeBackend) -> None:
    refused: list[BaseException] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(threading.current_thread(), Loop) and not refused:
                try:
                    uvm.sync.cpu_groups(backend)
                except uvm.VMStateError as error:
                    refused.append(error)

    logger, handler = logging.getLogger("uvm"), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend):
            pass
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert "its own event loop" in str(refused[0])


def test_a_timeout_bounds_the_calls_in_it(backend: uvm.FakeBackend) -> None:
    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm:
        with vm.open_process(["cat"]) as process:
            with pytest.raises(TimeoutError), uvm.sync.timeout(60), uvm.sync.timeout(0.01):
                process.stdout.read()
            process.stdin.write(b"still there")
            process.stdin.close()
            assert process.stdout.read() == b"still there"
        backend.faults.hang(operation="create")
        with pytest.raises(TimeoutError), uvm.sync.timeout(0.01):
            uvm.sync.start_vm(uvm.LCOWOptions(), backend=backend)
        with pytest.raises(uvm.OptionsError):
            uvm.sync.timeout(-1)


def test_the_loop_can_be_kept_and_chosen(backend: uvm.FakeBackend, loop: str) -> None:
    with uvm.sync.event_loop(loop):  # type: ignore[arg-type]
        kept = Loop.now
        assert uvm.sync.cpu_groups(backend) == ()
        with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend):
            assert Loop.now is kept
        other = "trio" if loop == "asyncio" else "asyncio"
        with pytest.raises(uvm.VMStateError, match="runs on"), uvm.sync.event_loop(other):  # type: ignore[arg-type]
            pass
    assert not running()


def test_what_is_opened_by_name_shows_what_its_backend_has() -> None:
    with uvm.sync.open_backend("fake") as backend:
        assert backend.name == "fake"
        assert backend.enumerate() == []
        assert backend.host().processors > 0
        assert backend.files.stat(r"C:\nowhere") is None
        group = uvm.sync.create_cpu_group(backend, [0])
        assert uvm.sync.cpu_groups(backend) == (group,)
        uvm.sync.delete_cpu_group(backend, group.id)


_FORGETS = """
import uvm, uvm.sync
vm = uvm.sync.start_vm(uvm.LCOWOptions(), backend=uvm.FakeBackend())
print(vm.run(["echo", "done"], text=True).stdout, end="")
"""


def test_a_program_ends_that_forgets_to_close_its_vm() -> None:
    run = subprocess.run([sys.executable, "-c", _FORGETS], capture_output=True, check=True, timeout=100)
    assert run.stdout.split() == [b"done"]


def test_nothing_is_loaded_and_no_thread_runs_before_the_first_call() -> None:
    program = "import uvm.sync, sys, threading; print(len(threading.enumerate()), 'anyio' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=100)
    assert run.stdout.split() == [b"1", b"False"]
