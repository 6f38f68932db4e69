"""What ``uvm doctor`` says of machines."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from tests.backends.hcs.environment import BOOT_FILES, Imagined
from tests.backends.qemu.environment import ImaginedLinux
from tests.cli.conftest import Run
from uvm.backends import open_backend
from uvm.backends.qemu.availability import this_machine
from uvm.cli.doctor import CHECKS, examine
from uvm.errors import NotSupportedError, OptionsError

LINUX = {"Python", *(check.name for check in CHECKS["qemu"])}
WINDOWS = {"Python", *(check.name for check in CHECKS["hcs"])}


def windows(machine: Imagined | None = None, **given: Any) -> Mapping[str, object]:
    """Return a Windows machine, as the checks of all backends see it."""
    machine = machine or Imagined(**given)
    return {"hcs": machine, "qemu": ImaginedLinux(system=machine.system)}


def linux(machine: ImaginedLinux | None = None) -> Mapping[str, object]:
    """Return a Linux machine, as the checks of all backends see it."""
    return {"hcs": Imagined(system="linux"), "qemu": machine or ImaginedLinux()}


not_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows has more to say")


def test_a_machine_that_has_everything_passes_every_check() -> None:
    found = examine(where=windows())
    assert set(found.findings) == WINDOWS
    assert {finding.status for finding in found.findings.values()} == {"ok"}
    assert (found.backend, found.usable) == ("hcs", True)


def test_every_check_that_finds_something_amiss_says_what_to_do() -> None:
    nothing = Imagined(windows_build=17134, libraries={}, services={}, groups=set(), files=set())
    found = examine("hcs", windows(nothing))
    amiss = {name: finding for name, finding in found.findings.items() if finding.status != "ok"}
    assert set(amiss) == {
        "Windows build", "HCS", "HCS service", "rights", "hypervisor", "network", "network service",
        "Linux boot files",
    }  # fmt: skip
    assert all(finding.remedy for finding in amiss.values())
    assert not found.usable
    assert "17134" in found.problem


def test_names_of_checks_are_told_apart() -> None:
    assert {"Python"} == LINUX & WINDOWS
    assert len(LINUX) + len(WINDOWS) == 2 + sum(map(len, CHECKS.values()))


def test_without_windows_and_linux_no_backend_is_chosen_and_the_fake_is_named() -> None:
    machine = Imagined(system="darwin")
    found = examine(where=windows(machine))
    assert (found.backend, found.usable) == ("", False)
    assert "HCS needs Windows, and this is darwin" in found.problem
    assert '"fake"' in found.problem
    assert "VMs with QEMU need Linux, and this is darwin" in found.problem
    assert set(found.findings) == {"Python", "Windows", "Linux"}
    wanted = examine("hcs", windows(machine))
    assert not wanted.usable
    assert wanted.problem == "HCS needs Windows, and this is darwin"
    assert machine.asked == []


def test_what_hcs_can_do_without_is_no_reason_against_it() -> None:
    machine = Imagined(libraries={"computecore": ["HcsCrashComputeSystem"]}, files=set())
    found = examine(where=windows(machine))
    assert (found.backend, found.usable) == ("hcs", True)
    assert "HcsCrashComputeSystem" in str(found.findings["HCS"])
    assert found.findings["network"].status == "limited"


@pytest.mark.parametrize(("firmware", "advice"), [(True, "hypervisorlaunchtype"), (False, "VT-x")])
def test_without_a_hypervisor_no_vm_runs(firmware: bool, advice: str) -> None:
    machine = Imagined(firmware=firmware)
    machine.services["vid"] = "stopped"
    found = examine(where=windows(machine))
    assert (found.backend, found.usable) == ("hcs", False)
    assert advice in str(found.findings["hypervisor"])


def test_the_boot_files_that_options_look_for_are_looked_for() -> None:
    assert f"{BOOT_FILES}\\vmlinux" in str(examine(where=windows()).findings["Linux boot files"])
    no_disk = Imagined(files={f"{BOOT_FILES}\\kernel"})
    assert f"{BOOT_FILES}\\initrd.img" in str(examine(where=windows(no_disk)).findings["Linux boot files"])
    assert examine(where=windows(no_disk)).findings["Linux boot files"].status == "limited"


def test_what_may_not_be_looked_at_is_unknown() -> None:
    found = examine(where=windows(silent="service"))
    assert found.findings["HCS service"].status == "unknown"
    assert "E_ACCESSDENIED" in str(found.findings["HCS service"])


def test_a_backend_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(OptionsError, match="no backend is called 'xen'"):
        examine("xen", windows())


def test_on_linux_qemu_is_examined_and_chosen() -> None:
    found = examine(where=linux())
    assert set(found.findings) == LINUX
    assert (found.backend, found.usable) == ("qemu", True)


def test_on_linux_what_qemu_lacks_is_the_problem() -> None:
    found = examine(where=linux(ImaginedLinux(version=(6, 2), no_image="there is no kernel")))
    assert (found.backend, found.usable) == ("qemu", False)
    assert "QEMU 6.2 is too old" in found.problem
    assert found.problem.endswith("; there is no kernel")
    found = examine(where=linux(ImaginedLinux(no_image="there is no kernel; install one")))
    assert found.problem == "there is no kernel"
    assert found.findings["guest image"].remedy == "install one"


def test_on_linux_without_qemu_no_backend_is_chosen() -> None:
    found = examine(where=linux(ImaginedLinux(programs=set())))
    assert (found.backend, found.usable) == ("", False)
    assert "there is no qemu-system-x86_64" in found.problem
    assert set(found.findings) == {"Python", "Linux", "QEMU"}


@not_on_windows
def test_each_check_is_one_line(run: Run) -> None:
    ran = run("doctor", "--backend", "hcs")
    assert ran.status == 1
    assert ran.lines[0].startswith("ok       Python")
    assert ran.lines[1].startswith("missing  Windows  HCS needs Windows")
    assert ran.lines[-1].startswith("The backend hcs cannot be used here: HCS needs Windows")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a Linux machine")
def test_on_this_linux_machine_the_checks_of_qemu_are_printed(run: Run) -> None:
    ran = run("doctor")
    assert ran.status in (0, 1)
    assert ran.lines[1].startswith("ok       Linux")


@not_on_windows
def test_asking_for_hcs_where_it_cannot_be_used_is_exit_status_1(run: Run) -> None:
    ran = run("doctor", "--backend", "hcs")
    assert ran.status == 1
    assert ran.lines[-1].startswith("The backend hcs cannot be used here: HCS needs Windows")
    wanted = run("doctor", "--backend", "fake")
    assert wanted.status == 0
    [python, _, verdict] = wanted.lines  # what others lack is no matter
    assert python.startswith("ok       Python")
    assert verdict == "The backend fake can be used here."


@pytest.mark.parametrize("backend", ["fake", "hcs"])
def test_json_says_the_same(run: Run, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # How much memory is available changes from one look to the next.
    monkeypatch.setattr(type(this_machine()), "available_memory_mb", lambda self: 4096)
    ran = run("doctor", "--json", "--backend", backend)
    told = json.loads(ran.output)
    assert told["backend"] == backend
    assert told["usable"] is (ran.status == 0)
    assert told == examine(backend).to_json()
    assert {"name", "status", "text", "remedy"} == set(told["checks"][0])


def test_an_unknown_backend_is_one_line_on_the_error_stream(run: Run) -> None:
    ran = run("doctor", "--backend", "xen")
    assert ran.status == 2
    assert "no backend is called 'xen'" in ran.error


def _made_of_nothing() -> None:
    """Return no backend."""


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("uvm_that_is_not_there:Backend", "No module named 'uvm_that_is_not_there'"),
        (f"{__name__}:_made_of_nothing", "the backend 'broken' cannot be used: it is nothing"),
        (f"{__name__}:not_on_windows", "the backend 'broken' cannot be used"),
    ],
)
def test_a_backend_that_cannot_be_made_is_told_of_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, target: str, problem: str
) -> None:
    point = EntryPoint("broken", target, "uvm.backends")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: EntryPoints([point]))
    ran = run("doctor", "--backend", "broken")
    assert ran.status == 1
    assert ran.lines[-1].startswith(f"The backend broken cannot be used here: {problem}")
    assert ran.lines[-1].count("cannot be used here") == 1
    with pytest.raises(NotSupportedError):
        open_backend("broken")
