"""Guest images of this machine's own parts boot, with each Python that is here."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.setup import CHECKOUT
from uvm.backends.qemu.accel import trial
from uvm.backends.qemu.availability import availability
from uvm.backends.qemu.commandline import kernel_arguments
from uvm.backends.qemu.guestimage import Image, ImageOptions, build
from uvm.backends.qemu.guestimage.cache import Cache
from uvm.backends.qemu.guestimage.interpreter import this_interpreter
from uvm.backends.qemu.guestimage.packages import owners

QEMU = shutil.which("qemu-system-x86_64") or ""

#: Each Python of this machine: the one that runs this, and the distribution's.
PYTHONS = sorted(
    {this_interpreter(), os.path.realpath(shutil.which("python3", path="/usr/bin") or this_interpreter())}
)


def console_of(image: Image) -> str:
    """Boot an image under emulation, and return what it wrote to its console until it was powered off."""
    done = subprocess.run(
        [
            *(QEMU, "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults"),
            *("-no-user-config", "-display", "none", "-no-reboot", "-sandbox", "on", "-serial", "stdio"),
            *("-kernel", image.kernel, "-initrd", image.initrd),
            *("-append", kernel_arguments("quiet panic=-1")),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.stdout + done.stderr


#: Runs in what can run the agent: distributions pack an interpreter without most of the standard library too.
_CAN_RUN = "import asyncio, ctypes, json, ssl, sys; sys.exit(sys.version_info < (3, 11))"


@pytest.mark.parametrize("python", PYTHONS)
def test_python_the_modules_the_tools_and_the_runtime_work_in_a_guest(python: str) -> None:
    if subprocess.run([python, "-IS", "-c", _CAN_RUN], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} is older than 3.11, or has not the whole standard library")
    service = "tests.qemu.guests.inventory"
    said = console_of(build(ImageOptions(python=python, service=service, roots=(str(CHECKOUT),))))
    found = re.search(r"^inventory=(.*)$", said.replace("\r", ""), re.M)
    assert found, said
    inventory = json.loads(found[1])
    assert [inventory["python"], inventory["path"]] == version_and_path(python)
    assert (inventory["thread"], inventory["socket"]) == ("t", "AF_UNIX")
    assert {name: how for name, how in inventory["modules"].items() if how != "ok"} == {}
    assert {"virtio_console", "virtio_scsi", "9p"} <= {*inventory["modules"]}
    assert inventory["busybox"] == "four2"
    assert inventory["runtime"].startswith("crun version")


def version_and_path(python: str) -> list[object]:
    """Return what an interpreter is, and where it looks for modules, on this machine."""
    program = "import json, platform, sys; print(json.dumps([platform.python_version(), sys.path]))"
    said = subprocess.run([python, "-IS", "-c", program], capture_output=True, check=True).stdout
    found: list[object] = json.loads(said)
    return found


def test_a_guest_is_found_to_run_as_kvm_is_tried(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = trial(QEMU, image, Cache(tmp_path / "uvm"), accelerator="tcg", seconds=PATIENCE_SECONDS)
    assert found.reason == "it was tried"


def test_an_accelerator_that_does_not_work_is_found(image: Image, tmp_path: Path) -> None:
    found = trial(QEMU, image, Cache(tmp_path / "uvm"), accelerator="xen")
    assert found.name == "tcg"
    assert found.reason.startswith("KVM was tried: ")


def test_this_machine_has_all_that_is_needed() -> None:
    assert availability() == []


def test_the_manifest_names_the_packages_and_their_licences(image: Image) -> None:
    packages = {each["name"]: each for each in image.manifest["packages"]}
    kernels = [each for name, each in packages.items() if name.startswith(("linux-image", "kernel"))]
    if platform.freedesktop_os_release()["ID"] == "debian":
        # Elsewhere the licences are stated in prose, or the kernel may be of no package.
        assert any("GPL-2" in licence for kernel in kernels for licence in kernel["licences"])
    assert {each.name for each in owners([image.manifest["selection"]["busybox"]])} <= {*packages}
