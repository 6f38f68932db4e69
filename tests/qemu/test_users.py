"""Real VMs of root's: QEMU runs as a user of its own, and has what is root's alone as descriptors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.qemu.images import ext4, run
from tests.qemu.vms import backend_of, process_of, running_vm
from uvm._vm.vm import UtilityVM
from uvm.backends.qemu.guestimage import ImageOptions, guest_image
from uvm.backends.qemu.users import FIRST_USER, USERS
from uvm.devices.scsi import Mount
from uvm.errors import HostError
from uvm.options import LCOWOptions

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts QEMU as another user"),
]


def status_of(pid: int) -> dict[str, list[str]]:
    """What the kernel knows of a process."""
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.split() for name, value in lines}


async def test_qemu_of_roots_has_a_user_of_its_own_and_uses_what_is_roots_alone(tmp_path: Path) -> None:
    image = await guest_image(ImageOptions())
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "text").write_text("of the disk")
    disk = ext4(tmp_path / "disk.img", source=tmp_path / "content")
    kernel = shutil.copy(image.kernel, tmp_path / "vmlinux")
    for path in (kernel, shutil.copy(image.initrd, tmp_path / "initrd.img"), disk):
        os.chmod(path, 0o600)
    boots = {"boot_files_path": str(tmp_path), "rootfs_type": "initrd"}
    console = tmp_path / "console"
    async with (
        backend_of(tmp_path) as backend,
        running_vm(backend, console_pipe=str(console), **boots) as vm,
    ):
        status = status_of(process_of(backend, vm))
        [user] = {int(each) for each in (*status["Uid"], *status["Gid"])}
        assert FIRST_USER <= user < FIRST_USER + USERS
        assert {int(status[f"Cap{kind}"][0], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        assert (status["Groups"], status["NoNewPrivs"]) == ([], ["1"])
        async with vm.scsi.attach(disk, mount=Mount(filesystem="ext4")) as lease:
            assert (await vm.run(["cat", f"{lease.guest_path}/text"])).stdout == b"of the disk"
            await vm.run(["sh", "-c", f"echo of the guest > {lease.guest_path}/new"], check=True)
        async with await anyio.connect_unix(console):
            pass
        async with UtilityVM.create(LCOWOptions(memory_mb=256), backend=backend) as other:
            assert status_of(process_of(backend, other))["Uid"] != status["Uid"]
    assert not console.exists()
    run("fsck.ext4", "-fn", disk)


async def test_a_directory_is_shared_as_far_as_qemus_user_may_use_it(tmp_path: Path) -> None:
    closed, shown, written = (tmp_path / name for name in ("closed", "shown", "written"))
    for path, mode in ((closed, 0o700), (shown, 0o755), (written, 0o777)):
        path.mkdir()
        path.chmod(mode)
    (shown / "public").write_text("public")
    (shown / "secret").write_text("secret")
    (shown / "secret").chmod(0o600)
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        for path, read_only in ((closed, True), (shown, False)):
            with pytest.raises(HostError, match=r"E_ACCESSDENIED.*nothing was shared"):
                await vm.plan9.add(path, "/run/share", read_only=read_only)
        async with vm.plan9.add(shown, "/run/share", read_only=True):
            assert (await vm.run(["cat", "/run/share/public"])).stdout == b"public"
            assert b"Permission denied" in (await vm.run(["cat", "/run/share/secret"])).stderr
        async with vm.plan9.add(written, "/run/share"):
            await vm.run(["sh", "-c", "echo -n new > /run/share/new; chmod 4755 /run/share/new"], check=True)
        assert (written / "new").read_text() == "new"
        assert (written / "new").stat().st_uid == int(status_of(process_of(backend, vm))["Uid"][0])


@pytest.fixture
def tap() -> Iterator[str]:
    """A tap device of root's."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip (iproute2), which makes tap devices")
    command = ["ip", "tuntap", "add", "uvm-test0", "mode", "tap"]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no tap device can be made here: {made.stderr.decode()}")
    run("ip", "addr", "add", "10.99.7.1/24", "dev", "uvm-test0")
    run("ip", "link", "set", "uvm-test0", "up")
    yield "uvm-test0"
    run("ip", "link", "del", "uvm-test0")


async def test_a_tap_device_of_roots_connects_a_guest_with_the_host(tmp_path: Path, tap: str) -> None:
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        namespace = (await backend.network.create_namespace({}))["ID"]
        addresses = [{"IpAddress": "10.99.7.2", "PrefixLength": 24}]
        endpoint = await backend.network.create_endpoint(f"tap:{tap}", {"IpConfigurations": addresses})
        await backend.network.add_namespace_endpoint(namespace, endpoint["ID"])
        async with vm.network.setup(namespace):
            said = (await vm.run(["ping", "-c", "1", "-W", "60", "10.99.7.1"])).stdout
            assert b"1 packets received" in said
