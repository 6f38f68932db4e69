"""The commands, as people type them, on real VMs."""

from __future__ import annotations

import json
import subprocess

from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.patient import PATIENT_PYTHON
from tests.qemu.setup import CHECKOUT
from uvm.backends.qemu.guestimage import Image


def typed(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``uvm`` with some arguments."""
    return subprocess.run(
        [*PATIENT_PYTHON, "-m", "uvm", *arguments],
        cwd=CHECKOUT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_a_command_runs_in_a_vm_of_its_own_with_its_streams_and_its_exit_status(image: Image) -> None:
    script = "uname -r; cat; echo said >&2; exit 3"
    done = typed("run", "--memory", "256M", "--", "sh", "-c", script, stdin="typed")
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"{image.manifest['selection']['release']}\ntyped"
    assert "said\n" in done.stderr


def test_this_machine_is_found_to_be_able_to_run_vms() -> None:
    done = typed("doctor", "--json")
    found = json.loads(done.stdout)
    assert (found["backend"], found["usable"], done.returncode) == ("qemu", True, 0)


def test_the_image_that_vms_boot_is_listed(image: Image) -> None:
    built = typed("image", "build")
    assert built.stdout.splitlines()[0] == str(image.directory)
    assert image.key[:12] in typed("image", "list").stdout
