"""What is in a directory is found by order; a walk over all paths finds the same."""

from __future__ import annotations

import ntpath
import posixpath
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uvm._names import GuestOS, guest_path_key
from uvm._repr import brief
from uvm.backends.fake.devices.request import Device
from uvm.backends.fake.guest.state import Mount, Mounts
from uvm.backends.fake.paths import PathTable

OSES: dict[GuestOS, ModuleType] = {"linux": posixpath, "windows": ntpath}
ROOTS: dict[GuestOS, tuple[str, ...]] = {
    "linux": ("/",),
    "windows": ("C:\\", "\\\\server\\share\\", "\\\\?\\Volume{a}", "\\\\?\\Volume{a}\\", "\\\\.\\C:\\"),
}
#: Names that sort around the separators of both, and that begin alike.
NAMES = st.lists(st.sampled_from(["a", "b", "a!", "a-", "ab", "A", "_", "é"]), max_size=4)


def is_inside(path: str, directory: str, separator: str) -> bool:
    return path != directory and path.startswith(directory.rstrip(separator) + separator)


@st.composite
def keys(draw: st.DrawFn, os: GuestOS) -> str:
    """Keys of paths, and, rarely, what is no path and is its own key."""
    separator = OSES[os].sep
    names = separator.join(draw(NAMES))
    if draw(st.integers(0, 9)) == 0:
        return names or "x"
    root = draw(st.sampled_from(ROOTS[os]))
    return guest_path_key(root.rstrip(separator) + separator + names if names else root, os)


class Table(RuleBasedStateMachine):
    """A table of mounts, against a dict that is walked."""

    @initialize(os=st.sampled_from(sorted(OSES)))
    def start(self, os: GuestOS) -> None:
        self.os = os
        self.separator = OSES[os].sep
        self.mounts = Mounts(self.separator)
        self.model: dict[str, Mount] = {}
        self.devices = [Device[None](name, None) for name in "abc"]

    @rule(data=st.data(), number=st.integers(0, 3))
    def mount(self, data: st.DataObject, number: int) -> None:
        key = data.draw(keys(self.os))
        mount = Mount(key, "disk", self.devices[number] if number < len(self.devices) else None)
        self.mounts[key] = mount
        self.model.pop(key, None)
        self.model[key] = mount

    @rule(data=st.data())
    def unmount(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)) if self.model else keys(self.os))
        assert self.mounts.pop(key, None) is self.model.pop(key, None)

    @rule()
    def end(self) -> None:
        self.mounts.clear()
        self.model.clear()

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        key = data.draw(keys(self.os))
        inside = [path for path in self.model if is_inside(path, key, self.separator)]
        assert list(self.mounts.inside(key)) == sorted(inside)
        around = [path for path in self.model if path == key or is_inside(key, path, self.separator)]
        assert list(self.mounts.around(key)) == sorted(around, key=len, reverse=True)

    @invariant()
    def the_table_is_what_was_mounted_in_order(self) -> None:
        if not hasattr(self, "mounts"):
            return
        assert list(self.mounts.items()) == list(self.model.items())
        assert repr(self.mounts) == brief(repr(self.model))
        for device in self.devices:
            on = (mount for mount in self.model.values() if mount.device is device)
            assert self.mounts.on(device) is next(on, None)


TestTable = Table.TestCase


@given(st.lists(keys("linux"), unique=True), st.data())
def test_nothing_is_left_of_what_was_removed(paths: list[str], data: st.DataObject) -> None:
    table = PathTable[int]("/")
    for number, path in enumerate(paths):
        table[path] = number
    for path in data.draw(st.permutations(paths)):
        del table[path]
    assert not table
    assert list(table.inside("/")) == []
    with pytest.raises(KeyError):
        del table["/"]
