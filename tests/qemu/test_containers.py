"""Containers in a real VM, through the public interface: layers, processes, terminals, limits, ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import uvm
from tests.guestsuite.guests import MOUNTS, NAMESPACES, PATH
from tests.qemu.images import busybox_layer, ext4
from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.vms import backend_of, running_vm

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with a shell and its tools."""
    return busybox_layer(tmp_path_factory.mktemp("layer"))


@pytest.fixture(scope="module")
async def vm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[uvm.UtilityVM]:
    """One VM for all tests, each of which leaves it as it was."""
    directory = tmp_path_factory.mktemp("vm")
    async with backend_of(directory) as backend, running_vm(backend) as vm:
        yield vm


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return ext4(tmp_path / "scratch.raw", 16 * MIB)


def spec(*args: str, memory_bytes: int = 0, **process: Any) -> dict[str, Any]:
    """An OCI specification; its root is the one that the layers are mounted at."""
    memory = {"memory": {"limit": memory_bytes, "swap": memory_bytes}} if memory_bytes else {}
    return {
        "ociVersion": "1.0.2",
        "process": {"args": list(args), "cwd": "/", "env": [PATH], "user": {"uid": 0, "gid": 0}, **process},
        "hostname": "box",
        "mounts": MOUNTS,
        "linux": {"namespaces": NAMESPACES, "resources": memory},
    }


async def test_a_container_on_layers_runs_and_leaves_nothing(
    vm: uvm.UtilityVM, layer: Path, scratch: Path
) -> None:
    # As the documentation has it: the container ends inside, and its state is deleted after its layers.
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            vm.mount_layers("c1", [str(layer)], str(scratch)) as root,
            vm.create_container("c1", spec("cat"), root=root) as container,
        ):
            await container.open_init(stdin=True)
            assert (await container.run(["hostname"])).stdout == b"box\n"
            assert (await container.run(["cat", "/etc/hostname"])).stdout == b"box\n"
            assert (await container.run(["sh", "-c", "echo kept > /tmp/f; exit 3"])).exit_code == 3
            assert (await container.run(["cat", "/tmp/f"])).stdout == b"kept\n"
            assert (await container.run(["id", "-u"], user="33:44")).stdout == b"33\n"
            assert (await container.run(["cat"], input=b"x" * MIB)).stdout == b"x" * MIB
            assert len(await container.processes()) == 1
        left = "ls /run/gcs/c; grep /run/gcs/c /proc/mounts; ls /sys/fs/cgroup/pods | grep c1"
        assert (await vm.run(["sh", "-c", left])).stdout == b""


async def test_files_are_read_written_and_copied_in_the_guest_and_in_a_container(
    vm: uvm.UtilityVM, layer: Path, scratch: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / ("n" * 120)).write_bytes(b"x" * MIB)
    (source / "link").symlink_to("deep")
    async with (
        vm.mount_layers("c1", [str(layer)], str(scratch)) as root,
        vm.create_container("c1", spec("cat"), root=root) as container,
        await container.open_init(stdin=True),
    ):
        for files, at in ((container.files, "/tmp/files"), (vm.files, "/run/files")):
            with anyio.fail_after(PATIENCE_SECONDS):
                await files.make_directory(f"{at}/below", parents=True)
                await files.write(f"{at}/a file", b"content", mode=0o750)
                assert await files.read(f"{at}/a file") == b"content"
                found = await files.stat(f"{at}/a file")
                assert found is not None
                assert found == uvm.GuestFile("a file", "file", 7, 0o750, found.modified)
                assert [each.name for each in await files.list(at)] == ["a file", "below"]
                assert await files.stat(f"{at}/none") is None
                await files.copy_in(source, f"{at}/copy")
                target = tmp_path / f"copy of {at.rpartition('/')[0][1:]}"
                await files.copy_out(f"{at}/copy", target)
                assert (target / "link" / ("n" * 120)).read_bytes() == b"x" * MIB
                await files.copy_out(f"{at}/a file", tmp_path / "one")
                assert (tmp_path / "one").read_bytes() == b"content"
                (tmp_path / "one").unlink()
                with pytest.raises(uvm.GuestFileError, match="none"):
                    await files.read(f"{at}/none")
                with pytest.raises(uvm.GuestFileError, match="irectory"):
                    await files.remove(at)
                await files.remove(at, recursive=True)
                assert await files.stat(at) is None


async def test_a_container_that_uses_up_its_memory_is_killed_and_no_other(
    vm: uvm.UtilityVM, layer: Path, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hog = spec("sh", "-c", "exec tail /dev/zero", memory_bytes=24 * MIB)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with vm.mount_layers("c1", [str(layer)], str(scratch)) as root:
            # Both read the same root.
            other = spec("cat") | {"root": {"path": root.root}}
            async with (
                vm.create_container("c2", other) as bystander,
                vm.create_container("c1", hog, root=root) as container,
            ):
                beside = await bystander.open_init(stdin=True)
                init = await container.open_init(stdout=False, stderr=False)
                assert await init.wait() == 128 + 9
                assert (await container.wait()).type == "UnexpectedExit"
                assert (await container.statistics())["memory_oom_control"]["oom_kill"] >= 1
                assert (await bystander.run(["echo", "here"])).stdout == b"here\n"
                assert beside.exit_code is None
                # Asked for again, as the log is a connection of its own.
                while "out of memory: the kernel has killed 1 process of this guest" not in caplog.text:
                    await bystander.run(["true"])


async def test_a_terminal_in_a_container_is_resized(vm: uvm.UtilityVM, layer: Path, scratch: Path) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            vm.mount_layers("c1", [str(layer)], str(scratch)) as root,
            vm.create_container("c1", spec("cat"), root=root) as container,
        ):
            await container.open_init(stdin=True)
            script = ["sh", "-c", "stty size; read x; stty size"]
            async with container.open_process(script, terminal=True, size=(24, 80), stdin=True) as process:
                assert process.stdout is not None
                assert process.stdin is not None
                before = b""
                while not before.endswith(b"\n"):
                    before += await process.stdout.receive()
                assert before == b"24 80\r\n"
                await process.resize(30, 100)
                await process.stdin.send(b"x\n")
                said = b""
                async for data in process.stdout:
                    said += data
                assert said.endswith(b"30 100\r\n")
                assert await process.wait() == 0


async def test_figures_and_limits_of_a_container_are_those_of_its_cgroup(
    vm: uvm.UtilityVM, layer: Path, scratch: Path
) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            vm.mount_layers("c1", [str(layer)], str(scratch)) as root,
            vm.create_container("c1", spec("cat", memory_bytes=64 * MIB), root=root) as container,
        ):
            await container.open_init(stdin=True)
            metrics = await container.statistics()
            assert metrics["memory"]["usage"]["limit"] == 64 * MIB
            assert metrics["pids"]["current"] == 1
            await container.update({"memory": {"limit": 48 * MIB}, "cpu": {"shares": 512}})
            assert (await container.statistics())["memory"]["usage"]["limit"] == 48 * MIB
            with pytest.raises(uvm.GuestError, match="unable to set memory limit"):
                await container.update({"memory": {"limit": 4096}})
            assert (await container.run(["echo", "alive"])).stdout == b"alive\n"
