"""States of VMs, saved as templates and to files, and what is loaded."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field

from tests.backends.qemu.images import MIB, qcow2, written
from tests.backends.qemu.machine import PLAN9, rig
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.qemu.saving import (
    Build,
    Memory,
    check_saveable,
    host_processor,
    open_saved,
    restore,
    save_template,
    save_to_file,
)
from uvm.errors import HostError, NoSpaceError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

_BUILD = Build("7.2.22", "pc-q35-7.2", "tcg", "max", "sha256:00", 512, 1)
_STATE = b"the state of devices"


@define
class _QEMU(Monitor):
    """A QEMU that saves, and loads, as its statuses say: each is one answer."""

    statuses: list[str] = field(factory=lambda: ["setup", "active", "completed"])
    asked: list[tuple[str, Any]] = field(factory=list)
    loaded: bytes = b""
    id: str = "vm1"
    _fd: int = -1

    async def ask(
        self,
        operation: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
    ) -> Any:
        self.asked.append((command, arguments))
        match command:
            case "getfd":
                self._fd = fds[0]
            case "migrate":
                os.write(self._fd, _STATE)
            case "migrate-incoming":
                self.loaded = os.read(self._fd, 4096)
            case "query-migrate" | "query-status":
                return {"status": self.statuses.pop(0), "error-desc": "no room"}
        return {}

    def capability(self) -> bool:
        [capability] = dict(self.asked)["migrate-set-capabilities"]["capabilities"]
        assert capability["capability"] == "x-ignore-shared"
        return bool(capability["state"])


@pytest.fixture
async def devices(tmp_path: Path) -> DeviceTree:
    """The devices of a VM, of which one is a disk that its guest writes to."""
    there = await rig(tmp_path)
    for lun, name in enumerate(("written.img", "read.img")):
        (tmp_path / name).write_bytes(bytes(512))
        await there.attach(str(tmp_path / name), 3, lun, ReadOnly=bool(lun))
    return there.tree


async def test_a_template_is_its_memory_and_the_state_of_its_devices_which_a_clone_loads(
    devices: DeviceTree,
) -> None:
    vm = _QEMU()
    saved = await save_template(vm, Memory.of_mb(2), devices, _BUILD)
    assert vm.capability()
    clone = _QEMU(["inmigrate", "paused"])
    for _ in range(2):
        fd = saved.open_state("clone")
        await restore(clone, fd, without_memory=True)
        os.close(fd)
        assert clone.loaded == _STATE
        clone.statuses = ["paused"]
    saved.close()
    saved.close()
    for opened in (saved.open_state, saved.open_memory):
        with pytest.raises(HostError, match="HCS_E_SYSTEM_NOT_FOUND"):
            opened("clone")


def _is_frozen(path: Path) -> bool:
    """Return whether QEMU would refuse to open a disk to be written: it asks whether it could take a lock."""
    with path.open("r+b") as file:
        asked = struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 201, 1, 0)
        found: int = struct.unpack("@hhqqi", fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, asked))[0]
        return found != fcntl.F_UNLCK


async def test_the_disks_that_a_template_wrote_to_are_frozen_as_long_as_it_is_there(
    devices: DeviceTree, tmp_path: Path
) -> None:
    saved = await save_template(_QEMU(), Memory.of_mb(2), devices, _BUILD)
    paths = [str(tmp_path / name) for name in ("written.img", "read.img")]
    assert (saved.disks.paths, saved.files) == (paths[:1], {*paths})
    assert (_is_frozen(tmp_path / "written.img"), _is_frozen(tmp_path / "read.img")) == (True, False)
    saved.close()
    assert not _is_frozen(tmp_path / "written.img")


async def test_what_a_disk_that_a_template_wrote_to_is_over_is_frozen_with_it(tmp_path: Path) -> None:
    there = await rig(tmp_path)
    base = written(tmp_path / "base.img", bytes(MIB))
    over = written(tmp_path / "over.qcow2", qcow2(backing="base.img", backing_format="raw"))
    await there.attach(over, 0, 0)
    saved = await save_template(_QEMU(), Memory.of_mb(2), there.tree, _BUILD)
    assert saved.files == {over, base}
    assert [_is_frozen(Path(path)) for path in (over, base)] == [True, True]
    saved.close()
    assert [_is_frozen(Path(path)) for path in (over, base)] == [False, False]


async def test_a_disk_that_cannot_be_frozen_keeps_the_vm_from_being_saved(
    devices: DeviceTree, tmp_path: Path
) -> None:
    (tmp_path / "written.img").unlink()
    memory = Memory.of_mb(2)
    before, vm = len(os.listdir("/proc/self/fd")), _QEMU()
    with pytest.raises(HostError, match=r"written\.img"):
        await save_template(vm, memory, devices, _BUILD)
    assert (len(os.listdir("/proc/self/fd")), vm.asked) == (before, [])
    memory.close()


async def test_a_save_that_fails_says_why_and_leaves_the_memory(devices: DeviceTree, tmp_path: Path) -> None:
    memory, before = Memory.of_mb(2), len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="no room"):
        await save_template(_QEMU(["active", "failed"]), memory, devices, _BUILD)
    assert not _is_frozen(tmp_path / "written.img")
    assert len(os.listdir("/proc/self/fd")) == before
    os.pwrite(memory.fd, b"x", 0)
    memory.close()


def test_a_memory_that_this_process_may_not_make_is_refused() -> None:
    before, (_, hard) = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_FSIZE)
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
    try:
        with pytest.raises(NoSpaceError, match=r"2048 MB cannot be made.*ulimit -f"):
            Memory.of_mb(2048)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_processors_of_a_machine_are_named_with_what_they_can_do(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    for path, flags in ((first, "sse vmx"), (other, "sse")):
        path.write_text(
            f"processor\t: 0\nmodel name\t: A CPU  @ 2 GHz\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        )
    assert host_processor(str(first)).startswith("A CPU @ 2 GHz, flags ")
    assert host_processor(str(first)) != host_processor(str(other))


def test_a_sealed_memory_is_written_through_no_mapping_but_copied_on_writing() -> None:
    memory = Memory.of_mb(2)
    os.pwrite(memory.fd, b"template", 0)
    memory.seal()
    with pytest.raises(PermissionError):
        os.pwrite(memory.fd, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(memory.fd, 4096, mmap.MAP_SHARED)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    with mmap.mmap(memory.fd, 4096, mmap.MAP_PRIVATE) as clone:
        clone[:5] = b"clone"
    assert os.pread(memory.fd, 8, 0) == b"template"
    memory.close()


def test_a_memory_that_is_mapped_to_be_written_is_not_sealed() -> None:
    memory = Memory.of_mb(2)
    with mmap.mmap(memory.fd, 4096, mmap.MAP_SHARED), pytest.raises(OSError, match="busy"):
        memory.seal()
    memory.seal()
    memory.close()


async def test_what_a_host_shares_with_a_vm_is_not_saved(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    check_saveable(vm.machine, vm.tree)
    await vm.modify(PLAN9, Name="1", Path=str(tmp_path))
    with pytest.raises(HostError, match=r"HCS_E_INVALID_STATE.*share 1"):
        check_saveable(vm.machine, vm.tree)


async def test_a_saved_file_has_the_memory_and_is_this_users_alone(tmp_path: Path) -> None:
    path, vm = tmp_path / "state", _QEMU()
    path.write_bytes(b"an older one")
    await save_to_file(vm, str(path), _BUILD)
    assert not vm.capability()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state"]
    fd = open_saved(str(path), _BUILD)
    loading = _QEMU(["paused"])
    await restore(loading, fd, without_memory=False)
    os.close(fd)
    assert loading.loaded == _STATE


async def test_a_file_that_cannot_be_saved_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"an older one")
    with pytest.raises(HostError, match="no room"):
        await save_to_file(_QEMU(["failed"]), str(path), _BUILD)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["state"], b"an older one")
    with pytest.raises(HostError, match="ERROR_FILE_NOT_FOUND"):
        await save_to_file(_QEMU(), str(tmp_path / "missing" / "state"), _BUILD)


async def test_a_file_that_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    before, (soft, hard) = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(HostError, match=r"state\.partial"):
            await save_to_file(_QEMU(), str(tmp_path / "state"), _BUILD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (os.listdir(tmp_path), len(os.listdir("/proc/self/fd"))) == ([], before)


async def _refused(path: Path, code: HResult, build: Build = _BUILD) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError) as raised:
        open_saved(str(path), build)
    assert raised.value.hresult == code
    assert len(os.listdir("/proc/self/fd")) == before


async def test_only_an_own_file_that_fits_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    await save_to_file(_QEMU(), str(path), _BUILD)
    for change in (
        {"qemu": "8.0.0"},
        {"machine": "pc-q35-8.0"},
        {"acceleration": "kvm"},
        {"cpu": "Some processor, flags 00"},
        {"kernel": "sha256:01"},
        {"memory_mb": 1024},
        {"processors": 2},
    ):
        await _refused(path, HResult.HCS_E_IMAGE_MISMATCH, evolve(_BUILD, **change))
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        await _refused(path, HResult.E_ACCESSDENIED)
    path.chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        await _refused(path, HResult.E_ACCESSDENIED)
    for content in (b"", b"x" * 8192, path.read_bytes()[:4000], b"uvm-qemu-state-1\n[1]\n".ljust(4096)):
        path.write_bytes(content)
        await _refused(path, HResult.ERROR_INVALID_DATA)
    await _refused(tmp_path, HResult.ERROR_INVALID_DATA)
    await _refused(tmp_path / "missing", HResult.ERROR_FILE_NOT_FOUND)
