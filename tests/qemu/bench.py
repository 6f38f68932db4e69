"""``python -m tests.qemu.bench LOOP``: what real VMs take, as samples in JSON.

Each event loop has a process of its own, whose memory is one of the figures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from attrs import define, field

import uvm
from tests.bench.memory import resident_bytes
from tests.qemu.hostile import IMAGE
from tests.qemu.images import MIB, busybox_layer, ext4
from tests.qemu.setup import CHECKOUT
from tests.qemu.test_containers import spec
from tests.qemu.vms import MEMORY_MB, backend_of, open_to_all, process_of, running_vm
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.guestimage import build

_BOOTS: Final = 5
_PAIRS: Final = 3
_CLONES: Final = 7
_COMMANDS: Final = 40
_DISKS: Final = 20
_MANY: Final = 64
_MANY_ROUNDS: Final = 3
_CONTAINERS: Final = 7
_PODS: Final = 2
_PODS_CONTAINERS: Final = 10
_PODS_LAYERS: Final = 20
#: One emulated processor does it all.
_PATIENT: Final = uvm.GuestTimeouts(rpc_seconds=300)
_STREAM_BYTES: Final = 32 * MIB
_STREAMS: Final = 3
_HANDED: Final = 7


@define
class Samples:
    """What was measured, by what it is: the unit, and each sample in it."""

    found: dict[str, tuple[str, list[float]]] = field(factory=dict)

    def add(self, what: str, unit: str, sample: float) -> None:
        """Add a sample."""
        self.found.setdefault(what, (unit, []))[1].append(sample)

    @contextmanager
    def ms(self, what: str) -> Iterator[None]:
        """Add the time that the body takes."""
        began = time.perf_counter()
        yield
        self.add(what, "ms", _ms_since(began))


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


async def measure(loop: str, directory: Path) -> dict[str, Any]:
    """Measure everything; return it, and how guests run."""
    samples = Samples()
    async with backend_of(directory) as backend:
        await _boots(backend, samples)
        await _pairs(backend, samples)
        async with running_vm(backend, scsi_controllers=4) as vm:
            await _commands(vm, samples)
            await _disks(vm, directory, samples)
            await _containers(vm, directory, samples)
            await _streams(vm, samples)
        await _pods(backend, directory, samples)
        await _clones(backend, samples)
        await _pool(backend, directory, samples)
        accelerator = await backend._boots.acceleration()
    await _hostile(loop, directory, samples)
    return {"accelerator": accelerator, "samples": samples.found}


async def _boots(backend: QEMUBackend, samples: Samples) -> None:
    for number in range(_BOOTS):
        began = time.perf_counter()
        async with running_vm(backend) as vm:
            samples.add("a VM: create to greeted", "ms", _ms_since(began))
            if number == 0:
                await _memory(backend, vm, samples)


async def _memory(backend: QEMUBackend, vm: uvm.UtilityVM, samples: Samples) -> None:
    agent = (await vm.run(["cat", "/proc/1/status"], text=True)).stdout
    qemu = await anyio.Path(f"/proc/{process_of(backend, vm)}/status").read_text(encoding="ascii")
    samples.add("resident: this process, with one VM", "MiB", resident_bytes() / MIB)
    samples.add(f"resident: QEMU, with a VM of {MEMORY_MB} MB", "MiB", _resident_kib(qemu) / 1024)
    samples.add("resident: the agent, in the VM", "MiB", _resident_kib(agent) / 1024)


def _resident_kib(status: str) -> int:
    (found,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found)


async def _pairs(backend: QEMUBackend, samples: Samples) -> None:
    for _ in range(_PAIRS):
        greeted: list[uvm.UtilityVM] = []
        both = anyio.Event()

        async def boot(greeted: list[uvm.UtilityVM] = greeted, both: anyio.Event = both) -> None:
            async with running_vm(backend) as vm:
                greeted.append(vm)
                if len(greeted) == 2:
                    both.set()
                await both.wait()

        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(boot)
            tasks.start_soon(boot)
            await both.wait()
            took = time.perf_counter() - began
        samples.add("two VMs at once: create to greeted", "ms", took * 1000)


async def _commands(vm: uvm.UtilityVM, samples: Samples) -> None:
    await vm.run(["true"])
    for _ in range(_COMMANDS):
        with samples.ms("`run true`"):
            await vm.run(["true"])


async def _disks(vm: uvm.UtilityVM, directory: Path, samples: Samples) -> None:
    mount = uvm.Mount(filesystem="ext4")
    paths = [str(ext4(directory / f"disk{number}.img")) for number in range(_MANY)]
    for _ in range(_DISKS):
        with samples.ms("a disk: attach and mount"):
            lease = await vm.scsi.attach(paths[0], mount=mount)
        with samples.ms("a disk: release"):
            await lease.release()
    for _ in range(_MANY_ROUNDS):
        leases: list[uvm.ScsiLease] = []

        async def attach(path: str, leases: list[uvm.ScsiLease] = leases) -> None:
            leases.append(await vm.scsi.attach(path, mount=mount))

        with samples.ms(f"{_MANY} disks at once: attach and mount"):
            await _at_once([(attach, path) for path in paths])
        with samples.ms(f"{_MANY} disks at once: release"):
            await _at_once([(lease.release,) for lease in leases])


async def _at_once(calls: list[tuple[Any, ...]]) -> None:
    async with anyio.create_task_group() as tasks:
        for function, *arguments in calls:
            tasks.start_soon(function, *arguments)


async def _containers(vm: uvm.UtilityVM, directory: Path, samples: Samples) -> None:
    layer, scratch = busybox_layer(directory), ext4(directory / "scratch.raw", 16 * MIB)
    for number in range(_CONTAINERS):
        name = f"c{number}"
        async with vm.mount_layers(name, [str(layer)], str(scratch)) as root:
            began = time.perf_counter()
            async with vm.create_container(name, spec("true"), root=root) as container:
                assert await (await container.open_init()).wait() == 0
                took = time.perf_counter() - began
        samples.add("a container: create to exit of `true`", "ms", took * 1000)


async def _pods(backend: QEMUBackend, directory: Path, samples: Samples) -> None:
    (below := directory / "pods").mkdir()
    empty = [ext4(below / f"{number}.raw", MIB) for number in range(1, _PODS_LAYERS)]
    layers = [str(path) for path in (*empty, busybox_layer(below))]
    disks = [str(ext4(below / f"scratch{number}.raw", 16 * MIB)) for number in range(_PODS_CONTAINERS)]
    options = uvm.LCOWOptions(memory_mb=MEMORY_MB, processors=1, scsi_controllers=4)
    what = f"a pod of {_PODS_CONTAINERS} containers of an image of {_PODS_LAYERS} layers"
    sleeping = {**spec("sleep", "3600"), "hostname": ""}
    for _ in range(_PODS):
        began = time.perf_counter()
        async with uvm.Pod.create(options, backend=backend, timeouts=_PATIENT) as pod:
            await _at_once([(pod.run_container, sleeping, layers, disk) for disk in disks])
            assert len(pod.containers) == _PODS_CONTAINERS
            up, up_cpu = time.perf_counter(), _cpu_seconds(backend, pod.vm)
            await pod.end()
            ended, ended_cpu = time.perf_counter(), _cpu_seconds(backend, pod.vm)
        samples.add(f"{what}: brought up, with the boot of its VM", "s", up - began)
        samples.add(f"{what}: brought up: processor time of QEMU", "s", up_cpu)
        samples.add(f"{what}: its containers ended", "s", ended - up)
        samples.add(f"{what}: its containers ended: processor time of QEMU", "s", ended_cpu - up_cpu)


def _cpu_seconds(backend: QEMUBackend, vm: uvm.UtilityVM) -> float:
    """Return how long processors have run the QEMU of a VM."""
    fields = Path(f"/proc/{process_of(backend, vm)}/stat").read_text(encoding="ascii").rpartition(")")[2]
    return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")


async def _streams(vm: uvm.UtilityVM, samples: Samples) -> None:
    piece = bytes(MIB)

    async def receive() -> None:
        process = await vm.open_process(["dd", "if=/dev/zero", "bs=64k", f"count={_STREAM_BYTES >> 16}"])
        received = 0
        assert process.stdout is not None
        async for data in process.stdout:
            received += len(data)
        assert (received, await process.wait()) == (_STREAM_BYTES, 0)

    async def send() -> None:
        process = await vm.open_process(["sh", "-c", "cat > /dev/null"], stdin=True)
        assert process.stdin is not None
        for _ in range(_STREAM_BYTES // MIB):
            await process.stdin.send(piece)
        await process.stdin.send_eof()
        assert await process.wait() == 0

    calls: dict[str, Callable[[], Awaitable[None]]] = {"from": receive, "to": send}
    for _ in range(_STREAMS):
        for direction, call in calls.items():
            began = time.perf_counter()
            await call()
            rate = _STREAM_BYTES / 1e6 / (time.perf_counter() - began)
            samples.add(f"a stream {direction} the guest, {_STREAM_BYTES // MIB} MiB", "MB/s", rate)


async def _clones(backend: QEMUBackend, samples: Samples) -> None:
    async with running_vm(backend, template=True) as original:
        with samples.ms("a template: save"):
            template = await original.save_template()
        for _ in range(_CLONES):
            began = time.perf_counter()
            async with running_vm(backend, clone_of=template) as clone:
                samples.add("a clone: create to greeted", "ms", _ms_since(began))
                await clone.run(["true"])


async def _pool(backend: QEMUBackend, directory: Path, samples: Samples) -> None:
    scratch = str(open_to_all(directory / "clones"))
    options = uvm.LCOWOptions(memory_mb=MEMORY_MB, processors=1, scratch_directory=scratch)
    async with uvm.Pool(options, backend=backend, clones=True, ready=2, max_size=4) as pool:
        for _ in range(_HANDED):
            began = time.perf_counter()
            async with pool.vm() as vm:
                await vm.run(["true"])
                samples.add("a pool of clones: hand-out and `run true`", "ms", _ms_since(began))


async def _hostile(loop: str, directory: Path, samples: Samples) -> None:
    # The process that is measured builds no image, which takes more memory.
    await anyio.to_thread.run_sync(build, IMAGE)
    command = [sys.executable, "-m", "tests.qemu.hostile", loop, str(directory / "hostile"), "open", "log"]
    played = await anyio.run_process(command, cwd=CHECKOUT, stderr=None)
    for fault, outcome in json.loads(played.stdout)["outcomes"].items():
        what = f"a hostile guest (`{fault}`): "
        samples.add(f"{what}the longest turn of the loop", "ms", outcome["longest_turn_seconds"] * 1000)
        samples.add(f"{what}growth of the process", "KiB", outcome["grown_bytes"] / 1024)


def main() -> None:
    """Measure on an event loop, and print the samples."""
    (loop,) = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="uvm-bench-") as directory:
        Path(directory).chmod(0o755)
        print(json.dumps(anyio.run(measure, loop, Path(directory), backend=loop)))


if __name__ == "__main__":
    main()
