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
from tests.hyperv.host import COUNTS, HyperVHost, Means, Wanted, means_of, networks_in, terminate_all
from uvm import FakeBackend, HostError, NotSupportedError
from uvm._vm.creation import build_plan
from uvm.backend import Backend, System
from uvm.hresult import HResult
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
                await backend.network.endpoint(f"{WANTED.owner}-probe")

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
        async with networks_in(backend, machine.network, (0, 2), WANTED.owner) as networks:
            namespace, endpoints = networks[2].id, networks[2].endpoints
            assert [each["ID"] for each in await backend.network.namespace_endpoints(namespace)] == [
                each["ID"] for each in endpoints
            ]
            assert networks[0].endpoints == ()
        for found in (backend.network.namespace(namespace), backend.network.endpoint(endpoints[0]["ID"])):
            with pytest.raises(HostError):
                await found


@pytest.mark.parametrize("fails", [False, True])
async def test_what_the_host_refuses_to_delete_is_named_and_all_else_is_deleted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    async with machine.fake() as backend:
        delete, refused = backend.network.delete_endpoint, f"{WANTED.owner}-2-1"

        async def delete_but_one(id: str) -> None:
            if (await backend.network.endpoint(id))["Name"] == refused:
                raise HostError("delete endpoint", 0x80070020, "in use")
            await delete(id)

        monkeypatch.setattr(backend.network, "delete_endpoint", delete_but_one)
        networks: dict[int, Network] = {}

        async def use() -> None:
            async with networks_in(backend, machine.network, (1, 2), WANTED.owner) as made:
                networks.update(made)
                if fails:
                    raise ValueError("broken")

        before = "ValueError: broken; " if fails else ""
        with pytest.raises(AssertionError, match=rf"^{before}networks were left on .* {refused}: .*in use"):
            await use()
        assert len(networks) == 2
        for network in networks.values():
            with pytest.raises(HostError):
                await backend.network.namespace(network.id)
        there = [name for name in ("1-0", "2-0", "2-1") if await has_endpoint(backend, name)]
        assert there == ["2-1"]


async def has_endpoint(backend: Backend, name: str) -> bool:
    try:
        await backend.network.endpoint(f"{WANTED.owner}-{name}")
    except HostError:
        return False
    return True


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


async def create(backend: Backend, id: str, wanted: Wanted = WANTED) -> None:
    plan = await build_plan(wanted.linux(), backend, await backend.host())
    await backend.create(id, plan.document)


async def test_vms_that_are_left_are_terminated_and_fail_the_scenario(machine: Machine) -> None:
    async def leave(rig: Rig) -> None:
        await create(rig.backend, "left")

    means = await means_of(machine.open, WANTED)
    leaving = Scenario("leaving", leave, frozenset({Control.LINUX}))
    with pytest.raises(AssertionError, match=r"VMs were left on the host, and are terminated: left$"):
        await play(means, leaving)
    assert [vm.state for vm in machine.made[-1].vms.values()] == ["Stopped"]


async def test_vms_are_terminated_before_their_networks_are_deleted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        async with machine.open() as backend:
            delete = backend.network.delete_endpoint

            async def look(id: str) -> None:
                states.extend(vm.state for vm in machine.made[-1].vms.values())
                await delete(id)

            monkeypatch.setattr(backend.network, "delete_endpoint", look)
            yield backend

    async def leave(rig: Rig) -> None:
        await create(rig.backend, "left")
        raise ValueError("broken")

    means = await means_of(opened, WANTED)
    leaving = Scenario("leaving", leave, frozenset({Control.LINUX, Control.NETWORKS}))
    with pytest.raises(AssertionError, match=r"^ValueError: broken; VMs were left on the host, .*: left$"):
        await play(means, leaving)
    assert set(states) == {"Stopped"}


async def test_a_vm_that_cannot_be_terminated_keeps_no_other_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.fake() as backend:
        for id in ("first", "gone", "second"):
            await create(backend, id)
        reopen = backend.open

        async def refuse(id: str) -> System:
            if id == "first":
                raise HostError("open first", 0x80070005, "access is denied")
            if id == "gone":
                raise HostError("open gone", HResult.HCS_E_SYSTEM_NOT_FOUND)
            return await reopen(id)

        monkeypatch.setattr(backend, "open", refuse)
        first, *others = await terminate_all(backend, WANTED.owner)
        assert first.startswith("first (no: ")
        assert others == ["gone", "second"]
        assert backend.vms["second"].state == "Stopped"


async def test_runs_at_once_have_nothing_to_do_with_each_other(machine: Machine) -> None:
    other = Wanted(linux_boot_files=BOOT)
    async with machine.fake() as backend:
        await create(backend, "of-the-other-run", other)
        assert await terminate_all(backend, WANTED.owner) == []
        assert backend.vms["of-the-other-run"].state == "Created"
        async with (
            networks_in(backend, machine.network, (1,), WANTED.owner),
            networks_in(backend, machine.network, (1,), other.owner) as networks,
        ):
            [endpoint] = networks[1].endpoints
            assert (await backend.network.endpoint(endpoint["Name"]))["ID"] == endpoint["ID"]


async def test_what_another_run_left_is_named(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = Wanted(linux_boot_files=BOOT)
    (left := tmp_path / f"{other.owner}-x").mkdir()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        async with machine.open() as backend:
            await create(backend, "left", other)
            await create(backend, "of a user", Wanted(linux_boot_files=BOOT, owner="a user"))
            yield backend

    assert (await means_of(machine.open, Wanted(linux_boot_files=BOOT))).others == (f"directory {left}",)
    means = await means_of(opened, WANTED)
    assert means.others == (f"VM left of {other.owner}", f"directory {left}")
