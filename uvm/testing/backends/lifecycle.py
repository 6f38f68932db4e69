"""A VM from creation to exit, step by step: the run that the scenarios with faults disturb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from attrs import define, field, frozen

from uvm._async import Flag
from uvm._buses.lease import Releasable
from uvm._names import GuestOS
from uvm._vm.ending import VMState
from uvm._vm.layers import WCOWLayer
from uvm._vm.vm import UtilityVM
from uvm.devices.scsi import Mount
from uvm.testing.backends.checks import equal
from uvm.testing.backends.rig import Host, Rig
from uvm.testing.backends.world import grace_of, options_of

T = TypeVar("T")


Acquire = Callable[[UtilityVM], Awaitable[Releasable]]


@frozen
class Kind:
    """A kind of VM.

    :ivar relayed: HCS connects to its guest and relays requests; otherwise the library connects.
    :ivar shuts_down: it ends by a shutdown; otherwise it is terminated on closing.
    :ivar without: the devices that are left to other kinds.
    """

    os: GuestOS
    relayed: bool = False
    shuts_down: bool = True
    without: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.os} VM, {'relayed' if self.relayed else 'own connection'}"


#: The kinds that are disturbed. A root file system has a disk of its own, so none needs another.
KINDS = {
    "linux": Kind("linux", without=frozenset({"disk"})),
    "windows": Kind("windows", shuts_down=False, without=frozenset({"disk", "device"})),
    "relayed": Kind("linux", relayed=True, without=frozenset({"device", "root"})),
}


class Resources:
    """What the host has for a VM: put there when this is made."""

    def __init__(self, host: Host) -> None:
        self.disk: str = host.put_file("disk.vhdx")
        self.layer: str = host.put_file("base.vhd")
        self.scratch: str = host.put_file("scratch.vhdx")
        self.shared: str = host.put_directory("shared")
        self.layer_directory: str = host.put_directory("layer")
        self.namespace: str = host.put_network(1).id
        self.device: str = host.put_device("1")


def devices(os: GuestOS, resources: Resources) -> dict[str, Acquire]:
    """Return how to attach a device of each kind, some of them for a root file system."""
    everywhere: dict[str, Acquire] = {
        "disk": lambda vm: vm.scsi.attach(resources.disk, mount=Mount()),
        "network": lambda vm: vm.network.setup(resources.namespace),
        "device": lambda vm: vm.vpci.assign(resources.device),
    }
    if os == "windows":
        layers = [WCOWLayer(resources.layer_directory, "base")]
        return everywhere | {
            "directory": lambda vm: vm.share(resources.shared, "C:\\shared"),
            "pipe": lambda vm: vm.pipes.add(r"\\.\pipe\uvm-conformance"),
            "root": lambda vm: vm.mount_layers("c1", layers, resources.scratch),
        }
    return everywhere | {
        "directory": lambda vm: vm.share(resources.shared, "/shared"),
        "root": lambda vm: vm.mount_layers("c1", [resources.layer], resources.scratch),
    }


@define(eq=False)
class Lifecycle:
    """One run of one VM. A failure is recorded, and the run continues as far as it can.

    :ivar hangs: a call hangs on purpose that ending the VM, or undoing its creation, waits for.
    :ivar errors: the failures, in order.
    :ivar vm: the VM, once it was created.
    :ivar closing: the VM is being closed, which no cancellation stops.
    """

    rig: Rig
    kind: Kind
    resources: Resources
    hangs: bool = False
    errors: list[Exception] = field(factory=list)
    vm: UtilityVM | None = None
    closing: bool = False
    _scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    _step_ended: Flag = field(factory=Flag)
    _cut_short: bool = False

    async def run(self) -> None:
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
        self._step_ended.set()

    def cancel(self, *, cut_short: bool = False) -> None:
        """Cancel the current step.

        :param cut_short: take no further step, but close the VM.
        """
        self._cut_short = cut_short
        self._scope.cancel()

    async def step_ended(self) -> None:
        """Wait for the end of the current step."""
        await self._step_ended.wait()

    # The steps.

    @property
    def _grace_seconds(self) -> float:
        return grace_of(self.rig, hangs=self.hangs)

    async def _use(self, vm: UtilityVM) -> None:
        await self._step(vm.start)
        if self._scope.cancelled_caught and not self._cut_short:
            # It is terminated.
            await vm.wait()
        held: list[Releasable] = []
        for name, acquire in devices(self.kind.os, self.resources).items():
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
        """Take a step, unless the run was cut short or the VM has exited."""
        result: T | None = None
        ended = self.vm is None or self.vm.state in (VMState.EXITED, VMState.CLOSED)
        if self._cut_short or ended:
            return None
        self._step_ended = Flag()
        with anyio.CancelScope() as self._scope:
            try:
                result = await call()
            except Exception as error:
                self.errors.append(error)
        self._step_ended.set()
        return result

    async def _compare(self, vm: UtilityVM) -> None:
        """Check the ledgers against the host and the guest, while the VM runs and once it is at rest."""
        if self._cut_short:
            return
        if vm.state is VMState.RUNNING:
            await vm.settled()
        if vm.state is VMState.RUNNING:
            equal(self.rig.host.differences(vm), [], "the differences between the ledgers and the VM")


async def _pause_and_resume(vm: UtilityVM) -> bool:
    await vm.pause()
    await vm.resume()
    return True
