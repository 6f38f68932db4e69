"""Where a call is made: a host, a VM on it as a rule, and what is there of it by the accounts of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from attrs import define, field

import uvm
from tests.vm import support as host
from tests.vm.audit import check_at_rest
from tests.vm.support import Running, quiet
from uvm.backends.fake import FakeBackend, FakeGuest, FakeProcess, LinuxGuest, WindowsGuest

__all__ = ["Left", "Stage", "staged"]

#: Longer than any limit but those on an answer of the guest, in virtual time.
LONG_SECONDS = 100.0

#: What is there: how many of each.
Left = Counter[str]


@define(eq=False)
class Stage:
    """A host, and a VM on it.

    :ivar own: the guest is reached over our own connection, not through HCS.
    :ivar pools: what is to be closed at the end.
    :ivar made: what the preparation of a call leaves for it, by name.
    """

    backend: FakeBackend
    options: uvm.LCOWOptions | uvm.WCOWOptions
    timeouts: uvm.GuestTimeouts
    own: bool
    created: uvm.UtilityVM | None = None
    made: dict[str, Any] = field(factory=dict)
    pools: list[uvm.Pool] = field(factory=list)

    @property
    def vm(self) -> uvm.UtilityVM:
        """The VM of a row that has one."""
        assert self.created is not None
        return self.created

    @property
    def running(self) -> bool:
        """Whether there is a VM, and it runs."""
        return self.created is not None and self.created.state is uvm.VMState.RUNNING

    def crash(self) -> None:
        """Have all VMs of the host exit."""
        for machine in list(self.backend.vms.values()):
            machine.crash()

    def left(self) -> Left:
        """Count what is there, by the host and its guests, and what the VM says is withheld or an orphan."""
        found: Left = Counter()
        for machine in self.backend.vms.values():
            found["VMs"] += 1
            if machine.state in ("Created", "Stopped"):
                continue
            inventory = machine.tree.inventory()
            # They have fresh ids.
            adapters = [*inventory.get("NetworkAdapters", ())]
            found.update(_sizes("host", {**inventory, "NetworkAdapters": adapters}))
            found.update(
                _sizes("guest", {"mounts": dict(machine.guest.mounts), "networks": _networks(machine.guest)})
            )
            service = machine.service
            if isinstance(machine.guest, WindowsGuest):
                found["volumes"] += len(machine.guest.volumes)
                found["mapped directories"] += sum(map(len, machine.guest.directories.values()))
            found["processes"] += sum(each.alive for each in service.processes.values())
            found["containers"] += len(service.containers)
            switchboard = machine._switchboard
            if switchboard is not None:
                found["listeners"] += len(switchboard._listeners)
                found["connections"] += len(switchboard._streams)
        found["hosted systems"] = len(self.backend.hosted_systems)
        found["handles"] = len(self.backend._side.processes)
        found["access"] = len(list(self.backend.access.entries()))
        if self.created is not None:
            found["orphans"] = len(self.created.orphans)
            found["quarantined"] = len(self.created.quarantined)
        return +found

    async def settle(self) -> None:
        """Wait until what was begun has ended, limits that are not the guest's included."""
        await anyio.sleep(LONG_SECONDS)
        await quiet()

    async def check_rest(self) -> None:
        """Fail unless the ledgers, the host and the guest agree."""
        if self.running:
            check_at_rest(Running(self.vm, self.backend))

    async def work(self) -> None:
        """Do another job in the VM."""
        done = await self.vm.run(["true"])
        assert done.exit_code == 0
        lease = await self.vm.scsi.attach(host.OTHER_DISK)
        await lease.release()


def _networks(guest: FakeGuest) -> list[Any]:
    """Return what of networks a guest holds."""
    if isinstance(guest, LinuxGuest):
        return [nic for adapters in guest.namespaces.values() for nic in adapters]
    return [*guest.namespaces, *guest.adapters] if isinstance(guest, WindowsGuest) else []


def _sizes(where: str, tree: Any) -> dict[str, int]:
    """Return the number of members of each part of a tree of devices."""
    sizes: dict[str, int] = {}
    for name, part in tree.items() if isinstance(tree, dict) else ():
        if isinstance(part, dict | list | tuple | set):
            sizes[f"{where}/{name}"] = len(part)
            sizes |= _sizes(f"{where}/{name}", part)
    return sizes


async def _wait_for_input(process: FakeProcess) -> int:
    """Write each line that comes, and end with the input."""
    async for data in process.stdin:
        await process.stdout.send(data)
    return 0


@asynccontextmanager
async def staged(
    os: str, *, own: bool, vm: str = "running", timeouts: uvm.GuestTimeouts | None = None, **options: Any
) -> AsyncIterator[Stage]:
    """Set a stage: ``vm`` is ``"running"``, ``"created"``, or ``""`` for a host without one.

    Nothing may be on the host at the end.
    """
    backend = host.host_backend()
    backend.programs.register("server")(_wait_for_input)
    if os == "windows":
        # A share that is mapped stays after its last lease.
        options = {"no_direct_map": True, **options}
    wanted = host.OPTIONS[os](external_guest_connection=own, **options)
    timeouts = timeouts or uvm.GuestTimeouts()
    stage = Stage(backend, wanted, timeouts, own)
    files = _files(backend)
    if not vm:
        yield stage
        for pool in stage.pools:
            # What closing fails with is for the call that closes it.
            with suppress(uvm.UVMError):
                await pool.close()
    else:
        async with uvm.UtilityVM.create(wanted, backend=backend, timeouts=timeouts) as stage.created:
            if vm == "running":
                await stage.vm.start()
            yield stage
    stage.created = None
    await quiet()
    assert backend.leftovers() == [], backend.leftovers()
    assert _files(backend) == files, f"files: {_files(backend) ^ files}"


def _files(backend: FakeBackend) -> set[str]:
    return set(backend.files._nodes)
