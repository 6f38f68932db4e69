"""Real VMs, a pod and a clone, from boot to end: ``make demo-qemu``, or ``python examples/qemu_demo.py``.

Each line says what was done and how long that took. ``python -m uvm doctor`` says what is missing for it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve

import uvm

PROGRAMS = ("sh", "cat", "cp", "echo", "id", "ls", "sleep", "uname")
SCRIPT = """
echo from the container; cat /etc/layer; cat
cp /shared/from-the-host /shared/from-the-container; echo kept > /data/file
exit 3
"""


def spec_of(shared: Path, data: str) -> dict[str, Any]:
    """Return an OCI specification, with a directory of the host and a disk among its mounts."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/bin/sh", "-c", SCRIPT],
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/shared", "type": "bind", "source": str(shared), "options": ["rbind"]},
            {"destination": "/data", "type": "virtual-disk", "source": data, "options": ["rbind"]},
        ],
        "linux": {"namespaces": [{"type": name} for name in ("pid", "mount", "ipc", "uts", "cgroup")]},
    }


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print how long a step took."""
    began = time.perf_counter()
    yield
    print(f"{(time.perf_counter() - began) * 1000:8.1f} ms  {what}", flush=True)


def say(line: str) -> None:
    """Print what a step gave, below it."""
    print(f"{'':13}{line}", flush=True)


def make_disk(path: Path, size: str, files: Path | None = None) -> str:
    """Make a disk with an ext4 file system, which holds the files of a directory."""
    source = ["-d", str(files)] if files else []
    subprocess.run(["mkfs.ext4", "-q", "-F", *source, str(path), size], check=True, stdout=subprocess.DEVNULL)
    return str(path)


def make_layers(directory: Path) -> list[str]:
    """Make two layers: busybox, and above it one that replaces a file. The top-most is the first."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is not there: install busybox-static (Debian, Ubuntu) or busybox (Fedora)")
    base, top = directory / "base", directory / "top"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (base / name).mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy(busybox, base / "bin" / program)
    (base / "etc" / "layer").write_text("this is the lower layer\n")
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "layer").write_text("this is the upper layer\n")
    return [
        make_disk(directory / "top.raw", "8M", top),
        make_disk(directory / "base.raw", "64M", base),
    ]


async def play(directory: Path) -> None:
    """Bring a pod up, use what it has, and end it."""
    shared = directory / "shared"
    shared.mkdir()
    # QEMU that root starts runs as another user.
    shared.chmod(0o777)
    (shared / "from-the-host").write_text("a file of the host\n")
    with step("layers and disks made on the host"):
        layers = make_layers(directory)
        scratch = make_disk(directory / "scratch.raw", "64M")
        data = make_disk(directory / "data.raw", "16M")

    async with uvm.open_backend("qemu") as backend:
        options = uvm.LCOWOptions(memory_mb=512, scsi_controllers=4)
        async with AsyncExitStack() as stack:
            with step("a pod: its VM booted, and its guest greeted"):
                pod = await stack.enter_async_context(uvm.Pod.create(options, backend=backend))
            await use_vm(pod.vm, data)
            await use_pod(pod, layers, scratch, shared, data)
            with step("the pod ended, and its VM shut down"):
                await pod.end()
                await pod.vm.shutdown()
            say(str(pod.vm.exit_status))
        await clone(backend)


async def use_vm(vm: uvm.UtilityVM, data: str) -> None:
    """Run processes, and attach a disk."""
    with step("a first process"):
        done = await vm.run(["uname", "-a"], text=True)
    say(f"{done.stdout.strip()}")
    with step("a second one"):
        await vm.run(["true"])
    with step("a disk attached and mounted, and released"):
        async with vm.scsi.attach(data, mount=uvm.Mount(filesystem="ext4")) as disk:
            where = f"disk {disk.controller}:{disk.lun} was at {disk.guest_path}"
    say(where)
    with step("its statistics"):
        stats = await vm.stats()
    say(f"{stats.working_set_bytes >> 20} MiB on the host")


async def use_pod(pod: uvm.Pod, layers: list[str], scratch: str, shared: Path, data: str) -> None:
    """Run a container over layers, with a directory of the host and a disk."""
    with step("a container run: layers, scratch disk, directory and disk attached, and it started"):
        container = await pod.run_container(spec_of(shared, data), layers, scratch, stdin=True)
    print(pod.vm.devices())
    assert container.init is not None
    with step("its input written, its output read to the end"):
        ended = await container.init.communicate("and from its standard input\n", text=True)
    for line in ended.stdout.splitlines():
        say(line)
    say(f"exit code {ended.exit_code}")
    say(f"the container wrote: {(shared / 'from-the-container').read_text().strip()}")
    with step("it ended, and all of that was released"):
        await container.aclose()


async def clone(backend: uvm.Backend) -> None:
    """Save a VM as a template, and start a clone of it."""
    options = uvm.LCOWOptions(memory_mb=256, template=True)
    async with uvm.UtilityVM.create(options, backend=backend) as first:
        with step("another VM booted, which is to be a template"):
            await first.start()
        with step("saved as a template"):
            template = await first.save_template()
        options = evolve(options, template=False, clone_of=template)
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            with step("a clone started, and its guest greeted"):
                await vm.start()
            done = await vm.run(["echo", "hello from the clone"], text=True)
            say(done.stdout.strip())
        await template.delete(backend)


def main() -> None:
    """Play it in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="uvm-demo-") as directory:
        anyio.run(play, Path(directory))


if __name__ == "__main__":
    main()
