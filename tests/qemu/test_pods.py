"""A pod in a real VM: layers, mounts of each kind, namespaces of a sandbox, processes, limits, ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

import uvm
from tests.guestsuite.guests import MOUNTS, NAMESPACES, PATH
from tests.qemu.images import ext4
from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.test_containers import MIB, layer
from tests.qemu.vms import MEMORY_MB, backend_of, leaving_nothing
from uvm.options import LCOWOptions

__all__ = ["layer"]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: it is the guest that is tried, and both loops are in tests/vm."""
    return "asyncio"


def spec(*args: str, mounts: tuple[dict[str, Any], ...] = (), memory_bytes: int = 0) -> dict[str, Any]:
    """An OCI specification, as containerd writes it, of a container that may use so much memory."""
    memory = {"memory": {"limit": memory_bytes, "swap": memory_bytes}} if memory_bytes else {}
    return {
        "ociVersion": "1.0.2",
        "process": {"args": [*args], "cwd": "/", "env": [PATH], "user": {"uid": 0, "gid": 0}},
        "mounts": [*MOUNTS, *mounts],
        "linux": {"namespaces": NAMESPACES, "resources": memory},
    }


def mount(source: object, at: str, type: str = "bind", *options: str) -> dict[str, Any]:
    return {"destination": at, "type": type, "source": str(source), "options": ["rbind", *options]}


async def test_a_pod_of_three_containers_shares_what_it_says_and_leaves_nothing(
    tmp_path: Path, layer: Path
) -> None:
    shared, one = tmp_path / "shared", tmp_path / "one.txt"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "greeting").write_text("hello\n")
    one.write_text("alone\n")
    disk = ext4(tmp_path / "disk.raw", 16 * MIB)
    scratches = [str(ext4(tmp_path / f"scratch{number}.raw", 16 * MIB)) for number in range(4)]
    layers = [str(layer)]
    options = LCOWOptions(memory_mb=MEMORY_MB, processors=1)
    first = spec(
        "cat",
        mounts=(
            mount(shared, "/shared"),
            mount(shared, "/frozen", "bind", "ro"),
            mount(disk, "/disk", "virtual-disk"),
            mount("sandbox:///notes", "/notes"),
            mount("sandbox-tmp:///tmp", "/quick"),
            mount("uvm:///proc/version", "/version"),
        ),
        memory_bytes=64 * MIB,
    )
    second = spec("cat", mounts=(mount("sandbox:///notes", "/notes"),))
    with leaving_nothing(tmp_path), anyio.fail_after(PATIENCE_SECONDS):
        async with backend_of(tmp_path) as backend, uvm.Pod.create(options, backend=backend) as pod:
            await pod.run_sandbox(spec("sleep", "3600"), layers, scratches[0], id="pause")
            async with (
                pod.run_container(second, layers, scratches[2], id="c2", stdin=True) as other,
                pod.run_container(first, layers, scratches[1], id="c1", stdin=True) as container,
            ):

                async def said(where: uvm.PodContainer, script: str) -> bytes:
                    done = await where.run(["sh", "-c", script])
                    assert done.exit_code == 0, done.stderr
                    return done.stdout

                assert await said(container, "cat /shared/greeting; echo back > /shared/answer") == b"hello\n"
                assert (shared / "answer").read_text() == "back\n"
                assert (await container.run(["sh", "-c", "echo no > /frozen/x"])).exit_code != 0
                assert await said(container, "echo kept > /disk/f; cat /disk/f /version")
                assert (
                    await said(container, "echo note > /notes/n; echo q > /quick/q; cat /quick/q") == b"q\n"
                )
                assert await said(other, "cat /notes/n; stat -c %a /notes") == b"note\n777\n"
                names = "for n in net ipc uts; do ls -l /proc/self/ns/$n; done | sed 's/.*> //'"
                assert await said(container, names) == await said(other, names)
                limit = (await container.container.statistics())["memory"]["usage"]["limit"]
                assert limit == 64 * MIB
                # A link that a container made leads no other one out of what they share.
                await said(other, "ln -s / /notes/out")
                out = spec("cat", mounts=(mount("sandbox:///notes/out/etc", "/etc-of-the-vm"),))
                before = pod.vm.devices()
                with pytest.raises(uvm.GuestError, match="is a link"):
                    await pod.run_container(out, layers, scratches[3])
                assert pod.vm.devices() == before
                # QEMU shows the directory of a file whole, which is refused.
                alone = spec("cat", mounts=(mount(one, "/file"),))
                with pytest.raises(uvm.HostError, match="share a directory of its own"):
                    await pod.run_container(alone, layers, scratches[3])
                assert pod.vm.devices() == before
                await container.aclose()
                assert await said(other, "cat /notes/n") == b"note\n"
            left = "ls /run/gcs/c; grep -c /run/mounts /proc/mounts; ls -d /run/mounts/*/* /run/uvm-*"
            left += " 2>/dev/null; true"
            assert (await pod.vm.run(["sh", "-c", left])).stdout == b"pause\n0\n"
