"""What is listed, what is found, and what is removed by name are the same, whatever was refused or cancelled.

Each example is one kind of device and some calls, one after another, of which any is cancelled in any turn
and any removal refused. After each, lists, look-ups, orphans, host and guest agree; and a removal by name
finds something exactly if something is listed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.buses.test_orphans import KINDS, Kind
from tests.vm.audit import check_at_rest
from tests.vm.orders import Choose, run_example
from tests.vm.support import (
    ENDPOINT,
    FILE,
    GUEST_ADAPTER,
    LARGE_LAYER,
    NAMESPACE,
    NIC,
    NIC_DEVICE,
    SHARED,
    Attempt,
    Running,
    lcow,
    running,
    wcow,
)
from uvm.errors import AlreadyReleasedError, NotAttachedError


async def _no_name(run: Running) -> None:
    """Release an orphan: it has no name."""
    if not run.vm.orphans:
        raise NotAttachedError("no orphan")
    await run.vm.orphans[0].release()


def _orphans(run: Running) -> tuple[uvm.Orphan, ...]:
    return run.vm.orphans


ALL = KINDS | {
    "adapter": Kind(
        "windows",
        lambda run: run.vm.network.add_endpoint(NAMESPACE, ENDPOINT),
        lambda run: run.vm.network.remove_endpoint(NAMESPACE, ENDPOINT),
        lambda run: run.vm.network.adapters,
    ),
    "guest adapter": Kind(
        "linux",
        lambda run: run.vm.network.add_guest_adapter(GUEST_ADAPTER),
        lambda run: run.vm.network.remove_guest_adapter(NIC),
        lambda run: run.vm.network.adapters,
    ),
    "root": Kind(
        "linux",
        lambda run: run.vm.layers.combine("/root", ["/base"], scratch_path="/base/upper"),
        lambda run: run.vm.layers.remove("/root"),
        lambda run: run.vm.layers.roots,
    ),
    "Plan9 share": Kind(
        "linux", lambda run: run.vm.plan9.add(SHARED, "/a"), _no_name, lambda run: run.vm.orphans
    ),
    "file at": Kind("linux", lambda run: run.vm.share(FILE, "/a"), _no_name, lambda run: run.vm.orphans),
    "shown directory": Kind(
        "windows", lambda run: run.vm.share(SHARED, r"C:\there"), _no_name, lambda run: run.vm.orphans
    ),
}


@frozen
class Example:
    """One run of an event loop."""

    run: Running
    kind: Kind
    choose: Choose
    leases: list[Any]

    async def step(self) -> None:
        """Make one call; it may be cancelled, and removals refused."""
        refusals = self.choose([0, 0, 1, 2], "refusals")
        rule = self.run.backend.faults.refuse(request_type="Remove", first=refusals) if refusals else None
        listed = bool(self.kind.listed(self.run))
        what = self.choose(["add", "release", "remove"], "call")
        attempt = await self._make(what)
        if rule is not None:
            rule.remove()
        if what == "add" and attempt.result is not None:
            self.leases.append(attempt.result)
        if what == "remove" and not attempt.scope.cancelled_caught:
            assert isinstance(attempt.error, NotAttachedError) is not listed
        check_at_rest(self.run)

    async def _make(self, what: str) -> Attempt:
        async with anyio.create_task_group() as tasks:
            attempt = Attempt.begin(tasks, self._call(what))
            if turns := self.choose([0, 1, 2, 3, 5, 8, 13], "cancelled in turn"):
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                attempt.scope.cancel()
        await self.run.vm.settled()
        return attempt

    def _call(self, what: str) -> Callable[[], Awaitable[Any]]:
        if what == "release" and self.leases:
            return self.choose(self.leases, "lease").release  # type: ignore[no-any-return]
        return lambda: (self.kind.remove if what == "remove" else self.kind.add)(self.run)

    async def finish(self) -> None:
        """Remove all by name, and release what has none."""
        while self.kind.listed(self.run):
            await self.kind.remove(self.run)
        for lease in self.leases:
            try:
                await lease.release()
            except AlreadyReleasedError:
                assert lease.released
        with pytest.raises(NotAttachedError):
            await self.kind.remove(self.run)
        assert self.run.vm.orphans == ()
        check_at_rest(self.run)


async def _example(choose: Choose) -> None:
    name = choose(sorted(ALL), "kind")
    kind = ALL[name]
    async with running(lcow() if kind.os == "linux" else wcow()) as run:
        if name == "adapter":
            await run.vm.network.add_namespace(NAMESPACE)
        if name == "guest adapter":
            await run.vm.network.add_namespace(NAMESPACE)
            await run.vm.vpci.assign(NIC_DEVICE, vmbus_guid=NIC)
        if name == "root":
            await run.vm.scsi.attach(LARGE_LAYER, mount=uvm.Mount(guest_path="/base"))
        example = Example(run, kind, choose, [])
        for _ in range(choose(range(1, 8), "steps")):
            await example.step()
        await example.finish()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(data=st.data())
def test_lists_look_ups_orphans_and_removals_by_name_agree(backend: str, data: st.DataObject) -> None:
    run_example(_example, backend, data)
