"""A stateful test of hypothesis with a VM of the in-memory host, to be extended with rules of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

try:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
except ImportError as _error:
    raise ImportError(
        "uvm.testing.machines needs hypothesis, which is not installed; install it with: "
        "pip install 'utilityvm[testing]'"
    ) from _error

from uvm._buses.lease import Releasable
from uvm._vm.keeper import start_vm
from uvm._vm.vm import UtilityVM
from uvm.backends.fake import FakeBackend
from uvm.errors import UVMError
from uvm.options import LCOWOptions, WCOWOptions
from uvm.testing.backends.audit import audit
from uvm.testing.clocks import JumpingLoop
from uvm.testing.strategies import DeviceScript, DeviceStep, Fault, device_steps, faults, options
from uvm.testing.vms import put_boot_files

__all__ = ["VMMachine"]

T = TypeVar("T")


class VMMachine(RuleBasedStateMachine):
    """Devices are attached and released on a VM while calls go wrong; derive from it, and add rules.

    After each step, what the VM says that it has is what its host and its guest have; and once it is closed,
    nothing is left on the host. A rule calls what is async with :meth:`call`, on an event loop of its own
    whose time jumps::

        class ServiceMachine(VMMachine):
            @rule()
            def job(self) -> None:
                assert self.call(run_job, self.vm) == "done"

        TestService = ServiceMachine.TestCase

    :cvar vm_options: the strategy for the options of the VM.
    :cvar disturbed: whether calls go wrong.
    :ivar backend: the host.
    :ivar vm: the VM, running until a fault has it exit.
    :ivar held: the leases of the devices.
    """

    vm_options: ClassVar[st.SearchStrategy[LCOWOptions | WCOWOptions]] = options()
    disturbed: ClassVar[bool] = True

    vm: UtilityVM

    def __init__(self) -> None:
        super().__init__()
        self.backend: FakeBackend = FakeBackend()
        put_boot_files(self.backend)
        self.held: list[Releasable] = []
        self._runner = asyncio.Runner(loop_factory=JumpingLoop)

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call an async function on the event loop, and return its result."""

        async def run() -> T:
            return await function(*args)

        return self._runner.run(run())

    @initialize(data=st.data())
    def _start(self, data: st.DataObject) -> None:
        chosen = data.draw(self.vm_options)

        async def start() -> UtilityVM:
            return await start_vm(chosen, backend=self.backend)

        self.vm = self.call(start)

    @rule(data=st.data())
    def _play(self, data: st.DataObject) -> None:
        step = data.draw(device_steps(self.vm.os))
        DeviceScript((step,)).prepare(self.backend)
        # What a fault, or a device that the options lack, makes of it is no matter: what is left of it is.
        with suppress(UVMError):
            self.call(DeviceStep.play, step, self.vm, self.held)

    @rule(fault=faults())
    def _disturb(self, fault: Fault) -> None:
        if self.disturbed:
            fault.apply(self.backend)

    @invariant()
    def _agrees(self) -> None:
        """Compare once nothing is in flight; a VM that has exited has nothing."""
        if not hasattr(self, "vm"):
            return
        self.call(self.vm.settled)
        if self.vm.exit_status is None:
            found = audit(self.vm, self.backend.vms[self.vm.id])
            assert found.expected == found.actual, found.expected ^ found.actual

    def teardown(self) -> None:
        """Close the VM, and check that nothing is left on the host."""
        try:
            self.backend.faults.clear()
            if hasattr(self, "vm"):
                self.call(self.vm.close)
                assert self.backend.leftovers() == []
        finally:
            self._runner.close()
