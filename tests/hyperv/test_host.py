"""The host of ``tests.hyperv``: what of a command line it has, and what is left of a scenario."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import define, field

from tests.backends.hcs.harness import hosted
from tests.hyperv import devicelife
from tests.hyperv.conftest import BOOT, LAYER, Machine
from tests.hyperv.host import COUNTS, HyperVHost, Means, Wanted, means_of, networks_in
from uvm import FakeBackend, HostError, NotSupportedError
from uvm._vm.creation import build_plan
from uvm.backend import Backend
from uvm.testing.backends import SCENARIOS, Control, FakeHost, Level, Network, Rig, Scenario
from uvm.testing.backends.scenario import scenarios_of

pytestmark = pytest.mark.anyio

LIFE = scenarios_of(devicelife, answers=True)
WANTED = Wanted(linux_boot_files=BOOT, windows_layers=(LAYER,), guest_programs=True)


# What the host has.


async def test_a_host_has_the_controls_of_what_it_has(
    machine: Machine,
) -> None:
    means = await means_of(machine.open, WANTED)
    assert means.controls == {
        *(Control.FILES, Control.LINKS, Control.PIPES, Control.NETWORKS),
        *(Control.LINUX, Control.WINDOWS, Control.PROGRAMS),
    }
    assert means.lacks == ()


async def test_windows_vms_take_a_layer(machine: Machine) -> None:
    means = await means_of(machine.open, Wanted(linux_boot_files=BOOT))
    assert Control.WINDOWS not in means.controls
    assert "Windows VMs: --windows-layer names no layer of an image" in means.lacks


async def test_what_a_host_lacks_is_said_with_the_reason(machine: Machine) -> None:
    machine.boots, machine.network = False, "11111111-1111-1111-1111-111111111111"
    layer = Wanted(linux_boot_files=BOOT, windows_layers=(LAYER,))
    means = await means_of(machine.open, layer)
    assert means.controls == {Control.FILES, Control.LINKS, Control.PIPES}
    linux, windows, networks, programs = means.lacks
    assert linux.startswith("Linux VMs: ")
    assert BOOT in linux
    assert windows.startswith("Windows VMs: ")
    assert LAYER in windows
    assert networks.startswith("networks of the host: ")
    assert programs.startswith("programs in the guests: --guest-programs")


async def test_a_probe_leaves_nothing(machine: Machine) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        async with machine.open() as backend:
            yield backend
            with pytest.raises(HostError, match="HCN_E_ENDPOINT_NOT_FOUND"):
                await backend.network.endpoint("uvm-test-hyperv-probe")

    assert Control.NETWORKS in (await means_of(opened, WANTED)).controls


# Files and networks.


def test_disks_are_images_and_other_files_what_they_are(tmp_path: Path) -> None:
    host = HyperVHost(FakeBackend(), tmp_path, frozenset(), {})
    assert Path(host.put_file("a.vhd")).read_bytes()[-512:].startswith(b"conectix")
    assert Path(host.put_file("a.vhdx")).read_bytes().startswith(b"vhdxfile")
    assert Path(host.put_file("a.vhdx", content=b"text", size_bytes=6)).read_bytes() == b"text\0\0"
    assert Path(host.put_file("a.txt", size_bytes=3)).read_bytes() == b"\0\0\0"


def test_pipes_are_those_of_windows_and_of_this_process() -> None:
    host = HyperVHost(FakeBackend(), Path(), frozenset(), {})
    assert host.pipe_path("agent").startswith("\\\\.\\pipe\\uvm-test-hyperv-")


async def test_networks_are_there_while_they_are_used_and_gone_afterwards(machine: Machine) -> None:
    async with machine.fake() as backend:
        async with networks_in(backend, machine.network, (0, 2)) as networks:
            namespace, endpoints = networks[2].id, networks[2].endpoints
            assert [each["ID"] for each in await backend.network.namespace_endpoints(namespace)] == [
                each["ID"] for each in endpoints
            ]
            assert networks[0].endpoints == ()
        for found in (backend.network.namespace(namespace), backend.network.endpoint(endpoints[0]["ID"])):
            with pytest.raises(HostError):
                await found


def test_a_network_is_put_once(tmp_path: Path) -> None:
    host = HyperVHost(FakeBackend(), tmp_path, frozenset(), {})
    with pytest.raises(NotSupportedError, match="no network with 1 endpoints"):
        host.put_network(1)


@define(eq=False)
class Counting(FakeHost):
    """A host that has the networks that a real one has for a scenario, and no more."""

    left: list[int] = field(factory=lambda: [*COUNTS], kw_only=True)

    def put_network(self, endpoints: int) -> Network:
        self.left.remove(endpoints)
        return super().put_network(endpoints)


async def test_the_networks_that_are_made_are_enough_for_each_scenario() -> None:
    needing = [each for each in SCENARIOS if Control.NETWORKS in each.needs and each.level < Level.EVERYTHING]
    for scenario in needing:
        async with FakeBackend() as fake:
            host = Counting(fake)
            await scenario.play(Rig(fake, host, host.linux(), host.windows()))


# Scenarios.


async def play(means: Means, scenario: Scenario) -> None:
    async with means.rig(scenario) as rig:
        assert scenario.lacks(rig) == []
        await scenario.play(rig)


@pytest.mark.parametrize("scenario", LIFE, ids=str)
async def test_devices_come_and_go(machine: Machine, scenario: Scenario) -> None:
    await play(await means_of(machine.open, WANTED), scenario)


@pytest.mark.parametrize("scenario", LIFE[:4], ids=str)
async def test_devices_come_and_go_behind_hcs(machine: Machine, scenario: Scenario) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        async with hosted(machine.fake()) as host, host.backend() as backend:
            yield backend

    await play(await means_of(opened, WANTED), scenario)


async def test_vms_that_are_left_are_terminated_and_fail_the_scenario(machine: Machine) -> None:
    async def leave(rig: Rig) -> None:
        assert rig.linux is not None
        plan = await build_plan(rig.linux, rig.backend, await rig.backend.host())
        await rig.backend.create("left", plan.document)

    means = await means_of(machine.open, WANTED)
    leaving = Scenario("leaving", leave, frozenset({Control.LINUX}))
    with pytest.raises(AssertionError, match="VMs were left on the host, and are terminated: left"):
        await play(means, leaving)
    assert [vm.state for vm in machine.made[-1].vms.values()] == ["Stopped"]
