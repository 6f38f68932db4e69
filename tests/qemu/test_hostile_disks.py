"""Disk images that are hostile or damaged: refused before QEMU opens anything; nothing of them is left."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import uvm
from tests.backends.qemu import images
from tests.qemu.test_devices import MIB, disk, plugged, said
from tests.qemu.vms import backend_of, open_to_all, running_vm
from uvm.backends.qemu.backend import QEMUBackend
from uvm.errors import HostError

pytestmark = pytest.mark.anyio

SECRET = b"a secret of the host\n"


def _qemu_img(path: Path, *options: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *options, path, "1M"], check=True, capture_output=True)


def _written(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(data)
        return path

    return write


def _backing(directory: Path) -> Path:
    path = directory / "backing.qcow2"
    _qemu_img(path, "-f", "qcow2", "-b", str(directory / "secret"), "-F", "raw")
    return path


def _data_file(directory: Path) -> Path:
    path = directory / "data.qcow2"
    # Made with another file, so that the secret stays what it is.
    _qemu_img(path, "-f", "qcow2", "-o", f"data_file={directory / 'other!'}")
    path.write_bytes(path.read_bytes().replace(b"other!", b"secret"))
    return path


def _cut(name: str, driver: str, length: int) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        path = directory / name
        _qemu_img(path, "-f", driver)
        with path.open("r+b") as file:
            file.truncate(length)
        return path

    return make


#: Each with what is said of it.
IMAGES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a backing file": (_backing, "E_ACCESSDENIED.* names a backing file, .*secret"),
    "an external data file": (_data_file, "its data is in another file .*secret"),
    "a differencing VHD": (
        _written("child.vhd", images.dynamic_vhd(kind=images.DIFFERENCING, parent="secret")),
        "it is a differencing disk, which needs its parent .'secret'",
    ),
    "a differencing VHDX": (
        _written("child.vhdx", images.vhdx(parent="secret")),
        "it is a differencing disk, which needs its parent .'secret'",
    ),
    "a qcow2 without its header": (_cut("cut.qcow2", "qcow2", 64), "it is cut short"),
    "a VHD without its footer": (_cut("cut.vhd", "vpc", 1024), "it is no VHD"),
    "a VHDX without its tables": (_cut("cut.vhdx", "vhdx", 100 << 10), "it is cut short"),
    "a raw file called qcow2": (_written("raw.qcow2", bytes(MIB)), "it is no qcow2 image"),
    "an empty file": (_written("empty.img", b""), "it is empty"),
}
#: Whose headers are sound: QEMU finds out.
DAMAGED = {
    "a VHDX that is a header only": _written("header.vhdx", images.vhdx()),
    "a qcow2 without its tables": _written("tables.qcow2", images.qcow2()),
}


async def _left(backend: QEMUBackend, vm: uvm.UtilityVM) -> tuple[int, list[str], object]:
    """The devices that are attached, the images that QEMU has open, the descriptors that it was handed."""
    qmp = backend._vms[vm.id].monitor.qmp
    nodes = [node["node-name"] for node in await qmp.execute("query-named-block-nodes")]
    return plugged(backend, vm), nodes, await qmp.execute("query-fdsets")


async def test_images_that_name_other_files_or_are_cut_short_are_refused_and_leave_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_bytes(SECRET.ljust(MIB, b"\0"))
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        before = await _left(backend, vm)
        for what, (make, why) in IMAGES.items():
            with pytest.raises(HostError, match=why):
                await vm.scsi.attach(str(make(tmp_path)))
            assert (what, await _left(backend, vm)) == (what, before)
        for what, make in DAMAGED.items():
            with pytest.raises(HostError, match=r"it is damaged; .*qemu-img check"):
                await vm.scsi.attach(str(make(tmp_path)))
            assert (what, await _left(backend, vm)) == (what, before)
        assert await said(vm, "ls /sys/block | grep -c ^sd || true") == "0\n"
        # It is as good as it was.
        async with vm.scsi.attach(disk(tmp_path, "sound.img"), mount=uvm.Mount(block_device=True)) as lease:
            assert await said(vm, f"head -n1 {lease.guest_path}") == "sound.img\n"


async def test_a_raw_disk_is_raw_whatever_a_guest_writes_to_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    header = images.qcow2(backing=str(secret), backing_format="raw")
    path = disk(tmp_path, "disk.img")
    shared = open_to_all(tmp_path / "shared")
    (shared / "header").write_bytes(header)
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        mount = uvm.Mount(block_device=True)
        async with vm.plan9.add(shared, "/mnt/shared"), vm.scsi.attach(path, mount=mount) as lease:
            await said(vm, f"dd if=/mnt/shared/header of={lease.guest_path} conv=fsync 2>&1")
        async with vm.scsi.attach(path, mount=mount) as lease:
            assert (await said(vm, f"head -c3 {lease.guest_path}")) == "QFI"
    written = await anyio.Path(path).read_bytes()
    assert written == header.ljust(MIB, b"\0")
