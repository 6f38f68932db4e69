"""Directories of the host in a running Windows container: by their leases, and by the container."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import FILE, OTHER_SHARED, SHARED, Attempt, Running, lcow, running, wcow
from uvm.backends.fake import WindowsGuest
from uvm.errors import (
    AlreadyReleasedError,
    HostPathError,
    NotSupportedError,
    OptionsError,
    RefusedError,
    UndoFailedError,
    UnknownOutcomeError,
    VMStateError,
)

pytestmark = pytest.mark.anyio

BOTH_WAYS = pytest.mark.parametrize("external", [True, False], ids=["own connection", "through HCS"])
DATA = "C:\\data"


def options(external: bool = True) -> uvm.WCOWOptions:
    return wcow(external_guest_connection=external, no_direct_map=True)


async def started(run: Running, container_id: str = "c1") -> uvm.Container:
    container = await run.vm.create_container(container_id, {"Container": {}})
    await container.start()
    return container


def mapped(run: Running) -> list[str]:
    guest = run.guest
    assert isinstance(guest, WindowsGuest)
    return [each.container_path for paths in guest.directories.values() for each in paths.values()]


def left(run: Running) -> tuple[list[str], list[str]]:
    """What is mapped, and which directories are shared for mounts."""
    return mapped(run), [share.host_path for share in run.vm.vsmb.shares if share.host_path != "C:\\os"]


@BOTH_WAYS
async def test_a_directory_is_shared_and_then_mapped_until_its_release(external: bool) -> None:
    async with running(options(external)) as run:
        container = await started(run)
        async with run.vm.mount_in_container(container, SHARED, DATA, read_only=True) as mount:
            assert (mount.host_path, mount.container_path, mount.container_id) == (SHARED, DATA, "c1")
            assert left(run) == ([DATA], [SHARED])
            assert run.vm.vsmb.shares[-1].read_only
            settings = {"HostPath": mount.share.guest_path, "ContainerPath": DATA, "ReadOnly": True}
            request = [e.document for e in run.sent("guest") if "Settings" in e.document][-1]
            assert request == {
                "ResourcePath": "Container/MappedDirectories",
                "RequestType": "Add",
                "Settings": settings,
            }
            assert not run.guest.inconsistencies()
        assert left(run) == ([], [])
        assert mount.state is uvm.LeaseState.GONE
        with pytest.raises(AlreadyReleasedError):
            await mount.release()
        check_at_rest(run)


@BOTH_WAYS
async def test_it_ends_with_its_container(external: bool) -> None:
    async with running(options(external)) as run:
        container = await started(run)
        mount = await run.vm.mount_in_container(container, SHARED, DATA)
        await container.aclose()
        await run.vm.settled()
        assert left(run) == ([], [])
        await mount.release()
        check_at_rest(run)


async def test_a_vm_that_exits_ends_it() -> None:
    async with running(options()) as run:
        mount = await run.vm.mount_in_container(await started(run), SHARED, DATA)
        await run.vm.terminate()
        assert mount.released
        await mount.release()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("fault", ["refuse", "lose"])
@pytest.mark.parametrize("step", ["share", "map"])
async def test_a_mount_that_fails_leaves_nothing(step: str, fault: str, applied: bool) -> None:
    async with running(options(external=False)) as run:
        container = await started(run)
        point: dict[str, Any] = {"to": "host" if step == "share" else "guest", "operation": "modify"}
        if fault == "refuse":
            run.backend.faults.refuse(**point, first=1)
        else:
            run.backend.faults.lose(**point, first=1, applied=applied)
        with pytest.raises(RefusedError if fault == "refuse" else UnknownOutcomeError):
            await run.vm.mount_in_container(container, SHARED, DATA)
        await run.vm.settled()
        assert mapped(run) == []
        if step == "map":
            assert left(run) == ([], [])
            async with run.vm.mount_in_container(container, SHARED, DATA):
                assert mapped(run) == [DATA]


@pytest.mark.parametrize("to", ["host", "guest"])
async def test_a_mount_whose_caller_leaves_is_undone(to: Any) -> None:
    async with running(options()) as run:
        container = await started(run)
        with run.backend.faults.hold(to=to, operation="modify") as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: run.vm.mount_in_container(container, SHARED, DATA))
                await gate.wait()
                attempt.scope.cancel()
        await run.vm.settled()
        assert left(run) == ([], [])
        check_at_rest(run)


async def test_a_release_that_is_refused_may_be_tried_again() -> None:
    async with running(options()) as run:
        container = await started(run)
        mount = await run.vm.mount_in_container(container, SHARED, DATA)
        run.backend.faults.refuse(to="guest", request_type="Remove", first=1)
        with pytest.raises(RefusedError):
            await mount.release()
        assert mount.state is uvm.LeaseState.REFUSED
        assert left(run) == ([DATA], [SHARED])
        await mount.release()
        assert left(run) == ([], [])


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("to", ["host", "guest"])
async def test_a_release_whose_answer_is_lost_may_be_tried_again(to: Any, applied: bool) -> None:
    async with running(options(external=False)) as run:
        container = await started(run)
        mount = await run.vm.mount_in_container(container, SHARED, DATA)
        run.backend.faults.lose(to=to, request_type="Remove", first=1, applied=applied)
        with pytest.raises(UnknownOutcomeError):
            await mount.release()
        if to == "guest":
            await mount.release()
            assert left(run) == ([], [])
        else:
            # Whether the share is there is unknown: its slot is withheld.
            assert mapped(run) == []
            assert [each.what for each in run.vm.devices().quarantined] == [f"directory {SHARED}"]
        check_at_rest(run)


@pytest.mark.parametrize("to", ["host", "guest"])
async def test_a_release_goes_on_for_a_caller_who_leaves(to: Any) -> None:
    async with running(options()) as run:
        container = await started(run)
        mount = await run.vm.mount_in_container(container, SHARED, DATA)
        with run.backend.faults.hold(to=to, request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, mount.release)
                await gate.wait()
                attempt.scope.cancel()
        await run.vm.settled()
        assert (left(run), run.vm.orphans) == (([], []), ())
        check_at_rest(run)


async def test_one_that_the_caller_of_its_release_has_left_is_an_orphan_until_a_caller_has_it_again() -> None:
    async with running(options()) as run:
        container = await started(run)
        mount = await run.vm.mount_in_container(container, SHARED, DATA)
        with run.backend.faults.hold(to="guest", request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, mount.release)
                (parked,) = await gate.wait()
                attempt.scope.cancel()
            parked.refuse()
        await run.vm.settled()
        assert [orphan.where for orphan in run.vm.orphans] == [f"{DATA} in container c1"]
        run.backend.faults.refuse(to="guest", request_type="Remove", first=1)
        with pytest.raises(RefusedError):
            await mount.release()
        assert (left(run), run.vm.orphans) == (([DATA], [SHARED]), ())
        await mount.release()
        assert left(run) == ([], [])
        check_at_rest(run)


async def fails_and_stays(run: Running, container: uvm.Container) -> str:
    """Have a mount fail, and unmapping it as well."""
    run.backend.faults.lose(to="guest", operation="modify", request_type="Add", first=1, applied=True)
    run.backend.faults.refuse(to="guest", request_type="Remove", first=1)
    with pytest.raises(UndoFailedError, match=r"vm\.orphans"):
        await run.vm.mount_in_container(container, SHARED, DATA)
    return "0x"


async def leaves_and_stays(run: Running, container: uvm.Container) -> str:
    """Have the caller of a mount leave, and unmapping it be refused."""
    run.backend.faults.refuse(to="guest", request_type="Remove", first=1)
    with run.backend.faults.hold(to="guest", operation="modify") as gate:
        async with anyio.create_task_group() as tasks:
            attempt = Attempt.begin(tasks, lambda: run.vm.mount_in_container(container, SHARED, DATA))
            await gate.wait()
            attempt.scope.cancel()
    return "0x"


async def is_left_and_stays(run: Running, container: uvm.Container) -> str:
    """Leave a mount, of which the guest refuses the unmapping."""
    run.backend.faults.refuse(to="guest", request_type="Remove", first=1)
    with pytest.raises(RefusedError):
        async with run.vm.mount_in_container(container, SHARED, DATA):
            pass
    return "0x"


async def is_left_and_may_stay(run: Running, container: uvm.Container) -> str:
    """Leave a mount, of which the answer to the unmapping is lost."""
    run.backend.faults.lose(to="guest", request_type="Remove", first=1, applied=False)
    with pytest.raises(UnknownOutcomeError):
        async with run.vm.mount_in_container(container, SHARED, DATA):
            pass
    return "lost"


ORPHANING = [fails_and_stays, leaves_and_stays, is_left_and_stays, is_left_and_may_stay]


@pytest.mark.parametrize("given", ORPHANING)
async def test_one_that_stays_without_a_caller_is_an_orphan_until_it_is_released(given: Any) -> None:
    async with running(options(external=False)) as run:
        why = await given(run, await started(run))
        await run.vm.settled()
        [orphan] = run.vm.orphans
        assert (orphan.what, orphan.where) == (
            f"directory {SHARED} in a container",
            rf"{DATA} in container c1",
        )
        assert why in str(orphan.error)
        assert [each.what for each in run.vm.devices().orphans] == [orphan.what]
        check_at_rest(run)
        assert left(run) == ([DATA], [SHARED])
        await orphan.release()
        assert (left(run), run.vm.orphans) == (([], []), ())
        await orphan.release()
        check_at_rest(run)


@pytest.mark.parametrize("given", ORPHANING)
async def test_an_orphan_ends_with_its_container(given: Any) -> None:
    async with running(options(external=False)) as run:
        container = await started(run)
        await given(run, container)
        await run.vm.settled()
        [_] = run.vm.orphans
        await container.aclose()
        await run.vm.settled()
        assert (left(run), run.vm.orphans) == (([], []), ())
        check_at_rest(run)


async def test_a_share_that_is_refused_after_the_unmapping_is_the_orphan() -> None:
    async with running(options()) as run:
        container = await started(run)
        run.backend.faults.refuse(to="host", request_type="Remove", first=1)
        with pytest.raises(RefusedError):
            async with run.vm.mount_in_container(container, SHARED, DATA):
                pass
        assert left(run) == ([], [SHARED])
        [orphan] = run.vm.orphans
        assert (orphan.what, orphan.where) == (f"directory {SHARED}", "VSMB share s1")
        check_at_rest(run)
        await orphan.release()
        assert left(run) == ([], [])


async def test_what_cannot_be_mounted_is_refused_before_anything_is_sent() -> None:
    async with running(options()) as run:
        container = await started(run)
        unstarted = await run.vm.create_container("c2", {"Container": {}})
        run.start = run.last
        mount: Any = run.vm.mount_in_container
        for wrong, error in [
            ((container, FILE, DATA), OptionsError),
            ((container, "shared", DATA), OptionsError),
            ((container, SHARED, "data"), OptionsError),
            ((container, SHARED, ""), OptionsError),
            (("c1", SHARED, DATA), OptionsError),
            ((container, "C:\\nowhere", DATA), HostPathError),
            ((unstarted, SHARED, DATA), VMStateError),
        ]:
            with pytest.raises(error):
                await mount(*wrong)
        await container.terminate()
        await container.wait()
        run.start = run.last
        with pytest.raises(VMStateError, match="has exited"):
            await mount(container, SHARED, DATA)
        assert run.sent() == []


async def test_a_path_that_is_mapped_is_refused_and_the_share_released() -> None:
    async with running(options()) as run:
        container = await started(run)
        async with run.vm.mount_in_container(container, SHARED, DATA):
            with pytest.raises(RefusedError, match="ERROR_ALREADY_EXISTS"):
                await run.vm.mount_in_container(container, OTHER_SHARED, "c:/DATA")
            assert left(run) == ([DATA], [SHARED])


async def test_a_linux_container_gets_none() -> None:
    async with running(lcow()) as run:
        spec: dict[str, Any] = {"process": {"args": ["sleep", "9"], "cwd": "/"}, "linux": {}}
        container = await run.vm.create_container("c1", spec)
        with pytest.raises(NotSupportedError):
            await run.vm.mount_in_container(container, SHARED, "/data")
