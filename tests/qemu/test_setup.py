"""What ``make test-qemu`` does on a machine that has not what real VMs take. These tests boot none."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.qemu import __main__ as run
from tests.qemu import setup
from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.patient import PATIENT_PYTHON
from uvm.backends.qemu.guestimage.cache import default_cache
from uvm.errors import HostError, NotSupportedError
from uvm.hresult import HResult


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has no program but those put into the directory that is returned."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(setup, "environment", lambda: {"PATH": str(programs)})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return programs


def program(directory: Path, name: str, script: str) -> None:
    """Put a program there."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_program_of_the_tests_has_their_patience_and_its_arguments(tmp_path: Path) -> None:
    ask = "import sys; from uvm._vm.vm import _DEFAULT_TIMEOUTS as t; print(t.close_seconds, *sys.argv[1:])"
    path = tmp_path / "program.py"
    path.write_text(ask)
    for program in (["-c", ask], [str(path)]):
        command = [*PATIENT_PYTHON, *program, "-m", "x"]
        done = subprocess.run(command, cwd=setup.CHECKOUT, capture_output=True, check=False)
        assert done.stdout.decode() == f"{PATIENCE_SECONDS} -m x\n", done.stderr


def test_another_machine_runs_nothing_says_so_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert run.main([]) == 0
    assert "NOTHING WAS RUN, no real VM was tested: VMs with QEMU need Linux" in capsys.readouterr().err
    # A demo that shows nothing has failed.
    assert run.main(["--run", "examples/qemu_demo.py"]) == 1


def test_without_apt_get_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([]) == 0
    assert "missing: qemu-system-x86 qemu-utils busybox-static" in capsys.readouterr().err


def test_a_user_who_cannot_be_root_installs_nothing(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(bare, "apt-get", ": > $0.called")
    program(bare, "sudo", "exit 1")
    assert run.main([]) == 0
    assert "to be installed as root" in capsys.readouterr().err
    assert not (bare / "apt-get.called").exists()


def test_a_user_without_sudo_installs_nothing(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(bare, "apt-get", ": > $0.called")
    assert run.main([]) == 0
    assert "to be installed as root" in capsys.readouterr().err
    assert not (bare / "apt-get.called").exists()


def test_a_machine_without_room_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(setup, "PROGRAMS", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", os.getuid)
    monkeypatch.setattr(setup, "available_mb", lambda: 900)
    assert run.main([]) == 0
    assert "the tests need 2500 MB of memory, and 900 MB are available" in capsys.readouterr().err


def test_where_no_vm_boots_no_test_waits_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def boot() -> float:
        raise HostError("create vm", HResult.E_FAIL, "QEMU ended at once")

    monkeypatch.setattr(setup, "set_up", lambda: None)
    monkeypatch.setattr(run, "measured_boot_seconds", boot)
    assert run.main([]) == 1
    assert "no VM boots here: HostError: create vm" in capsys.readouterr().err


def test_an_installation_that_fails_runs_nothing_and_says_what_was_said(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup, "PROGRAMS", {"qemu": "qemu-system-x86"})
    (bare / "env").symlink_to(shutil.which("env", path=os.defpath) or "")
    program(bare, "apt-get", 'echo "E: no such $*"; exit 100')
    assert run.main([]) == 0
    said = capsys.readouterr().err
    assert "NOTHING WAS RUN" in said
    assert "E: no such --quiet --yes " in said
    assert "install --no-install-recommends qemu-system-x86\n" in said


def test_a_kernel_is_fetched_again_once_the_lists_of_packages_are_there(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(*_: object) -> None:
        fetched.append("updated" if (bare / "updated").exists() else "nothing is known")
        if fetched[-1] != "updated":
            raise NotSupportedError("apt-get knows no kernel")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup, "fetch_kernel", fetch)
    (bare / "env").symlink_to(shutil.which("env", path=os.defpath) or "")
    program(bare, "apt-get", f": > {bare}/updated")
    setup._fetch_kernel(default_cache())
    assert fetched == ["nothing is known", "updated"]
