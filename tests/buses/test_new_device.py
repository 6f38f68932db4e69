"""A new kind of device is one module each in the schema, the devices, the buses and the fake, and one line.

Here all of them are one module; the line is in the fixture. Nothing else knows of it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import pytest
from attrs import define

from tests.vm.audit import check_at_rest, compare
from tests.vm.support import Running, lcow, quiet, running
from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm._vm.devices import Devices
from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind
from uvm.backends.fake.host import Host
from uvm.backends.requests.request import Request
from uvm.devices.base import REMOVE, Operation, Step
from uvm.devices.kinds import NamedByKey, PresentOrAbsent
from uvm.errors import HostError, UnknownOutcomeError, VMExitedError
from uvm.schema import requests
from uvm.schema.requests import ModifySettingRequest, Resource

pytestmark = pytest.mark.anyio

# The schema.


class Toy(Resource, frozen=True):
    PATH: ClassVar[str] = "VirtualMachine/Devices/Toys/%s"
    name: str


# The state machine.


class Toys(NamedByKey[None, bool], PresentOrAbsent[str, None, str]):
    withheld = "{} was not given to the guest: whether it still is there is unknown"

    def steps(self, operation: Operation[str, None, str, bool]) -> tuple[Step, ...]:
        request_type = requests.REMOVE if operation.kind is REMOVE else requests.ADD
        path = Toy(operation.slot).path
        return (Step(ModifySettingRequest(resource_path=path, request_type=request_type)),)


# The bus.


@define(eq=False)
class ToyLease(Lease):
    name: str


class ToyBus(Bus):
    _ledgers = ("toys",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._toys = self._drive(Toys())

    @opens
    async def add(self, name: str) -> ToyLease:
        return ToyLease(await self._toys.acquire(name, None), name)


# The fake.


class ToyKind(DeviceKind[Toy]):
    resources: ClassVar[tuple[type[Resource], ...]] = (Toy,)
    name: ClassVar[str] = "Toys"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self.toys: set[str] = set()

    def modify(self, request: Request[Toy]) -> None:
        name = request.resource.name
        if request.action == requests.REMOVE:
            self.toys.remove(name)
        else:
            self.toys.add(name)

    def close(self) -> None:
        self.toys.clear()

    def inventory(self) -> JSON:
        return {toy: {} for toy in sorted(self.toys)}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = cached_property(lambda vm: ToyBus(vm._context))
    bus.__set_name__(Devices, "toys")
    monkeypatch.setattr(Devices, "toys", bus, raising=False)


def bus_of(run: Running) -> Any:
    return run.vm.toys  # type: ignore[attr-defined]


def on_host(run: Running) -> set[str]:
    return run.backend.vms[run.vm.id].tree.of(ToyKind).toys


async def test_it_is_attached_and_detached() -> None:
    async with running(lcow()) as run:
        async with bus_of(run).add("duck"):
            assert on_host(run) == {"duck"}
            check_at_rest(run)
        assert on_host(run) == set()
        check_at_rest(run)


async def test_it_is_among_the_ledgers() -> None:
    async with running(lcow()) as run:
        assert "toys.toys" not in run.vm.ledgers(), "a bus that was not used has none"
        await bus_of(run).add("duck")
        [entry] = run.vm.ledgers()["toys.toys"].entries
        assert (entry.key, entry.applied) == ("duck", True)


async def test_it_is_audited() -> None:
    async with running(lcow()) as run:
        await bus_of(run).add("duck")
        found = compare(run)
        assert ("host", "virtualmachine/devices/toys/duck", "{}") in found.expected & found.actual
        on_host(run).remove("duck")
        lost = compare(run)
        assert lost.expected - lost.actual == found.actual - lost.actual != set()
        on_host(run).update({"duck", "bear"})
        assert len(compare(run).actual - lost.expected) == 1
        on_host(run).remove("bear")


async def test_its_leases_end_with_the_vm() -> None:
    async with running(lcow()) as run:
        held = await bus_of(run).add("duck")
        assert not held.released
        await run.vm.terminate()
        await run.vm.wait()
        assert held.released
        assert run.vm.ledgers()["toys.toys"].entries == ()
        with pytest.raises(VMExitedError):
            await bus_of(run).add("bear")


async def test_an_unknown_outcome_withholds_it() -> None:
    async with running(lcow()) as run:
        run.backend.faults.lose(resource="VirtualMachine/Devices/Toys/*")
        with pytest.raises(UnknownOutcomeError):
            await bus_of(run).add("duck")
        assert [(held.key, held.slot) for held in run.vm.quarantined] == [("duck", "duck")]
        check_at_rest(run)


async def test_a_refusal_leaves_nothing() -> None:
    async with running(lcow()) as run:
        run.backend.faults.refuse(resource="VirtualMachine/Devices/Toys/*")
        with pytest.raises(HostError):
            await bus_of(run).add("duck")
        await quiet()
        assert run.vm.ledgers()["toys.toys"].entries == ()
        check_at_rest(run)
