"""What is in flight is found by the guest paths that it uses, with few steps however much there is."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import running
from uvm._buses.driver import Driver
from uvm._buses.flights import Flights
from uvm._names import is_at_or_under, lineage, trimmed
from uvm.devices.base import Entry

NAMES = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4)
LINUX = NAMES.map(lambda names: "/" + "/".join(names))
WINDOWS = NAMES.map(lambda names: "C:\\" + "\\".join(names))
UNC = NAMES.map(lambda names: "\\".join(["\\\\?\\VMSMB\\VSMB", *names]))
PATHS = st.one_of(st.tuples(LINUX, LINUX), st.tuples(st.one_of(WINDOWS, UNC), st.one_of(WINDOWS, UNC)))


@given(paths=PATHS)
def test_what_is_at_or_under_a_directory_has_it_in_its_lineage(paths: tuple[str, str]) -> None:
    path, directory = paths
    assert (trimmed(directory) in lineage(path)) is is_at_or_under(path, directory)


def entry() -> Entry[Any, Any, Any, Any]:
    return Entry("key", "slot")


@given(data=st.data())
def test_the_users_of_a_path_are_all_younger_devices_in_flight_at_it_or_under_it(data: st.DataObject) -> None:
    flights, paths = Flights(), dict[Entry[Any, Any, Any, Any], set[str]]()
    entries = [entry() for _ in range(6)]
    for _ in range(data.draw(st.integers(0, 20))):
        one = data.draw(st.sampled_from(entries))
        event = data.draw(st.sampled_from(["begin", "end", "look"]))
        if event == "begin" and one not in paths:
            paths[one] = data.draw(st.sets(LINUX, max_size=2))
            flights.begin(one, paths.__getitem__)
        elif event == "end":
            flights.end(one)
            paths.pop(one, None)
        else:
            at = data.draw(LINUX)
            found = flights.users([at], one.number)
            using = [
                each
                for each, used in paths.items()
                if each.number > one.number and any(is_at_or_under(path, at) for path in used)
            ]
            assert len(found) == len(using)
            assert not any(ended.is_set() for ended in found)
        assert len(flights) == len(paths)
    found = flights.users(["/"], -1)
    flights.clear()
    assert all(ended.is_set() for ended in found)
    assert (len(flights), flights._ended) == (0, {})


@pytest.mark.anyio
@pytest.mark.parametrize("order", [1, -1])
async def test_releases_at_once_look_at_each_other_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    """Also if the youngest goes first, so that each meets all those that are in flight and younger."""
    looked: list[object] = []
    used_paths = Driver._used_paths

    def noted(self: Any, one: Any) -> set[str]:
        looked.append(one)
        return used_paths(self, one)

    monkeypatch.setattr(Driver, "_used_paths", noted)
    async with running() as run:
        disks = []
        for number in range(40):
            path = rf"C:\fresh\{number}.vhdx"
            run.backend.files.add(path, size=1 << 20)
            disks.append(await run.vm.scsi.attach(path, mount=uvm.Mount()))
        with run.hold(request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                for disk in disks[::order]:
                    tasks.start_soon(disk.release)
                await gate.wait(len(disks))
                gate.close()
        check_at_rest(run)
    assert len(looked) <= 2 * len(disks)
