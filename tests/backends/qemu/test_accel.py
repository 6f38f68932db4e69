"""Whether guests run with KVM is tried, with a deadline, and what came of it is kept until the next boot."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from uvm.backends.qemu import accel
from uvm.backends.qemu.accel import Accelerator, choose, kvm_problem, recall, trial
from uvm.backends.qemu.guestimage.cache import Cache, Image
from uvm.errors import NotSupportedError

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="starts programs as Linux does"),
]

Program = Callable[[str], str]


@pytest.fixture
def qemu(tmp_path: Path) -> Program:
    """Return what writes a program that stands in for QEMU, of the shell."""

    def write(script: str) -> str:
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache" / "uvm")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "image", {})


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM seems to be there."""
    monkeypatch.setattr(accel, "kvm_problem", lambda: "")


def test_guests_run_with_kvm_if_one_did(qemu: Program, image: Image, cache: Cache) -> None:
    assert trial(qemu("echo 'a guest runs'"), image).name == "kvm"


def test_a_guest_that_hangs_is_emulated(qemu: Program, image: Image, cache: Cache) -> None:
    found = trial(qemu("exec sleep 1000"), image, seconds=0.2)
    assert found == Accelerator("tcg", "KVM was tried: no guest ran its first program within 0.2 s")


def test_the_reason_is_what_qemu_says_last(qemu: Program, image: Image, cache: Cache) -> None:
    found = trial(qemu("echo one >&2; echo 'ioctl failed' >&2; exit 1"), image)
    assert found == Accelerator("tcg", "KVM was tried: ioctl failed")


def test_a_qemu_that_ends_in_silence_ran_no_guest(qemu: Program, image: Image, cache: Cache) -> None:
    assert "exited with 3, and no guest had run a program" in trial(qemu("exit 3"), image).reason


def test_what_came_of_it_is_kept_for_this_qemu_and_this_boot(
    qemu: Program, image: Image, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = qemu("echo 'a guest runs'")
    assert recall(binary) is None
    found = trial(binary, image)
    assert recall(binary) == found
    another_boot = tmp_path / "boot_id"
    another_boot.write_text("another\n")
    with monkeypatch.context() as patch:
        patch.setattr(accel, "_BOOT_ID", another_boot)
        assert recall(binary) is None
    qemu("echo 'a newer version'")
    assert recall(binary) is None


@pytest.mark.parametrize("damaged", ["", "{}", "[]", '{"of": 1, "found": {}}'])
def test_notes_that_are_damaged_are_none(qemu: Program, image: Image, cache: Cache, damaged: str) -> None:
    binary = qemu("exit 1")
    trial(binary, image)
    (cache.root / "acceleration.json").write_text(damaged)
    assert recall(binary) is None


def test_kvm_need_not_be_tried_where_it_cannot_work(tmp_path: Path) -> None:
    device, cpuinfo = tmp_path / "kvm", tmp_path / "cpuinfo"
    assert f"there is no {device}" in kvm_problem(str(device))
    device.touch()
    cpuinfo.write_text("flags : fpu vme\n")
    assert "no virtualization" in kvm_problem(str(device), str(cpuinfo))
    cpuinfo.write_text("flags : fpu vmx\n")
    assert kvm_problem(str(device), str(cpuinfo)) == ""


@pytest.mark.skipif(sys.platform == "linux" and os.geteuid() == 0, reason="root may open anything")
def test_a_device_that_may_not_be_opened_names_the_group(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(0o000)
    assert "usermod -aG kvm" in kvm_problem(str(device))


async def no_image() -> Image:
    raise NotSupportedError("there is no kernel")


@pytest.mark.parametrize("name", ["kvm", "tcg"])
async def test_what_is_asked_for_is_not_tried(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvm")
    chosen = await choose(name, "no such program", no_image)  # type: ignore[arg-type]
    assert chosen == Accelerator(name, "asked for")  # type: ignore[arg-type]
    assert ("no security boundary" in caplog.text) is (name == "tcg")


async def test_kvm_that_vms_may_not_use_is_not_chosen_and_refused_if_it_is_asked_for(kvm: None) -> None:
    assert await choose("auto", "no such program", no_image, "root's") == Accelerator("tcg", "root's")
    with pytest.raises(NotSupportedError, match="KVM: root's; nothing was started"):
        await choose("kvm", "no such program", no_image, "root's")


async def test_without_an_image_nothing_is_tried(kvm: None, cache: Cache, qemu: Program) -> None:
    chosen = await choose("auto", qemu("exit 1"), no_image)
    assert chosen == Accelerator("tcg", "KVM cannot be tried without a guest image: there is no kernel")


async def test_one_trial_serves_all_that_follow(
    kvm: None, cache: Cache, qemu: Program, image: Image, tmp_path: Path
) -> None:
    async def the_image() -> Image:
        return image

    binary = qemu(f"echo ran >> {tmp_path}/trials; echo 'a guest runs'")
    for _ in range(3):
        assert (await choose("auto", binary, the_image)).name == "kvm"
    assert (tmp_path / "trials").read_text() == "ran\n"


async def test_a_caller_that_is_cancelled_leaves_before_the_trial_ends(
    kvm: None, cache: Cache, qemu: Program, image: Image, tmp_path: Path
) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"

    async def the_image() -> Image:
        return image

    os.mkfifo(started)
    os.mkfifo(ended)
    binary = qemu(f"echo > {started}; cat {ended}")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(choose, "auto", binary, the_image)
        await anyio.to_thread.run_sync(started.read_text)
        tasks.cancel_scope.cancel()
    assert recall(binary) is None
    await anyio.to_thread.run_sync(ended.write_text, "a guest runs")
