"""What the soak works with: a host, options of VMs, and what can be attached to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

from attrs import evolve

import uvm
from uvm.backend import HCS_CONCURRENCY, Concurrency, HostInfo
from uvm.backends.fake import FakeBackend, FakeFiles
from uvm.options import LCOWOptions, VmbFSBootFiles, WCOWOptions
from uvm.schema.common import MIB

__all__ = ["DISK_FILES", "Action", "acquisitions", "errands", "make_backend", "make_options", "make_timeouts"]

#: Does something to a VM; an acquisition gives a lease.
Action = Callable[[uvm.UtilityVM, Random], Awaitable[Any]]

# Few of each, so that tasks and VMs collide.
_DISKS: Final = [rf"C:\disks\{n}.vhdx" for n in range(5)]
_MISSING: Final = r"C:\disks\missing.vhdx"
_SCRATCHES: Final = [rf"C:\scratch\{n}.vhdx" for n in range(3)]
_LAYERS: Final = {rf"C:\layers\{n}.vhd": size * MIB for n, size in enumerate((1, 1, 3, 4, 9, 40))}
#: Whoever removes a layer by its path takes it away from whoever has combined it.
_ROOT_LAYERS: Final = [*_LAYERS][:4]
_LOOSE_LAYERS: Final = [*_LAYERS][4:]
_DIRECTORIES: Final = [r"C:\shared\a", r"C:\shared\b"]
_FILES: Final = [rf"{directory}\{n}.txt" for directory in _DIRECTORIES for n in range(3)]
_PIPES: Final = [rf"\\.\pipe\{n}" for n in range(3)]
_PCI: Final = [rf"PCI\VEN_1234\{n}" for n in range(3)]
_NAMESPACES: Final = [f"11111111-0000-0000-0000-00000000000{n}" for n in range(2)]
_ENDPOINTS: Final = [f"22222222-0000-0000-0000-00000000000{n}" for n in range(4)]
#: All that can be open as a disk.
DISK_FILES: Final = (*_DISKS, *_SCRATCHES, *_LAYERS)
_BUILDS: Final = (17763, 19041, 20348, 26100)
_OS_FILES: Final = r"C:\os"


def make_backend(random: Random) -> FakeBackend:
    """Make a host."""
    files = FakeFiles()
    for path in (r"C:\boot\vmlinux", r"C:\boot\kernel", r"C:\boot\initrd.img", *_DISKS, *_SCRATCHES):
        files.add(path, size=MIB)
    for path, size in _LAYERS.items():
        files.add(path, size=size)
    for path in _FILES:
        files.add(path, size=1, file_ids=random.random() < 0.9)
    files.add_directory(_OS_FILES)
    concurrency = random.choice((Concurrency(), HCS_CONCURRENCY, Concurrency(scsi=2, plan9=1, pipes=1)))
    host = HostInfo(build=random.choice(_BUILDS), concurrency=concurrency)
    backend = FakeBackend(host=host, files=files, seed=random.getrandbits(32), request_log_entries=2_000)
    for namespace in _NAMESPACES:
        backend.network.add_namespace({"ID": namespace})
    for n, endpoint in enumerate(_ENDPOINTS):
        backend.network.add_endpoint(
            {
                "ID": endpoint,
                "Name": f"endpoint-{n}-eth{n // 2}",
                "HostComputeNamespace": _NAMESPACES[n % 2],
                "MacAddress": f"00-15-5D-00-00-0{n}",
            }
        )
    return backend


def make_options(random: Random, backend: FakeBackend, number: int) -> LCOWOptions | WCOWOptions:
    """Choose the options of a VM, and make the files that are its own."""
    common: dict[str, Any] = {
        "id": random.choice(("", f"vm{number}")),
        "no_writable_file_shares": random.random() < 0.1,
        "external_guest_connection": random.random() < 0.7,
    }
    if random.random() < 0.5:
        return LCOWOptions(
            boot_files_path=r"C:\boot",
            scsi_controllers=random.choice((1, 2, 4)),
            vpmem_count=random.choice((0, 2, 64)),
            vpmem_size_bytes=random.choice((16 * MIB, 4096 * MIB)),
            vpmem_multi_mapping=random.random() < 0.7,
            policy_based_routing=random.random() < 0.5,
            **common,
        )
    common["revoke_released_files"] = random.random() < 0.5
    scratch = rf"C:\vms\{number}.vhdx"
    backend.files.add(scratch, size=MIB)
    boot = VmbFSBootFiles(
        os_files_path=_OS_FILES, os_relative_boot_directory=r"\EFI\Boot", scratch_vhd_path=scratch
    )
    return WCOWOptions(boot_files=boot, no_direct_map=random.random() < 0.5, **common)


def make_timeouts(random: Random) -> uvm.GuestTimeouts:
    """Choose whether a guest whose connection broke is waited for. A Windows guest does not dial again."""
    # No time for an exit after the guest: guests go alone here.
    return uvm.GuestTimeouts(redial_seconds=random.choice((0.0, 0.05)), vm_exit_seconds=0)


# What can be attached, for both kinds of guest.


async def _disk(vm: uvm.UtilityVM, random: Random) -> Any:
    if random.random() < 0.1:
        extensible = f"evd://storage/{random.randrange(3)}"
        return await vm.scsi.attach(extensible, type=uvm.DiskType.EXTENSIBLE_VIRTUAL_DISK)
    path = random.choice([*_DISKS, *_DISKS, _MISSING])
    return await vm.scsi.attach(path, read_only=random.random() < 0.6)


async def _mounted_disk(vm: uvm.UtilityVM, random: Random) -> Any:
    at = random.choice(("", "", "", "/at/a", "/at/b"))
    mount = uvm.Mount(guest_path=at)
    if vm.os == "linux":
        mount = evolve(mount, partition=random.randrange(2), filesystem=random.choice(("", "ext4")))
    read_only = random.random() < 0.6
    return await vm.scsi.attach(random.choice(_DISKS), read_only=read_only, mount=mount)


async def _pci(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.vpci.assign(random.choice(_PCI), random.randrange(2))


async def _namespace(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.network.add_namespace(random.choice(_NAMESPACES))


async def _network(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.network.setup(random.choice(_NAMESPACES))


async def _endpoint(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.network.add_endpoint(random.choice(_NAMESPACES), random.choice(_ENDPOINTS))


async def _share(vm: uvm.UtilityVM, random: Random) -> Any:
    at = random.choice(("/shown/a", "/shown/b"))
    return await vm.share(random.choice(_DIRECTORIES + _FILES), at, read_only=random.random() < 0.5)


# Linux guests alone.


async def _layer(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.vpmem.add(random.choice([*_LAYERS]))


async def _plan9(vm: uvm.UtilityVM, random: Random) -> Any:
    at = f"/plan9/{random.randrange(4)}"
    return await vm.plan9.add(random.choice(_DIRECTORIES), at, read_only=random.random() < 0.5)


async def _linux_root(vm: uvm.UtilityVM, random: Random) -> Any:
    layers = random.sample(_ROOT_LAYERS, random.randint(1, 3))
    return await vm.mount_layers(f"c{random.randrange(3)}", layers, random.choice(_SCRATCHES))


# Windows guests alone.


async def _directory(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.vsmb.add(random.choice(_DIRECTORIES), read_only=random.random() < 0.5)


async def _file(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.vsmb.add(random.choice(_FILES), read_only=random.random() < 0.5)


async def _pipe(vm: uvm.UtilityVM, random: Random) -> Any:
    return await vm.pipes.add(random.choice(_PIPES))


async def _windows_root(vm: uvm.UtilityVM, random: Random) -> Any:
    layers = [uvm.WCOWLayer(path, path[-1]) for path in random.sample(_DIRECTORIES, random.randint(1, 2))]
    return await vm.mount_layers(f"c{random.randrange(3)}", layers, random.choice(_SCRATCHES))


_BOTH: Final[dict[str, Action]] = {
    "disk": _disk,
    "mounted disk": _mounted_disk,
    "PCI device": _pci,
    "namespace": _namespace,
    "network": _network,
    "endpoint": _endpoint,
    "share": _share,
}
_ACQUISITIONS: Final[dict[str, dict[str, Action]]] = {
    "linux": _BOTH | {"layer": _layer, "plan9": _plan9, "root": _linux_root},
    "windows": _BOTH | {"directory": _directory, "file": _file, "pipe": _pipe, "root": _windows_root},
}


def acquisitions(os: str) -> dict[str, Action]:
    """Give what can be attached to a VM, by kind."""
    return _ACQUISITIONS[os]


# Errands: they give no lease, and some give up what somebody else holds.


async def _detach(vm: uvm.UtilityVM, random: Random) -> None:
    await vm.scsi.detach(random.choice(_DISKS))


async def _remove_pci(vm: uvm.UtilityVM, random: Random) -> None:
    await vm.vpci.remove(random.choice(_PCI), random.randrange(2))


async def _remove_endpoint(vm: uvm.UtilityVM, random: Random) -> None:
    await vm.network.remove_endpoint(random.choice(_NAMESPACES), random.choice(_ENDPOINTS))


async def _remove_namespace(vm: uvm.UtilityVM, random: Random) -> None:
    await vm.network.remove_namespace(random.choice(_NAMESPACES))


async def _remove_layer(vm: uvm.UtilityVM, random: Random) -> None:
    if vm.os == "linux":
        await vm.vpmem.remove(random.choice(_LOOSE_LAYERS))
    else:
        await vm.vsmb.remove(random.choice(_FILES), read_only=random.random() < 0.5)


async def _release_orphan(vm: uvm.UtilityVM, random: Random) -> None:
    if vm.orphans:
        await random.choice(vm.orphans).release()


async def _look(vm: uvm.UtilityVM, random: Random) -> None:
    await vm.stats()
    vm.ledgers()
    vm.scsi.find(random.choice(_DISKS))


async def _resize(vm: uvm.UtilityVM, random: Random) -> None:
    await vm.update_memory(random.randint(256, 4096) * MIB)


async def _run(vm: uvm.UtilityVM, random: Random) -> None:
    command = random.choice((["echo", "x" * random.randrange(100_000)], ["cat"], ["false"], ["missing"]))
    text = bytes(random.randrange(200_000)) if command == ["cat"] else b""
    done = await vm.run(command, input=text)
    assert done.stdout == (command[1].encode() + b"\n" if command[0] == "echo" else text)


async def _process(vm: uvm.UtilityVM, random: Random) -> None:
    async with vm.open_process(random.choice((["sleep", "1000"], ["yes"]))) as process:
        if process.args == ("yes",):
            await process.stdout.receive()
        await process.kill()
        await process.wait()


async def _container(vm: uvm.UtilityVM, random: Random) -> None:
    name = f"c{random.randrange(3)}"
    if vm.os == "windows":
        async with vm.create_container(name, {"Container": {}}) as container:
            await container.start()
            await container.run(["echo", "a"])
        return
    spec = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}
    async with vm.create_container(name, spec) as container:
        await container.start()
        if random.random() < 0.9:
            async with container.open_init(stdin=True) as init:
                await container.run(["echo", "a"])
                if random.random() < 0.5:
                    await init.signal("TERM")
                    await container.wait()


_ERRANDS: Final[dict[str, Action]] = {
    "detach by path": _detach,
    "remove PCI device": _remove_pci,
    "remove endpoint": _remove_endpoint,
    "remove namespace": _remove_namespace,
    "remove layer or file": _remove_layer,
    "release orphan": _release_orphan,
    "look": _look,
    "resize memory": _resize,
    "run": _run,
    "process": _process,
    "container": _container,
}


def errands() -> dict[str, Action]:
    """Give what else can be done to a VM, by kind."""
    return _ERRANDS
