"""Two callers of one end, which is refused: one leaves the context, maybe cancelled, the other stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from attrs import frozen

from tests.vm.audit import check_at_rest
from tests.vm.support import (
    LAYER,
    PLAN9,
    SCRATCH,
    SHARED,
    Attempt,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm.backends.fake import WindowsGuest
from uvm.errors import UVMError

pytestmark = pytest.mark.anyio

SPEC: dict[str, Any] = {
    "process": {"args": ["cat"], "cwd": "/"},
    "linux": {},
    "mounts": [{"destination": "/data", "type": "bind", "source": SHARED}],
}


@frozen
class End:
    """What has an end that several may ask for.

    :ivar end: the name of the method that ends it.
    :ivar refused: what is refused of its end.
    :ivar orphaned: what stays of it is an orphan once all have left.
    """

    make: Callable[[Running], Awaitable[Any]]
    end: str
    refused: dict[str, Any]
    windows: bool = False
    orphaned: bool = False


async def _container(run: Running) -> Any:
    return await run.vm.create_container("c1", {**SPEC, "mounts": []})


async def _pod_container(run: Running) -> Any:
    return await run.pod.run_container(SPEC, [LAYER], SCRATCH, id="c1")


async def _mount(run: Running) -> Any:
    container = await run.vm.create_container("c1", {"Container": {}})
    await container.start()
    return await run.vm.mount_in_container(container, SHARED, "C:\\data")


ENDS = {
    "container": End(_container, "aclose", {"operation": "delete container state"}),
    "pod's container": End(_pod_container, "aclose", {"request_type": "Remove", "resource": PLAN9}),
    "directory in a container": End(
        _mount, "release", {"request_type": "Remove", "to": "guest"}, windows=True, orphaned=True
    ),
}


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("how", ["cancelled before", "cancelled in its turn", "refused"])
async def test_of_two_callers_of_one_end_the_one_that_stays_learns_what_was_refused_and_has_it(
    kind: str, first: bool, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    it = ENDS[kind]
    async with running(wcow(no_direct_map=True) if it.windows else lcow()) as run:
        made = await it.make(run)
        end, scope = getattr(made, it.end), anyio.CancelScope()

        async def leave() -> None:
            with scope:
                async with made:
                    pass

        async with anyio.create_task_group() as tasks:
            with run.backend.faults.hold(**it.refused) as gate:
                attempts = {
                    call: Attempt.begin(tasks, call) for call in ([leave, end] if first else [end, leave])
                }
                [parked] = await gate.wait()
                await quiet()
                if how == "cancelled before":
                    scope.cancel()
                    await quiet()
                parked.refuse()
                if how == "cancelled in its turn":
                    scope.cancel()
        assert isinstance(attempts[end].error, UVMError)
        assert isinstance(attempts[leave].error, UVMError) is not scope.cancelled_caught
        assert "for a caller who was cancelled" not in caplog.text
        assert run.vm.orphans == ()
        await end()
        _check_gone(run)


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("how", ["cancelled", "refused"])
async def test_what_all_callers_of_an_end_have_left_is_ended_by_the_next(kind: str, how: str) -> None:
    it = ENDS[kind]
    async with running(wcow(no_direct_map=True) if it.windows else lcow()) as run:
        made = await it.make(run)

        async def leave() -> None:
            async with made:
                pass

        async with anyio.create_task_group() as tasks:
            with run.backend.faults.hold(**it.refused) as gate:
                attempts = [Attempt.begin(tasks, leave) for _ in range(2)]
                [parked] = await gate.wait()
                await quiet()
                if how == "cancelled":
                    attempts[0].scope.cancel()
                parked.refuse()
        assert isinstance(attempts[1].error, UVMError)
        assert bool(run.vm.orphans) is it.orphaned
        await getattr(made, it.end)()
        assert run.vm.orphans == ()
        _check_gone(run)


def _check_gone(run: Running) -> None:
    assert [*run.pod.containers] == []
    if isinstance(run.guest, WindowsGuest):
        assert not any(run.guest.directories.values())
    else:
        assert not run.backend.vms[run.vm.id].service.containers
    check_at_rest(run)
