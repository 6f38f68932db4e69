"""What QEMU needs of a machine, and what is said where it is missing."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.backends.qemu.environment import ImaginedLinux
from uvm.backends.checks import Finding, run_checks
from uvm.backends.qemu.accel import Accelerator
from uvm.backends.qemu.availability import OPTIONAL, REQUIREMENTS, absence, availability, this_machine


def findings(machine: ImaginedLinux) -> dict[str, Finding]:
    return run_checks((*REQUIREMENTS, *OPTIONAL), machine)


def test_a_machine_that_has_everything_passes_every_check() -> None:
    assert absence(ImaginedLinux()) == availability(ImaginedLinux()) == []
    assert {finding.status for finding in findings(ImaginedLinux()).values()} == {"ok"}


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_elsewhere_nothing_but_the_system_is_asked(system: str) -> None:
    machine = ImaginedLinux(system=system)
    assert absence(machine) == availability(machine) == [f"VMs with QEMU need Linux, and this is {system}"]
    assert machine.asked == []


def test_other_processors_are_refused() -> None:
    assert availability(ImaginedLinux(machine="aarch64")) == [
        "VMs with QEMU need x86_64, and this is aarch64"
    ]


def test_without_qemu_the_packages_of_three_distributions_are_named() -> None:
    (problem,) = absence(ImaginedLinux(programs={"setpriv"}))
    assert "no qemu-system-x86_64" in problem
    assert "'apt-get install qemu-system-x86' on Debian and Ubuntu" in problem
    assert "'dnf install qemu-system-x86-core' on Fedora" in problem


def test_a_machine_with_qemu_that_cannot_be_used_has_it_all_the_same() -> None:
    machine = ImaginedLinux(version=(6, 2))
    assert absence(machine) == []
    (problem,) = availability(machine)
    assert problem.startswith("QEMU 6.2 is too old: 7.2 is the oldest")


def test_the_devices_that_are_missing_are_named() -> None:
    machine = ImaginedLinux()
    machine.devices -= {"virtio-9p-pci", "pvpanic-pci"}
    (problem,) = availability(machine)
    assert "lacks the devices pvpanic-pci, virtio-9p-pci" in problem


def test_what_no_image_can_be_built_of_is_said() -> None:
    assert availability(ImaginedLinux(no_image="there is no kernel")) == ["there is no kernel"]


def test_where_nothing_can_be_kept_no_vm_runs() -> None:
    machine = ImaginedLinux(no_directory="/home/user/.local/state/uvm")
    assert availability(machine) == ["/home/user/.local/state/uvm: it cannot be made; name another one"]


def test_without_setpriv_qemu_would_outlive_its_process() -> None:
    (problem,) = availability(ImaginedLinux(programs={"qemu-system-x86_64"}))
    assert "no setpriv" in problem
    assert "util-linux" in problem


def test_all_that_is_missing_is_said_at_once() -> None:
    machine = ImaginedLinux(
        programs={"qemu-system-x86_64"}, version=(5, 0), devices=set(), no_image="no kernel"
    )
    assert len(availability(machine)) == 4


def test_what_qemu_does_not_answer_is_unknown_and_nothing_is_held_against_it() -> None:
    found = findings(ImaginedLinux(silent=True))
    assert {name for name, each in found.items() if each.status == "unknown"} == {
        "QEMU version",
        "QEMU devices",
    }
    assert findings(ImaginedLinux(version=None))["QEMU version"].status == "unknown"
    assert availability(ImaginedLinux(silent=True)) == []


def test_emulation_is_said_to_be_no_security_boundary() -> None:
    found = findings(ImaginedLinux(accelerator=Accelerator("tcg", "there is no /dev/kvm")))["acceleration"]
    assert found.status == "limited"
    assert "there is no /dev/kvm" in found.text
    assert "no security boundary" in found.remedy


def test_kvm_that_was_not_tried_yet_is_tried_with_the_first_vm() -> None:
    assert "is tried with the first VM" in findings(ImaginedLinux(accelerator=None))["acceleration"].text


def test_what_vms_can_do_without_is_limited_and_says_what_to_do() -> None:
    machine = ImaginedLinux(memory_mb=64, without_shares="/boot/vmlinuz-cloud")
    machine.programs.remove("crun")
    found = findings(machine)
    limited = {name: each for name, each in found.items() if each.status != "ok"}
    assert set(limited) == {"container runtime", "shares", "memory"}
    assert all(each.remedy for each in limited.values())
    machine.programs.add("runc")
    assert findings(machine)["container runtime"].text == "runc"


@pytest.mark.skipif(sys.platform != "linux", reason="asks a Linux machine")
def test_this_machine_answers_every_question() -> None:
    machine = this_machine()
    assert machine.system == "linux"
    assert machine.available_memory_mb() > 0
    assert machine.has_program("sh")
    found = machine.acceleration()
    assert found is None or found.name in ("kvm", "tcg")


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86")
def test_this_machines_qemu_says_its_version_and_its_devices() -> None:
    version = this_machine().qemu_version()
    assert version is not None
    assert version > (1, 0)
    assert "virtserialport" in this_machine().qemu_devices()
