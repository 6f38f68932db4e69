"""A real VM, from its boot to its end: ``make demo-qemu``, or ``python examples/qemu_demo.py``.

Each line says what was done and how long that took. ``python -m uvm doctor`` says what is missing for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import anyio
from attrs import evolve

import uvm
from uvm.cli.draw import draw_devices
from uvm.cli.terminal import Terminal

PROGRAMS = ("sh", "cat", "echo", "id", "ls", "sleep", "uname")
SPEC = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["/bin/sh", "-c", "echo from the container; cat /etc/layer; cat; exit 3"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    },
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
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
    """Boot a VM, use what it has, and end it."""
    shared = directory / "shared"
    shared.mkdir()
    # QEMU that root starts runs as another user.
    shared.chmod(0o777)
    (shared / "from-the-host").write_text("a file of the host\n")
    with step("layers and scratch disks made on the host"):
        layers = make_layers(directory)
        scratch = make_disk(directory / "scratch.raw", "64M")
        data = make_disk(directory / "data.raw", "16M")

    async with uvm.open_backend("qemu") as backend, AsyncExitStack() as stack:
        options = uvm.LCOWOptions(memory_mb=512, scsi_controllers=4)
        with step("a VM created"):
            vm = await stack.enter_async_context(uvm.UtilityVM.create(options, backend=backend))
        with step("booted, and its guest greeted"):
            await vm.start()
        await use(vm, layers, scratch, data, shared)
        with step("shut down"):
            await vm.shutdown()
        say(str(vm.exit_status))
        await clone(backend)


async def use(vm: uvm.UtilityVM, layers: list[str], scratch: str, data: str, shared: Path) -> None:
    """Run processes, attach devices, run a container over layers."""
    with step("a first process"):
        done = await vm.run(["uname", "-a"], text=True)
    say(f"{done.stdout.strip()}")
    with step("a second one"):
        await vm.run(["true"])
    with step("a disk attached and mounted"):
        disk = await vm.scsi.attach(data, mount=uvm.Mount(filesystem="ext4"))
    say(f"disk {disk.controller}:{disk.lun} is at {disk.guest_path}")
    with step("a directory of the host shared"):
        await vm.share(str(shared), "/mnt/shared")
    await vm.run(["sh", "-c", "cp /mnt/shared/from-the-host /mnt/shared/from-the-guest"], check=True)
    say(f"the guest wrote: {(shared / 'from-the-guest').read_text().strip()}")
    with step("two layers and a scratch disk mounted as one root"):
        root = await vm.mount_layers("demo", layers, scratch)
    with step("a container created, run with its output read, and deleted"):
        async with vm.create_container("demo", SPEC, root=root) as container:
            await container.start()
            init = await container.open_init(stdin=True)
            ended = await init.communicate("and from its standard input\n", text=True)
    for line in ended.stdout.splitlines():
        say(line)
    say(f"exit code {ended.exit_code}")
    with step("its statistics"):
        stats = await vm.stats()
    say(f"{stats.working_set_bytes >> 20} MiB on the host")
    print(*draw_devices(Terminal.of(sys.stdout), vm.devices()), sep="\n")
    with step("the layers released"):
        await root.release()


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
