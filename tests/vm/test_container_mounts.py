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
