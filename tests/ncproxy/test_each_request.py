"""Networks set up and torn down: one run for each request, spoilt in one way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import uvm
from tests.clocks import jumping_backends
from tests.ncproxy.test_setup import CUSTOM, NAMES, PROXY, Scene
from tests.points import Point, on_this_loop, points, spoil
from tests.vm.audit import check_at_rest
from tests.vm.support import NAMESPACE, OPTIONS, REDIALS, Running, host_backend
from uvm.testing.ncproxy import FakeNetworkProxy

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

EACH = [
    pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"]),
    pytest.mark.parametrize("kind", ["internal", "external"]),
    pytest.mark.parametrize("os", ["linux", "windows"]),
]


@asynccontextmanager
async def scene_of(kind: str, os: str) -> AsyncIterator[Scene]:
    """A running VM, whose network it sets up itself, or a proxy, which assigns a Linux VM a device too."""
    backend = host_backend()
    options = OPTIONS[os](network_config_proxy=PROXY if kind == "external" else "")
    device = ["vf1"] if os == "linux" else []
    async with (
        FakeNetworkProxy(backend, PROXY, {"pod1": [*NAMES, *device]}) as proxy,
        uvm.UtilityVM.create(options, backend=backend, timeouts=REDIALS) as vm,
    ):
        proxy.custom["vf1"] = CUSTOM
        await vm.start()
        yield Scene(Running(vm, backend), proxy, vm.network_setup("pod1"))
    assert backend.leftovers() == []


async def points_of(kind: str, os: str, *, teardown: bool) -> list[Point]:
    """The requests of a set-up, or of a tear-down."""
    async with scene_of(kind, os) as scene:
        begun = scene.run.last
        await scene.setup.setup(NAMESPACE)
        if teardown:
            begun = scene.run.last
            await scene.setup.teardown(NAMESPACE)
        found = [*points(scene.run.backend, begun)]
        assert {"host", "guest"} <= {point.to for point in found}
        return on_this_loop(found)


def check_nothing_is_set_up(scene: Scene) -> None:
    scene.check_nothing_is_set_up()
    assert dict(scene.proxy.agents) == {}


def breaks_off(scene: Scene, how: str, point: Point) -> bool:
    """Whether the connection goes with an answer: a Windows guest does not dial again."""
    return (how, point.to, scene.vm.os) == ("lose", "guest", "windows")


def each(test: object) -> object:
    for mark in EACH:
        test = mark(test)
    return test


@each
async def test_a_set_up_is_whole_or_not_at_all(how: str, kind: str, os: str) -> None:
    for point in await points_of(kind, os, teardown=False):
        async with scene_of(kind, os) as scene:
            done = await spoil(scene.run.backend, how, point, lambda: scene.setup.setup(NAMESPACE))
            await scene.vm.settled()
            check_at_rest(scene.run)
            if breaks_off(scene, how, point):
                continue
            if scene.vm.quarantined:
                assert how == "lose", point
            else:
                if not done:
                    check_nothing_is_set_up(scene)
                    await scene.setup.setup(NAMESPACE)
                await scene.setup.teardown(NAMESPACE)
                check_nothing_is_set_up(scene)


@each
async def test_a_tear_down_goes_on_when_it_is_asked_for_again(how: str, kind: str, os: str) -> None:
    for point in await points_of(kind, os, teardown=True):
        async with scene_of(kind, os) as scene:
            await scene.setup.setup(NAMESPACE)
            done = await spoil(scene.run.backend, how, point, lambda: scene.setup.teardown(NAMESPACE))
            await scene.vm.settled()
            check_at_rest(scene.run)
            if breaks_off(scene, how, point):
                continue
            if how == "cancelled" or done:
                check_nothing_is_set_up(scene)
            elif scene.vm.quarantined:
                assert how == "lose", point
            else:
                await scene.setup.teardown(NAMESPACE)
                check_nothing_is_set_up(scene)
