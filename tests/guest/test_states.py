"""What ends after a container, and what it waits for, is found by guest paths, however many there are."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from uvm._buses.flights import Occupied
from uvm._guest.states import Closing, ContainerStates
from uvm._names import is_at_or_under
from uvm.devices.base import Entry

PATHS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3).map(lambda names: "/" + "/".join(names))
SETS = st.sets(PATHS, max_size=2)


@given(containers=st.lists(st.tuples(SETS, SETS), max_size=4), paths=SETS, ended=st.integers(0, 3))
def test_a_removal_waits_for_the_containers_that_use_its_paths(
    containers: list[tuple[set[str], set[str]]], paths: set[str], ended: int
) -> None:
    states = ContainerStates()
    closings = [Closing(lambda named=named: named, tuple(inside)) for named, inside in containers]  # type: ignore[misc]
    for number, closing in enumerate(closings):
        states.begin_closing(str(number), closing)
    left = [*range(len(containers))]
    if ended in left:
        left.remove(ended)
        states.end_closing(str(ended))
        assert closings[ended].ended.is_set()
    using = [
        closings[number].ended
        for number in left
        if any(is_at_or_under(name, path) for path in paths for name in containers[number][0])
        or any(is_at_or_under(path, directory) for path in paths for directory in containers[number][1])
    ]
    found = states.users(paths)
    assert len(found) == len(using)
    assert {*found} == {*using}


class Tasks:
    """A task group that notes what it is to start."""

    def __init__(self) -> None:
        self.started: list[Any] = []

    def start_soon(self, *call: Any) -> None:
        self.started.append(call)


@given(data=st.data())
def test_a_state_is_deleted_with_the_end_of_the_last_that_is_in_its_directories(data: st.DataObject) -> None:
    occupied = Occupied()
    states = ContainerStates(occupied.inside)
    at: dict[Entry[Any, Any, Any, Any], str] = {}
    kept: dict[str, set[str]] = {}
    deleted: list[str] = []
    tasks: Any = Tasks()

    async def forget() -> None:
        raise AssertionError("it is not started")

    def is_busy(directories: set[str]) -> bool:
        return any(is_at_or_under(path, each) for path in at.values() for each in directories)

    for number in range(data.draw(st.integers(0, 20))):
        event = data.draw(st.sampled_from(["attach", "detach", "close"]))
        if event == "attach":
            entry = Entry[Any, Any, Any, Any](number, number)
            at[entry] = data.draw(PATHS)
            occupied.enter(entry, lambda entry: {at[entry]})
        elif event == "detach" and at:
            entry = data.draw(st.sampled_from([*at]))
            freed = occupied.leave(entry)
            del at[entry]
            states.unmounted(freed)
            deleted += [each for each in kept if not is_busy(kept[each])]
            kept = {each: kept[each] for each in kept if each not in deleted}
        else:
            directories = data.draw(SETS)
            assert bool(states.busy(tuple(directories))) is is_busy(directories)
            if is_busy(directories):
                kept[str(number)] = directories
                states.keep(str(number), tuple(directories), forget, tasks)
        assert len(tasks.started) == len(deleted)
        begun = {each for each in [*kept, *deleted] if (of := states.pending(each)) is not None and of.begun}
        assert begun == {*deleted}
