"""Many clones of one template, in every order, with refusals, lost answers, cancellations and exits.

Hypothesis chooses what happens next, as in :mod:`tests.vm.test_interleavings`: a clone is created and used,
the template is deleted, or exits, a parked request is answered in one way or another, a task is cancelled. In
the end the host is as it was: no file, no access, no VM is left of a clone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from attrs import define, field
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import uvm
from tests.vm import orders
from tests.vm.audit import check_at_rest
from tests.vm.orders import Choose, run_example
from tests.vm.support import NAMESPACE, OTHER_SHARED, Attempt, Running, host_backend
from tests.vm.test_templates import DIRECTORY, ROOT, TEMPLATE, clone_options, fill, paths
from uvm.backends.fake import Call, Parked

#: What the end of a clone asks for, which is done: what is refused of it is reported, and stays.
_ENDS = ("terminate", "revoke", "enumerate", "properties", "open")
_MOST = 4
_WORK = ("create", "start", "grant", "modify", "negotiate protocol", "execute process", *_ENDS)


def _is_work(call: Call) -> bool:
    return call.operation in _WORK


@define(eq=False)
class World(orders.World):
    """One example: a template, and the clones of it."""

    template: uvm.Template = field(kw_only=True)
    made: int = 0
    alive: list[uvm.UtilityVM] = field(factory=list)

    exit_odds = 200
    # The life of a clone has many calls.
    answers = (*["proceed"] * 30, "refuse", "lose", "lose applied")
    steps = range(40, 150)

    def beginning(self) -> Callable[[], Awaitable[Any]]:
        """Begin to live as a clone, mostly."""
        if self.choose([False] * 29 + [True], "delete"):
            return partial(self.template.delete, self.run.backend)
        self.made += 1
        uses = self.choose(["nothing", "devices", "network", "container"], "uses")
        return partial(self._live, self.made, uses, self.choose([True, False], "closes"))

    def spoiled(self, parked: Parked, how: str) -> None:
        """Nothing of a clone may stay, whatever fails."""

    def wind_up(self) -> None:
        """Answer everything; all go on to their end."""
        self.gate.close()

    def _begin(self) -> None:
        if self.made < _MOST:
            super()._begin()

    def _cancel(self, waiting: list[Attempt]) -> None:
        if self.choose([False] * 9 + [True], "cancel"):
            super()._cancel(waiting)

    def _answer(self) -> None:
        ends = [each for each in self.gate.pending if each.call.operation in _ENDS]
        if ends:
            ends[0].proceed()
        else:
            super()._answer()

    async def _live(self, number: int, uses: str, closes: bool) -> None:
        """Create a clone, start it, use it, and leave it."""
        directory = rf"{DIRECTORY}\{number}"
        options = clone_options(self.template, id=f"clone{number}", scratch_directory=directory)
        async with uvm.UtilityVM.create(options, backend=self.run.backend) as clone:
            self.alive.append(clone)
            await clone.start()
            await getattr(self, f"_use_{uses}")(clone)
            if closes:
                await clone.close()

    async def _use_nothing(self, clone: uvm.UtilityVM) -> None:
        check_at_rest(Running(clone, self.run.backend))

    async def _use_devices(self, clone: uvm.UtilityVM) -> None:
        await clone.layers.remove(ROOT)
        for disk in clone.scsi.disks:
            await clone.scsi.detach(disk.host_path)
        await clone.vsmb.remove(OTHER_SHARED, read_only=True)
        await clone.vsmb.add(OTHER_SHARED)
        check_at_rest(Running(clone, self.run.backend))

    async def _use_network(self, clone: uvm.UtilityVM) -> None:
        async with clone.network.setup(NAMESPACE):
            assert clone.network.adapters
        check_at_rest(Running(clone, self.run.backend))

    async def _use_container(self, clone: uvm.UtilityVM) -> None:
        async with clone.open_container("c1") as container:
            await container.run(["echo", "hello"])


def _host(run: Running) -> tuple[object, ...]:
    """What the host has beside the template."""
    backend = run.backend
    others = [id for id in backend.vms if id != "vm1"]
    access = sorted(each for each in backend.access.entries() if each[1] != "vm1")
    return others, access, paths(backend), backend.network.attachments()


async def _example(choose: Choose) -> None:
    backend = host_backend()
    # A directory that several share goes with none of them.
    backend.files.add_directory(DIRECTORY)
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        await fill(vm)
        template = await vm.save_template()
        run = Running(vm, backend)
        before = _host(run), vm.devices()
        async with anyio.create_task_group() as tasks:
            gate = backend.faults.hold(where=_is_work)
            world = World(run, tasks, gate, choose, template=template)
            await world.play()
            world.wind_up()
        world.check_errors()
        event(f"{len(world.alive)} clones, the template {vm.state.value}")
        assert {clone.state for clone in world.alive} <= {uvm.VMState.CLOSED}
        assert _host(run) == before[0]
        if vm.state is uvm.VMState.SAVED:
            assert vm.devices() == before[1]
        await template.delete(backend)
    assert backend.leftovers() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_nothing_is_left_of_clones_whatever_happened(backend: str, data: st.DataObject) -> None:
    run_example(_example, backend, data)
