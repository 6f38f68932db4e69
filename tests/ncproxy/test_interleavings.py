"""Set-ups and tear-downs in any order, with calls that fail, hang or end early: in the end nothing stays."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import run_without_waiting
from tests.ncproxy.test_setup import NAMES, PROXY, Scene, nothing, running_there
from tests.vm.support import NAMESPACE, host_backend, lcow
from uvm.errors import RPCCode, RPCError, UVMError
from uvm.testing.ncproxy import FakeNetworkProxy

#: What may become of a call of the proxy, or of a request to the host or guest.
FATES = st.sampled_from(["done", "done", "done", "refused", "never answered", "held"])
ACTIONS = st.sampled_from(["set up", "set up", "tear down", "cancel", "go on", "turn", "refuse a request"])


@define(eq=False)
class Player:
    """Plays one example."""

    scene: Scene
    draw: Any
    tasks: anyio.abc.TaskGroup
    scopes: list[anyio.CancelScope] = field(factory=list)
    gate: anyio.Event = field(factory=anyio.Event)

    async def decide(self, method: str) -> None:
        """Decide what becomes of a call of the proxy."""
        fate = self.draw(FATES, label=method)
        if fate == "refused":
            raise RPCError(method, RPCCode.UNAVAILABLE, "not now")
        if fate == "never answered":
            await anyio.sleep_forever()
        if fate == "held":
            await self.gate.wait()

    async def act(self) -> None:
        """Do one of the actions."""
        action = self.draw(ACTIONS, label="action")
        if action == "set up":
            self.tasks.start_soon(self.attempt, self.scene.setup.setup)
        elif action == "tear down":
            self.tasks.start_soon(self.attempt, self.scene.setup.teardown)
        elif action == "cancel" and self.scopes:
            self.draw(st.sampled_from(self.scopes), label="whom").cancel()
        elif action == "go on":
            self.gate.set()
            self.gate = anyio.Event()
        elif action == "refuse a request":
            nth = self.draw(st.integers(1, 4), label="nth")
            self.scene.run.backend.faults.refuse(0x80004005, operation="modify", nth=nth)
        for _ in range(self.draw(st.integers(0, 40), label="turns")):
            await anyio.lowlevel.checkpoint()

    async def attempt(self, call: Any) -> None:
        """Make a call, which may fail in the ways of the library alone, or be cancelled."""
        with anyio.CancelScope() as scope:
            self.scopes.append(scope)
            try:
                await call(NAMESPACE)
            except UVMError:
                pass
            finally:
                self.scopes.remove(scope)


async def play(draw: Any) -> None:
    backend = host_backend()
    async with (
        FakeNetworkProxy(backend, PROXY, {"pod1": NAMES}) as proxy,
        running_there(lcow(network_config_proxy=PROXY), backend) as run,
    ):
        scene = Scene(run, proxy, run.vm.network_setup("pod1", timeout_seconds=7))
        async with anyio.create_task_group() as tasks:
            player = Player(scene, draw, tasks)
            proxy.before = player.decide
            for _ in range(draw(st.integers(1, 8), label="actions")):
                await player.act()
            player.gate.set()
        proxy.before = nothing
        for rule in list(backend.faults.rules):
            rule.remove()
        await run.vm.settled()
        await tear_down_what_is_left(scene)
        scene.check_nothing_is_set_up()
    assert backend.leftovers() == []


async def tear_down_what_is_left(scene: Scene) -> None:
    """Tear down what is set up; what could not be removed is an orphan that is released."""
    if scene.setup._up is not None:  # type: ignore[attr-defined]
        await scene.setup.teardown(NAMESPACE)
    for orphan in scene.vm.orphans:
        await orphan.release()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(data=st.data())
def test_in_the_end_nothing_stays(backend: str, data: st.DataObject) -> None:
    run_without_waiting(play, data.draw, backend=backend)
