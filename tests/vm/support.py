"""What the tests of the VM share: a host with files, options, running VMs, and ways to watch tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from functools import cache, cached_property
from typing import Any

import sniffio
import trio.testing
from attrs import define, field

import uvm
from uvm._buses.driver import Driver
from uvm._document.plan import CreationPlan
from uvm._guest.timeouts import GuestTimeouts
from uvm._vm.devices import Devices
from uvm.backend import Concurrency
from uvm.backends.fake import Checks, Entry, FakeBackend, FakeFiles, FakeGuest, Gate
from uvm.options import LCOWOptions, VmbFSBootFiles, WCOWOptions
from uvm.testing.backends.checks import Attempt as Attempt

MIB = 1 << 20

DISK = r"C:\disks\a.vhdx"
OTHER_DISK = r"C:\disks\b.vhdx"
SCRATCH = r"C:\disks\scratch.vhdx"
LAYER = r"C:\layers\base.vhd"
OTHER_LAYER = r"C:\layers\top.vhd"
LARGE_LAYER = r"C:\layers\large.vhd"
SHARED = r"C:\shared"
OTHER_SHARED = r"C:\other"
FILE = r"C:\shared\one.txt"
OTHER_FILE = r"C:\shared\two.txt"
PIPE = r"\\.\pipe\one"
OTHER_PIPE = r"\\.\pipe\two"
DEVICE = r"PCI\VEN_1234\1"
OTHER_DEVICE = r"PCI\VEN_1234\2"
NAMESPACE = "11111111-0000-0000-0000-000000000000"
ENDPOINT = "22222222-0000-0000-0000-000000000001"
OTHER_ENDPOINT = "22222222-0000-0000-0000-000000000002"
#: A PCI device that is a network adapter, and that adapter of a Linux guest.
NIC_DEVICE = r"PCI\VEN_1234\3"
NIC = "33333333-0000-0000-0000-000000000003"
GUEST_ADAPTER = {
    "NamespaceID": NAMESPACE,
    "ID": NIC,
    "VPCIAssigned": True,
    "IPConfigs": [{"IPAddress": "10.0.0.2", "PrefixLength": 24}],
}


#: Long enough for any guest to dial again.
REDIALS = GuestTimeouts(redial_seconds=3600)

DISKS = "VirtualMachine/Devices/Scsi/*"
LAYERS = "VirtualMachine/Devices/VirtualPMem/*"
ADAPTERS = "VirtualMachine/Devices/NetworkAdapters/*"
PLAN9 = "VirtualMachine/Devices/Plan9/Shares"
VSMB = "VirtualMachine/Devices/VirtualSmb/Shares"
PCI = "VirtualMachine/Devices/VirtualPci/*"
PIPES = "VirtualMachine/Devices/MappedPipes/*"


@cache
def _host_files() -> FakeFiles:
    files = FakeFiles()
    for name in ("vmlinux", "kernel", "initrd.img"):
        files.add(rf"C:\boot\{name}", size=MIB)
    files.add_directory(r"C:\os")
    files.add(r"C:\vm\scratch.vhdx", size=MIB)
    for path in (DISK, OTHER_DISK, SCRATCH, LAYER, OTHER_LAYER):
        files.add(path, size=MIB)
    files.add(LARGE_LAYER, size=5 * MIB)
    for path in (FILE, OTHER_FILE):
        files.add(path, size=1)
    files.add_directory(OTHER_SHARED)
    return files


def host_backend(**settings: Any) -> FakeBackend:
    """A host with boot files, disks, layers, directories, and a network namespace with two endpoints."""
    files = FakeFiles()
    # Thousands of hosts are made.
    files._nodes.update((key, copy(node)) for key, node in _host_files()._nodes.items())
    backend = FakeBackend(files=files, **{"checks": Checks(access="writable"), **settings})
    backend.network.add_namespace({"ID": NAMESPACE})
    for index, endpoint in enumerate((ENDPOINT, OTHER_ENDPOINT)):
        backend.network.add_endpoint(
            {
                "ID": endpoint,
                "Name": f"endpoint-eth{index}",
                "HostComputeNamespace": NAMESPACE,
                "MacAddress": f"00-15-5D-00-00-0{index}",
            }
        )
    return backend


def lcow(**options: Any) -> LCOWOptions:
    """Options of a Linux VM that the host can boot."""
    return LCOWOptions(**{"id": "vm1", "boot_files_path": r"C:\boot", **options})


def wcow(**options: Any) -> WCOWOptions:
    """Options of a Windows VM that the host can boot."""
    boot = VmbFSBootFiles(
        os_files_path=r"C:\os",
        os_relative_boot_directory=r"\EFI\Microsoft\Boot",
        scratch_vhd_path=r"C:\vm\scratch.vhdx",
    )
    return WCOWOptions(**{"id": "vm1", "boot_files": boot, **options})


OPTIONS: dict[str, Callable[..., LCOWOptions | WCOWOptions]] = {"linux": lcow, "windows": wcow}


@define
class Running:
    """A running VM with the host that it runs on.

    :ivar pod: runs containers in it.
    """

    vm: uvm.UtilityVM
    backend: FakeBackend
    start: int = field(init=False)
    pod: uvm.Pod = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start = self.last
        self.pod = uvm.Pod(self.vm, "")

    @property
    def last(self) -> int:
        """The number of the last call so far."""
        return max((entry.seq for entry in self.backend.request_log), default=0)

    def sent(self, *to: str) -> list[Entry]:
        """The grants and modify requests since the VM was started, or only those to somebody."""
        wanted = to or ("grant", "host", "guest")
        return [e for e in self.backend.request_log if e.seq > self.start and e.to in wanted]

    def told(self, *to: str) -> list[str]:
        """The same in short: who was asked, and what for."""
        return [f"{e.to}: {e.call.request_type or 'access'} {_short(e)}".strip() for e in self.sent(*to)]

    @property
    def guest(self) -> FakeGuest:
        """The guest as it is."""
        return self.backend.vms[self.vm.id].guest

    @property
    def inventory(self) -> dict[str, Any]:
        """The host's devices as they are."""
        return self.backend.vms[self.vm.id].tree.inventory()

    def hold(self, **matching: Any) -> Gate:
        """Park modify requests."""
        return self.backend.faults.hold(**{"operation": "modify", **matching})

    def state(self) -> tuple[Any, ...]:
        """All that a refused call must leave as it was."""
        for name, attribute in vars(Devices).items():
            # Made now, so that the first use of a bus is no change.
            if isinstance(attribute, cached_property):
                getattr(self.vm, name)
        return self.vm.ledgers(), len(self.sent()), str(self.inventory), str(dict(self.guest.mounts))


def _short(entry: Entry) -> str:
    if entry.to == "grant":
        return str(entry.document["path"])
    return entry.call.resource.removeprefix("VirtualMachine/Devices/").split("/")[0]


@asynccontextmanager
async def running(
    options: LCOWOptions | WCOWOptions | None = None,
    *,
    backend: FakeBackend | None = None,
    concurrency: Concurrency | None = None,
    amend: Callable[[CreationPlan], CreationPlan] | None = None,
    timeouts: GuestTimeouts | None = None,
    close_grace_seconds: float = 10.0,
) -> AsyncIterator[Running]:
    """A started VM, Linux by default; nothing may be left of it on the host.

    Where an answer of its guest gets lost, its connection breaks; a Linux guest dials again, and is let.
    """
    options = options or lcow()
    if timeouts is None:
        timeouts = REDIALS if isinstance(options, LCOWOptions) else GuestTimeouts()
    backend = backend or host_backend()
    created = uvm.UtilityVM.create(
        options,
        backend=backend,
        concurrency=concurrency,
        amend=amend,
        timeouts=timeouts,
        close_grace_seconds=close_grace_seconds,
    )
    async with created as vm:
        await vm.start()
        yield Running(vm, backend)
    assert backend.leftovers() == []


async def quiet() -> None:
    """Wait until every other task waits for something, on both loops and without passing time."""
    if sniffio.current_async_library() == "trio":
        await trio.testing.wait_all_tasks_blocked()
        return
    loop, calm = asyncio.get_running_loop(), 0
    while calm < 3:
        await asyncio.sleep(0)
        # What is ready runs in the turn in which it is looked at, or in the next one.
        calm = 0 if loop._ready else calm + 1  # type: ignore[attr-defined]


def idle(driver: Driver[Any, Any, Any, Any]) -> bool:
    """Whether a driver has nothing in flight and nobody waiting."""
    lane = driver.lane
    busy = [e for e in driver.ledger if e.operation is not None or e.waiters or e.leaving]
    return not busy and lane.running == 0 and not lane.queue and not driver._gates
