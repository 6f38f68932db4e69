"""Any sequence of requests against a model of the device tree, and any life of a compute system.

The model knows only what is where; the trees of two VMs on one host must agree with it, refuse with the
code that it predicts, and let go of everything at the exit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import anyio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.backends.fake.support import (
    MIB,
    SHARED,
    add,
    disk,
    host_files,
    image,
    lcow,
    mapping,
    pmem,
    remove,
    slot,
)
from uvm.backends.fake import Checks, FakeBackend, FakeSystem
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.requests import Plan9Shares

FILES = [rf"C:\disks\{name}.vhdx" for name in "abc"]
VMS = ("vm1", "vm2")


LOOPS = st.sampled_from(["asyncio", "trio"])


class Machine(RuleBasedStateMachine):
    """What both machines share: calls are made one by one, each in an event loop of its own."""

    loop = "asyncio"

    def outcome(self, call: Any, *args: Any) -> int:
        """Make a call; 0, or the code with which it is refused."""
        try:
            anyio.run(call, *args, backend=self.loop)
        except HostError as e:
            return e.hresult
        return 0


class Tree(Machine):
    """Two Linux VMs; what each has attached, by resource path, and who has which file open."""

    @initialize(loop=LOOPS)
    def start(self, loop: str) -> None:
        self.loop = loop
        files = host_files()
        for path in FILES:
            files.add(path, size=MIB)
        self.backend = FakeBackend(files=files, checks=Checks(access="none"))
        self.systems: dict[str, FakeSystem] = {}
        self.there: dict[tuple[str, str], tuple[str, bool]] = {}
        self.shares: set[tuple[str, str]] = set()
        for vm in VMS:
            self.boot(vm)

    def boot(self, vm: str) -> None:
        async def create_and_start() -> None:
            system = await self.backend.create(vm, lcow())
            await system.start()
            self.systems[vm] = system

        assert self.outcome(create_and_start) == 0

    def in_use(self, path: str, writable: bool) -> bool:
        return any(file == path and (writable or w) for file, w in self.there.values())

    def check(self, vm: str, request: dict[str, Any], expected: int) -> None:
        got = self.outcome(self.systems[vm].modify, request)
        assert f"0x{got:08X}" == f"0x{expected:08X}"

    @rule(
        vm=st.sampled_from(VMS),
        lun=st.integers(0, 2),
        path=st.sampled_from(FILES),
        read_only=st.booleans(),
    )
    def attach(self, vm: str, lun: int, path: str, read_only: bool) -> None:
        expected: int
        if (vm, slot(lun)) in self.there:
            expected = HResult.ERROR_ALREADY_EXISTS
        elif self.in_use(path, not read_only):
            expected = HResult.ERROR_SHARING_VIOLATION
        else:
            expected = 0
            self.there[vm, slot(lun)] = (path, not read_only)
        self.check(vm, add(slot(lun), disk(path, ReadOnly=read_only)), expected)

    @rule(vm=st.sampled_from(VMS), number=st.integers(0, 1), path=st.sampled_from(FILES))
    def add_device(self, vm: str, number: int, path: str) -> None:
        on_device = [p for v, p in self.there if v == vm and p.startswith(pmem(number))]
        expected: int
        if on_device:
            expected = HResult.ERROR_ALREADY_EXISTS
        elif self.in_use(path, writable=False):
            expected = HResult.ERROR_SHARING_VIOLATION
        else:
            expected = 0
            self.there[vm, pmem(number)] = (path, False)
        self.check(vm, add(pmem(number), image(path)), expected)

    @rule(
        vm=st.sampled_from(VMS),
        number=st.integers(0, 1),
        half_mib=st.integers(0, 4),
        path=st.sampled_from(FILES),
    )
    def add_mapping(self, vm: str, number: int, half_mib: int, path: str) -> None:
        at = {p for v, p in self.there if v == vm}
        near = [pmem(number, (half_mib + d) * MIB // 2) for d in (-1, 1)]
        here = pmem(number, half_mib * MIB // 2)
        expected: int
        if pmem(number) in at or here in at:
            expected = HResult.ERROR_ALREADY_EXISTS
        elif self.in_use(path, writable=False):
            expected = HResult.ERROR_SHARING_VIOLATION
        elif at.intersection(near):
            expected = HResult.E_INVALIDARG
        else:
            expected = 0
            self.there[vm, here] = (path, False)
        self.check(vm, add(here, mapping(path)), expected)

    @rule(data=st.data())
    @precondition(lambda self: self.there)
    def take_away(self, data: st.DataObject) -> None:
        vm, path = data.draw(st.sampled_from(sorted(self.there)))
        del self.there[vm, path]
        self.check(vm, remove(path), 0)

    @rule(vm=st.sampled_from(VMS), path=st.sampled_from([slot(0), slot(1), pmem(0), pmem(1, 0)]))
    def take_away_anything(self, vm: str, path: str) -> None:
        mapped = any(v == vm and p.startswith(path + "/") for v, p in self.there)
        missing = HResult.HCS_E_INVALID_STATE if mapped else HResult.ERROR_NOT_FOUND
        self.check(vm, remove(path), 0 if self.there.pop((vm, path), None) else missing)

    @rule(vm=st.sampled_from(VMS), name=st.sampled_from("01"), adding=st.booleans())
    def share(self, vm: str, name: str, adding: bool) -> None:
        share = {"Name": name, "Path": SHARED, "Port": 564}
        expected: int
        if adding:
            expected = HResult.ERROR_ALREADY_EXISTS if (vm, name) in self.shares else 0
            self.shares.add((vm, name))
        else:
            expected = 0 if (vm, name) in self.shares else HResult.ERROR_NOT_FOUND
            self.shares.discard((vm, name))
        self.check(vm, (add if adding else remove)(Plan9Shares.PATH, share), expected)

    @rule(vm=st.sampled_from(VMS))
    def crash_and_boot_anew(self, vm: str) -> None:
        self.backend.vms[vm].crash()
        assert self.outcome(self.systems[vm].modify, remove(slot(0))) == HResult.HCS_E_SYSTEM_ALREADY_STOPPED
        assert self.outcome(self.systems[vm].close) == 0
        self.there = {(v, p): file for (v, p), file in self.there.items() if v != vm}
        self.shares = {(v, name) for v, name in self.shares if v != vm}
        self.boot(vm)

    @invariant()
    def the_trees_hold_what_the_model_holds(self) -> None:
        for vm, system in self.systems.items():
            tree = system.vm.tree
            found = {slot(lun) for _, lun in tree.scsi.disks}
            found |= {pmem(number) for number in tree.vpmem.devices}
            found |= {pmem(number, offset) for number, offset in tree.vpmem.mappings}
            assert found == {p for v, p in self.there if v == vm}
            assert set(tree.plan9.shares) == {name for v, name in self.shares if v == vm}

    @invariant()
    def files_are_open_while_something_uses_them(self) -> None:
        used = {file for file, _ in self.there.values()}
        assert {path for path in FILES if self.backend.files.is_open(path)} == used


class Life(Machine):
    """One compute system with any number of handles, against the table of its states."""

    MOVES: ClassVar[dict[str, dict[str, str]]] = {
        "start": {"Created": "Running"},
        "pause": {"Running": "Paused"},
        "resume": {"Paused": "Running"},
        "shutdown": {"Running": "Stopped"},
        "crash": {"Running": "Stopped", "Paused": "Stopped"},
        "terminate": dict.fromkeys(("Created", "Running", "Paused"), "Stopped"),
    }

    @initialize(loop=LOOPS)
    def start(self, loop: str) -> None:
        self.loop = loop
        self.backend = FakeBackend(files=host_files())
        self.state = "Stopped"
        self.handles: list[FakeSystem] = []

    @rule(ends_with_handle=st.booleans())
    def create(self, ends_with_handle: bool) -> None:
        async def create() -> None:
            document = lcow() | {"ShouldTerminateOnLastHandleClosed": ends_with_handle}
            self.handles.append(await self.backend.create("vm1", document))

        if self.exists:
            assert self.outcome(create) == HResult.HCS_E_SYSTEM_ALREADY_EXISTS
            return
        assert self.outcome(create) == 0
        self.ends_with_handle = ends_with_handle
        self.state = "Created"

    @rule(move=st.sampled_from(sorted(MOVES)), data=st.data())
    @precondition(lambda self: self.handles)
    def do(self, move: str, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        code = self.outcome(getattr(handle, move))
        if self.state in self.MOVES[move]:
            assert code == 0
            self.state = self.MOVES[move][self.state]
        else:
            stopped = self.state == "Stopped"
            assert code == (HResult.HCS_E_SYSTEM_ALREADY_STOPPED if stopped else HResult.HCS_E_INVALID_STATE)

    @rule()
    def open(self) -> None:
        async def open_handle() -> None:
            self.handles.append(await self.backend.open("vm1"))

        assert self.outcome(open_handle) == (0 if self.exists else HResult.HCS_E_SYSTEM_NOT_FOUND)

    @rule()
    @precondition(lambda self: self.exists)
    def fail(self) -> None:
        self.backend.vms["vm1"].crash()
        self.state = "Stopped"

    @rule(data=st.data())
    @precondition(lambda self: self.handles)
    def close(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        self.handles.remove(handle)
        assert self.outcome(handle.close) == 0
        if not self.handles and self.ends_with_handle:
            self.state = "Stopped"

    @property
    def exists(self) -> bool:
        return bool(self.handles) or self.state != "Stopped"

    @invariant()
    def the_host_knows_the_system_while_it_runs_or_somebody_has_a_handle(self) -> None:
        known = {vm.id: vm.state for vm in self.backend.vms.values()}
        assert known == ({"vm1": self.state} if self.exists else {})


TestTree = Tree.TestCase
TestLife = Life.TestCase
