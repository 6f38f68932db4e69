"""What keeps a VM from starting, and what is said of it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.backends.qemu.test_vm import document, entered, left
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.preconditions import (
    check_console,
    check_memory,
    explained,
)
from uvm.backends.qemu.saving import Boot
from uvm.errors import HostError, NoSpaceError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.devices import ComPort, Devices
from uvm.schema.system import Topology, VirtualMachine, VirtualMachineMemory

BOOT = Boot("tcg", "/boot/kernel", "/boot/initrd")


def machine(size_mb: int) -> VirtualMachine:
    return VirtualMachine(compute_topology=Topology(memory=VirtualMachineMemory(size_in_mb=size_mb)))


@pytest.mark.parametrize("name", ["/nowhere/qemu", __file__])
def test_a_program_that_there_is_not_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(NotSupportedError, match=r"no such program.*apt-get install qemu-system-x86"):
        QEMUBackend(binary=name)


def test_a_vm_has_no_more_memory_than_the_machine() -> None:
    check_memory(machine(1000), 1000, "create vm1")
    with pytest.raises(NoSpaceError, match=r"create vm1: .*1,001 MB.*has 1,000 MB; use less"):
        check_memory(machine(1001), 1000, "create vm1")


@pytest.mark.anyio
async def test_a_vm_that_is_larger_than_the_machine_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "kernel").touch()
    large = document(str(tmp_path / "kernel"))
    large["VirtualMachine"]["ComputeTopology"]["Memory"]["SizeInMB"] = 1 << 30
    async with entered(tmp_path) as backend:
        with pytest.raises(NoSpaceError, match="use less memory"):
            await backend.create("vm1", large)
        assert backend.launcher.started == {}
        assert left(tmp_path) == []


def with_console(path: Path) -> VirtualMachine:
    return VirtualMachine(devices=Devices(com_ports={"0": ComPort(named_pipe=str(path))}))


@pytest.mark.skipif(sys.platform == "win32", reason="has no Unix sockets")
def test_the_socket_of_a_console_replaces_nothing_that_lives(tmp_path: Path) -> None:
    path = tmp_path / "console"
    machine = with_console(path)
    check_console(machine, "create vm1")
    path.write_text("a file of the user")
    with pytest.raises(HostError, match=r"ERROR_ALREADY_EXISTS.*choose another path"):
        check_console(machine, "create vm1")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listens:
        listens.bind(str(path))
        listens.listen()
        with pytest.raises(HostError, match="ERROR_ALREADY_EXISTS"):
            check_console(machine, "create vm1")
    # As a process that was killed leaves it.
    check_console(machine, "create vm1")


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A QEMU that is too old, and lacks devices."""
    path = tmp_path / "qemu"
    path.write_text("""#!/bin/sh
case "$1" in
--version) echo "QEMU emulator version 5.2.0" ;;
*) echo 'name "scsi-hd", bus SCSI' ;;
esac
""")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="runs a program of Linux")
def test_a_qemu_that_ended_at_once_is_looked_at(old: str) -> None:
    error = explained(HostError("create vm1", HResult.E_FAIL, "-foo: invalid option"), old, BOOT)
    assert (error.operation, error.hresult) == ("create vm1", HResult.E_FAIL)
    first, *rest = error.text.split("; ")
    assert first == "-foo: invalid option"
    assert rest[0] == "QEMU 5.2 is too old: 7.2 is the oldest that is supported"
    assert any("lacks the devices pcie-root-port" in each for each in rest)
    assert "/boot" not in error.text


@pytest.mark.parametrize("said", ["Error while loading elf kernel", "kernel too old to load a ram disk"])
def test_what_was_to_be_booted_is_named_if_it_may_be_damaged(said: str) -> None:
    error = explained(HostError("create vm1", HResult.E_FAIL, said), "/nowhere/qemu", BOOT)
    assert error.text == f"{said}; it was to boot /boot/kernel with /boot/initrd: are they whole?"
