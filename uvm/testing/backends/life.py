"""The whole life of a VM, step by step: what the scenarios with faults disturb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeVar

import anyio
from attrs import define, field, frozen

from uvm._vm.layers import WCOWLayer
from uvm._vm.vm import UtilityVM, VMState
from uvm.devices.scsi import Mount
from uvm.testing.backends.checks import equal, until
from uvm.testing.backends.rig import Rig
from uvm.testing.backends.world import grace_of, options_of

T = TypeVar("T")


class Releasable(Protocol):
    """What is held of a VM."""

    @property
    def released(self) -> bool:
        """Whether it was given back, or the VM has gone."""

    async def release(self) -> None:
        """Give it back."""


Acquire = Callable[[UtilityVM], Awaitable[Releasable]]


@frozen
class Kind:
    """A kind of VM.

    :ivar relayed: HCS connects to its guest and relays; else the library does.
    :ivar shuts_down: it ends by a shutdown; else it is terminated, when it is closed.
    :ivar without: devices that it does not get, as others' lives have them.
    """

    os: Literal["linux", "windows"]
    relayed: bool = False
    shuts_down: bool = True
    without: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.os} VM, {'relayed' if self.relayed else 'own connection'}"


#: The kinds whose lives are disturbed. A root file system has a disk of its own, so none needs another.
KINDS = {
    "linux": Kind("linux", without=frozenset({"disk"})),
    "windows": Kind("windows", shuts_down=False, without=frozenset({"disk", "device"})),
    "relayed": Kind("linux", relayed=True, without=frozenset({"device", "root"})),
}


@frozen
class Things:
    """What is on the host for a VM to have."""

    disk: str
    layer: str
    scratch: str
    shared: str
    layer_directory: str
    namespace: str
    device: str


def put_things(rig: Rig) -> Things:
    """Put on the host what a VM is to have."""
    host = rig.host
    return Things(
        disk=host.put_file("disk.vhdx"),
        layer=host.put_file("base.vhd"),
        scratch=host.put_file("scratch.vhdx"),
        shared=host.put_directory("shared"),
        layer_directory=host.put_directory("layer"),
        namespace=host.put_network(1).id,
        device=host.put_device("1"),
    )


def devices(os: str, things: Things) -> dict[str, Acquire]:
    """Give what a life attaches: a device of each kind, some of them for a root file system."""
    everywhere: dict[str, Acquire] = {
        "disk": lambda vm: vm.scsi.attach(things.disk, mount=Mount()),
        "network": lambda vm: vm.network.setup(things.namespace),
        "device": lambda vm: vm.vpci.assign(things.device),
    }
    if os == "windows":
        layers = [WCOWLayer(things.layer_directory, "base")]
        return everywhere | {
            "directory": lambda vm: vm.share(things.shared, "C:\\shared"),
            "pipe": lambda vm: vm.pipes.add(r"\\.\pipe\uvm-conformance"),
            "root": lambda vm: vm.mount_layers("c1", layers, things.scratch),
        }
    return everywhere | {
        "directory": lambda vm: vm.share(things.shared, "/shared"),
        "root": lambda vm: vm.mount_layers("c1", [things.layer], things.scratch),
    }


def at_rest(vm: UtilityVM) -> bool:
    """Whether nothing is under way to the host or the guest."""
    drivers = [driver for _, driver in vm._drivers()]
    entries = [entry for driver in drivers for entry in driver.ledger]
    busy = any(entry.operation is not None or entry.waiters or entry.leaving for entry in entries)
    return not busy and not any(driver.lane.running or driver.lane.queue for driver in drivers)


@define(eq=False)
class Life:
    """One life of one VM. What fails on the way is noted, and it goes on as far as it can.

    :ivar hangs: a call hangs on purpose that whoever ends it, or takes back its creation, waits for.
    :ivar errors: what failed, in order.
    :ivar vm: the VM, once it was created.
    :ivar closing: it is being closed, and no cancellation stops that.
    """

    rig: Rig
    kind: Kind
    things: Things
    hangs: bool = False
    errors: list[Exception] = field(factory=list)
    vm: UtilityVM | None = None
    closing: bool = False
    _scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    _step_over: anyio.Event = field(factory=anyio.Event)
    _cut_short: bool = False

    async def live(self) -> None:
        """Create a VM, start it, use it, and close it."""
        options = options_of(self.rig, self.kind.os, external_guest_connection=not self.kind.relayed)
        created = UtilityVM.create(options, backend=self.rig.backend, close_grace_seconds=self._grace_seconds)
        whole = self._scope
        try:
            with whole:
                async with created as vm:
                    self.vm = vm
                    await self._use(vm)
                    self.closing, self._scope = True, whole
        except Exception as error:
            self.errors.append(error)
        self._step_over.set()

    def cancel(self, *, cut_short: bool = False) -> None:
        """Cancel the step that it is at.

        :param cut_short: take no further step, but close the VM.
        """
        self._cut_short = cut_short
        self._scope.cancel()

    async def until_step_is_over(self) -> None:
        """Wait for the end of the step that it is at."""
        await self._step_over.wait()

    # Its steps.

    @property
    def _grace_seconds(self) -> float:
        return grace_of(self.rig, hangs=self.hangs)

    async def _use(self, vm: UtilityVM) -> None:
        await self._step(vm.start)
        held: list[Releasable] = []
        for name, acquire in devices(self.kind.os, self.things).items():
            if name in self.kind.without:
                continue
            lease = await self._step(lambda acquire=acquire: acquire(vm))  # type: ignore[misc]
            held += [lease] if lease is not None else []
        await self._compare(vm)
        await self._step(vm.stats)
        await self._step(lambda: vm.update_memory(512 << 20))
        for lease in reversed(held):
            await self._step(lease.release)
        await self._compare(vm)
        went_on = await self._step(lambda: _pause_and_resume(vm))
        # One that may still be paused can only be terminated.
        if self.kind.shuts_down and went_on:
            await self._step(lambda: vm.shutdown(timeout_seconds=self._grace_seconds))

    async def _step(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Take a step, unless the life was cut short or has ended."""
        result: T | None = None
        ended = self.vm is None or self.vm.state in (VMState.EXITED, VMState.CLOSED)
        if self._cut_short or ended:
            return None
        self._step_over = anyio.Event()
        with anyio.CancelScope() as self._scope:
            try:
                result = await call()
            except Exception as error:
                self.errors.append(error)
        self._step_over.set()
        return result

    async def _compare(self, vm: UtilityVM) -> None:
        """What the ledgers say, the machine and the guest have; while it runs, and once it is at rest."""
        if self._cut_short:
            return
        await until(lambda: at_rest(vm) or vm.state is not VMState.RUNNING)
        if vm.state is VMState.RUNNING:
            equal(self.rig.host.differences(vm), [], "what the ledgers say and what is there")


async def _pause_and_resume(vm: UtilityVM) -> bool:
    await vm.pause()
    await vm.resume()
    return True
