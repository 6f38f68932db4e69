"""How containers end: whatever report of it is lost, and in whatever order their layers are released."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import uvm
from tests.clocks import jumping_backends
from tests.vm.orders import Choose, run_example
from tests.vm.support import (
    DISK,
    LAYER,
    OTHER_DISK,
    OTHER_LAYER,
    SCRATCH,
    SHARED,
    Attempt,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm._guest.container import Container
from uvm._guest.timeouts import GuestTimeouts
from uvm.backends.fake.system import FakeHostedSystem
from uvm.errors import (
    GuestError,
    NotSupportedError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
)

anyio_backend = jumping_backends

anyio_test = pytest.mark.anyio

SPEC = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}
TRUE = {"process": {"args": ["true"], "cwd": "/"}, "linux": {}}
EITHER_WAY = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])


def containers(run: Running) -> list[str]:
    """The containers that the guest knows."""
    return list(run.backend.vms[run.vm.id].service.containers)


def at_rest(run: Running) -> None:
    """Look that nothing is left of containers and their layers."""
    assert containers(run) == []
    assert run.guest.mounts == {}
    assert [each for each in run.backend.leftovers() if "container" in each] == []


async def exited(vm: uvm.UtilityVM, spec: Any = TRUE, **more: Any) -> Container:
    """Create a container whose own process exits at once, and wait for that."""
    container = await vm.create_container("c1", spec, **more)
    await container.start()
    init = await container.open_init()
    assert await init.wait() == 0
    return container


async def connected_again(run: Running) -> None:
    assert (await run.vm.run(["echo", "here"])).exit_code == 0


# The report of the exit is lost.


@anyio_test
@pytest.mark.parametrize("asks", ["terminate", "delete_state", "shutdown"])
async def test_a_container_that_the_guest_says_is_gone_has_ended_a_moment_later(asks: str) -> None:
    async with running() as run:
        run.backend.misbehaviour.silent(operation="notification")
        container = await exited(run.vm)
        with anyio.move_on_after(3600) as scope:
            await container.wait()
        assert scope.cancelled_caught
        before = anyio.current_time()
        await getattr(container, asks)()
        assert (await container.wait()).type == "Unknown"
        assert anyio.current_time() - before == pytest.approx(GuestTimeouts().grace_seconds)
        await container.aclose()
        assert await run.vm.create_container("c1", SPEC) is not container


@anyio_test
async def test_a_report_that_comes_in_the_moment_after_says_how_it_ended() -> None:
    async with running() as run:
        run.backend.misbehaviour.slow(0.5, operation="notification")
        container = await exited(run.vm)
        await container.terminate()
        assert (await container.wait()).type == "UnexpectedExit"


@anyio_test
async def test_a_guest_that_dials_again_is_asked_about_its_containers() -> None:
    async with running() as run:
        run.backend.misbehaviour.drop(operation="notification", first=1)
        container = await exited(run.vm)
        assert (await container.wait()).type == "Unknown"
        assert container.exit is not None
        await container.aclose()
        at_rest(run)


@anyio_test
async def test_a_container_that_runs_when_its_guest_dials_again_runs_on() -> None:
    async with running() as run:
        container = await run.vm.create_container("c1", SPEC)
        init = await container.open_init(stdin=True)
        run.backend.vms[run.vm.id].service.drop()
        await connected_again(run)
        await anyio.sleep(10)
        assert container.exit is None
        await init.stdin.send_eof()
        assert (await container.wait()).type == "UnexpectedExit"
        await container.aclose()


@anyio_test
async def test_what_the_guest_forgot_is_found_out_when_it_dials_again() -> None:
    async with running() as run:
        container = await run.vm.create_container("c1", SPEC)
        await container.open_init(stdin=True)
        service = run.backend.vms[run.vm.id].service
        service.containers.clear()
        service.drop()
        assert (await container.wait()).type == "Unknown"
        await container.aclose()


@anyio_test
async def test_the_id_of_a_container_that_the_guest_never_heard_of_is_free_when_it_dials_again() -> None:
    async with running() as run:
        run.backend.faults.refuse(operation="create", first=1, where=lambda call: call.to == "guest")
        run.backend.misbehaviour.drop(operation="create", first=1)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.create_container("c1", SPEC)
        await connected_again(run)
        await anyio.sleep(2)
        async with run.vm.create_container("c1", SPEC):
            pass


@anyio_test
async def test_a_start_whose_answer_was_lost_is_ended_all_the_same() -> None:
    async with running() as run:
        run.backend.misbehaviour.drop(operation="execute process", first=1)
        async with run.vm.create_container("c1", SPEC) as container:
            with pytest.raises(UnknownOutcomeError):
                await container.open_init(stdin=True)
        # Its input ended with its caller, so that it may have ended by itself.
        assert (await container.wait()).type in ("Unknown", "UnexpectedExit")
        at_rest(run)


@anyio_test
@pytest.mark.parametrize("applied", [True, False])
async def test_a_container_whose_start_was_lost_ends_when_its_process_does(applied: bool) -> None:
    async with running() as run:
        if not applied:
            run.backend.faults.refuse(to="guest", operation="execute process", first=1)
        run.backend.misbehaviour.drop(operation="execute process", first=1)
        container = await run.vm.create_container("c1", TRUE)
        with pytest.raises(UnknownOutcomeError):
            await container.open_init(stdout=False, stderr=False)
        if not applied:
            await container.open_init()
        assert (await container.wait()).type == ("Unknown" if applied else "UnexpectedExit")
        await container.aclose()
        at_rest(run)


@anyio_test
@pytest.mark.parametrize("operation", ["shutdown forced", "delete container state", "notification"])
async def test_closing_a_container_asks_again_where_the_answer_is_lost(operation: str) -> None:
    async with running() as run:
        run.backend.misbehaviour.drop(operation=operation, first=1)
        async with run.vm.create_container("c1", SPEC) as container:
            await container.open_init(stdin=True)
        at_rest(run)
        assert (await container.wait()).type in ("ForcedExit", "Unknown")


@anyio_test
@pytest.mark.parametrize("options", [lcow, wcow])
async def test_closing_a_container_whose_exit_is_never_reported_takes_a_moment(options: Any) -> None:
    async with running(options()) as run:
        run.backend.misbehaviour.silent(operation="notification")
        before = anyio.current_time()
        document = SPEC if run.vm.os == "linux" else {"Container": {}}
        async with run.vm.create_container("c1", document) as container:
            await container.start()
            if run.vm.os == "linux":
                await container.open_init(stdin=True)
        assert container.exit is not None
        assert anyio.current_time() - before < 5


# The report comes twice, early or late.


@anyio_test
async def test_an_exit_that_is_reported_again_harms_nothing() -> None:
    async with running() as run:
        run.backend.misbehaviour.twice(operation="notification")
        async with run.vm.create_container("c1", TRUE) as container:
            init = await container.open_init()
            assert await init.wait() == 0
            assert (await container.wait()).type == "UnexpectedExit"
        await quiet()
        await connected_again(run)
        assert not run.vm.guest.closed


@anyio_test
async def test_a_late_report_ends_no_later_container_of_that_id() -> None:
    async with running() as run:
        run.backend.misbehaviour.slow(60, operation="notification", first=1)
        first = await exited(run.vm)
        await first.aclose()
        assert (await first.wait()).type == "Unknown"
        second = await run.vm.create_container("c1", SPEC)
        init = await second.open_init(stdin=True)
        await anyio.sleep(100)
        assert second.exit is None
        assert not run.vm.guest.closed
        await init.kill()
        assert (await second.wait()).type == "ForcedExit"
        await second.aclose()
        at_rest(run)


@anyio_test
async def test_a_container_may_have_ended_before_its_creation_is_answered() -> None:
    async with running() as run:
        run.backend.misbehaviour.slow(5, operation="create")
        async with anyio.create_task_group() as tasks:
            creating = Attempt.begin(tasks, lambda: run.vm.create_container("c1", SPEC))
            await quiet()
            run.backend.vms[run.vm.id].service.notify("c1", "UnexpectedExit")
        assert (await creating.result.wait()).type == "UnexpectedExit"
        await creating.result.aclose()


@anyio_test
@pytest.mark.parametrize("asks", ["terminate", "delete_state"])
async def test_a_container_of_which_hcs_reports_no_exit_ends_when_it_says_so(
    asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(system: FakeHostedSystem) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(FakeHostedSystem, "wait", never)
    async with running(lcow(external_guest_connection=False)) as run:
        container = await run.vm.create_container("c1", TRUE)
        await container.start()
        init = await container.open_init()
        assert await init.wait() == 0
        await getattr(container, asks)()
        assert (await container.wait()).type == "Unknown"
        await container.aclose()
        at_rest(run)
        await (await run.vm.create_container("c1", SPEC)).aclose()


#: The answers, and the report, with which the connection may break.
LOSSES = (
    "start",
    "execute process",
    "wait for process",
    "shutdown forced",
    "delete container state",
    "notification",
    "get properties",
)


async def _live(run: Running, choose: Choose) -> None:
    root = await run.vm.mount_layers("c1", [LAYER], DISK) if choose([True, False], "on layers") else None
    container = await run.vm.create_container("c1", choose([TRUE, SPEC], "program"), root=root)
    async with anyio.create_task_group() as tasks:
        waiting = Attempt.begin(tasks, lambda: _ended(container))
        steps: list[Callable[[], Awaitable[Any]]] = [container.start, container.open_init]
        if choose([True, False], "signalled"):
            steps.append(partial(container.signal, "TERM"))
        if choose([True, False], "terminated"):
            steps.append(container.terminate)
        for step in steps:
            try:
                await step()
            except UVMError as error:
                event(f"{type(error).__name__} from {getattr(step, '__name__', 'signal')}")
        await container.aclose()
        if root is not None:
            try:
                await root.release()
            except UVMError as error:
                # Disks have other rules: they are withheld.
                assert run.vm.quarantined
                event(f"{type(error).__name__} from the release")
    assert waiting.error is None


async def _ended(container: Container) -> None:
    try:
        event((await container.wait()).type)
    except VMStateError:
        event("deleted before it ran")


async def _example(choose: Choose) -> None:
    async with running() as run:
        for operation in choose(
            [*[(each,) for each in LOSSES], *[(a, b) for a in LOSSES for b in LOSSES]], "lost"
        ):
            run.backend.misbehaviour.drop(operation=operation, first=1)
        await _live(run, choose)
        at_rest(run)
        async with run.vm.create_container("c1", SPEC):
            pass
        at_rest(run)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_whatever_is_lost_a_container_ends_and_its_id_is_free_again(
    backend: str, data: st.DataObject
) -> None:
    run_example(_example, backend, data)


@anyio_test
@EITHER_WAY
async def test_the_state_of_a_container_that_runs_is_not_deleted(external: bool) -> None:
    async with (
        running(lcow(external_guest_connection=external)) as run,
        run.vm.create_container("c1", SPEC) as container,
    ):
        await container.start()
        await container.open_init(stdin=True)
        with pytest.raises(VMStateError, match="nothing was sent"):
            await container.delete_state()
        # The guest would have forgotten it.
        assert (await container.run(["echo", "here"])).exit_code == 0
        await container.terminate()
        await container.wait()
        await container.delete_state()
        at_rest(run)


@anyio_test
async def test_what_became_of_a_start_is_asked_again_where_that_answer_is_lost_too() -> None:
    async with running() as run:
        run.backend.misbehaviour.drop(operation="execute process", first=1)
        run.backend.misbehaviour.drop(operation="get properties", first=2)
        run.backend.misbehaviour.drop(operation="notification", first=1)
        container = await run.vm.create_container("c1", TRUE)
        with pytest.raises(UnknownOutcomeError):
            await container.open_init()
        with anyio.fail_after(60):
            assert (await container.wait()).type in ("Unknown", "UnexpectedExit")
        await container.aclose()
        at_rest(run)


# Its layers.


@anyio_test
@EITHER_WAY
async def test_the_layers_may_outlive_the_container_that_is_on_them(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        async with run.vm.mount_layers("c1", [LAYER], DISK) as root:
            async with run.vm.create_container("c1", SPEC, root=root) as container:
                await container.start()
                await container.open_init(stdin=True)
            assert (await container.wait()).type == "ForcedExit"
            assert containers(run) == ["c1"]
            with pytest.raises(OptionsError, match=r"its state is kept.*/run/gcs/c/c1.*Release that first"):
                await run.vm.create_container("c1", SPEC, root=root)
        at_rest(run)
        async with run.vm.create_container("c1", SPEC):
            pass


@anyio_test
@EITHER_WAY
async def test_a_container_may_outlive_the_lease_of_its_layers(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        async with run.vm.create_container("c1", SPEC) as container:
            async with run.vm.mount_layers("c1", [LAYER], DISK):
                await container.start()
                await container.open_init(stdin=True)
            assert containers(run) == ["c1"]
        at_rest(run)


@anyio_test
async def test_a_root_file_system_beside_the_bundle_keeps_the_state_too() -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK, root="/mnt/c1")
        async with run.vm.create_container("c1", SPEC, root=root):
            pass
        assert containers(run) == ["c1"]
        await root.release()
        at_rest(run)


@anyio_test
async def test_a_container_on_layers_that_are_never_released_goes_with_its_vm() -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        async with run.vm.create_container("c1", SPEC, root=root):
            pass
        assert containers(run) == ["c1"]


@anyio_test
@EITHER_WAY
async def test_the_vm_may_exit_between_the_end_of_a_container_and_that_of_its_layers(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        await (await run.vm.create_container("c1", SPEC, root=root)).aclose()
        run.backend.vms[run.vm.id].crash()
        await run.vm.wait()
        await root.release()
        with pytest.raises(VMExitedError):
            await run.vm.create_container("c1", SPEC)


@anyio_test
@EITHER_WAY
async def test_a_release_that_is_cancelled_deletes_the_state_all_the_same(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        await (await run.vm.create_container("c1", SPEC, root=root)).aclose()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await root.release()
        await quiet()
        at_rest(run)
        await (await run.vm.create_container("c1", SPEC)).aclose()


@anyio_test
async def test_the_state_goes_after_the_last_that_is_mounted_in_its_bundle() -> None:
    async with running() as run:
        async with run.vm.create_container("c1", SPEC):
            disk = await run.vm.scsi.attach(DISK, mount=uvm.Mount(guest_path="/run/gcs/c/c1"))
            share = await run.vm.plan9.add(SHARED, "/run/gcs/c/c1/data")
            layer = await run.vm.vpmem.add(LAYER)
            upper = f"{disk.guest_path}/upper"
            combined = await run.vm.layers.combine(
                "/run/gcs/c/c1/rootfs", [layer.guest_path], scratch_path=upper
            )
            beside = await run.vm.scsi.attach(SCRATCH, mount=uvm.Mount(guest_path="/run/gcs/c/c10"))
        for lease in (combined, share):
            await lease.release()
            assert containers(run) == ["c1"]
        await disk.release()
        await quiet()
        assert containers(run) == []
        await layer.release()
        await beside.release()


@anyio_test
async def test_a_disk_that_two_containers_share_keeps_the_state_of_the_one_that_mounted_it() -> None:
    """The bundle of the first is the disk; to remove it would remove what the second one wrote."""
    async with running() as run:
        first = await run.vm.mount_layers("c1", [LAYER], DISK)
        second = await run.vm.mount_layers("c2", [OTHER_LAYER], DISK)
        await (await run.vm.create_container("c1", SPEC, root=first)).aclose()
        await first.release()
        assert containers(run) == ["c1"]
        async with run.vm.create_container("c2", SPEC, root=second):
            pass
        await second.release()
        await quiet()
        at_rest(run)


@anyio_test
@EITHER_WAY
async def test_a_state_is_not_deleted_by_hand_while_layers_are_mounted(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        container = await run.vm.create_container("c1", SPEC, root=root)
        with pytest.raises(VMStateError, match=r"mounted at /run/gcs/c/c1.*Release that first"):
            await container.delete_state()
        assert containers(run) == ["c1"]
        await root.release()
        await container.delete_state()
        at_rest(run)


@anyio_test
async def test_what_the_deletion_of_a_state_is_refused_with_comes_out_of_the_release_which_tries_again() -> (
    None
):
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        await (await run.vm.create_container("c1", SPEC, root=root)).aclose()
        run.backend.faults.refuse(operation="delete container state", first=2)
        for _ in range(2):
            with pytest.raises(GuestError, match="delete the state of container c1"):
                await root.release()
            assert (run.guest.mounts, root.state, containers(run)) == ({}, uvm.LeaseState.REFUSED, ["c1"])
        await root.release()
        assert (root.released, containers(run)) == (True, [])


ON_DATA = uvm.Mount(guest_path="/mnt/data")
BOUND = {"destination": "/data", "source": "/mnt/data/some", "options": ["rbind"]}
#: What a container uses, and the document that says so.
USED: dict[str, tuple[Callable[[uvm.UtilityVM], Any], Any]] = {
    "layers of another": (lambda vm: vm.mount_layers("pod", [LAYER], DISK), SPEC),
    "a disk": (
        lambda vm: vm.scsi.attach(DISK, mount=uvm.Mount(guest_path="/mnt/data")),
        SPEC | {"mounts": [BOUND]},
    ),
    "a share in its bundle": (lambda vm: vm.share(SHARED, "/run/gcs/c/c1/data"), SPEC),
}


@anyio_test
@EITHER_WAY
@pytest.mark.parametrize(("opening", "spec"), USED.values(), ids=USED)
async def test_what_a_container_uses_is_unmounted_after_its_end_though_both_are_left_at_once(
    external: bool, opening: Callable[[uvm.UtilityVM], Any], spec: Any
) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        there = anyio.Event()

        async def leave() -> None:
            async with opening(run.vm) as used:
                root = used if isinstance(used, uvm.RootFileSystem) else None
                async with run.vm.create_container("c1", spec, root=root) as container:
                    await container.start()
                    async with container.open_init(stdin=True):
                        there.set()
                        await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            await there.wait()
            mounted = set(run.guest.mounts)
            held = run.backend.faults.hold(operation="shutdown forced" if external else "terminate")
            tasks.cancel_scope.cancel()
        other = await run.vm.scsi.attach(OTHER_DISK, mount=uvm.Mount(guest_path="/mnt/other"))
        await other.release()
        assert set(run.guest.mounts) == mounted
        held.close()
        await anyio.sleep(10)
        assert run.vm.orphans == ()
        at_rest(run)


@anyio_test
async def test_the_layers_of_a_windows_container_keep_no_state() -> None:
    async with running(wcow()) as run, run.vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], DISK):
        async with run.vm.create_container("c1", {"Container": {}}) as container:
            await container.start()
        assert (await container.wait()).type == "ForcedExit"
        assert run.vm._link.states.pending("c1") is None


# Its network namespace.


@anyio_test
async def test_a_container_that_names_no_network_namespace_has_one_of_its_own() -> None:
    async with running() as run:
        for name, network in (("c1", None), ("c2", {"networkNamespace": "n"}), ("c3", {})):
            spec = SPEC if network is None else {**SPEC, "windows": {"network": network}}
            async with run.vm.create_container(name, spec):
                document = run.backend.vms[run.vm.id].service.containers[name].document
                named = document["OciSpecification"]["windows"]["network"]["networkNamespace"]
                assert named == ("n" if name == "c2" else name)
        in_a_pod = {**SPEC, "annotations": {"io.kubernetes.cri.container-type": "container"}}
        async with run.vm.create_container("c4", in_a_pod):
            document = run.backend.vms[run.vm.id].service.containers["c4"].document
            assert "windows" not in document["OciSpecification"]


# By its id alone.


async def left_behind(run: Running) -> None:
    """End a container, whose state stays."""
    container = await exited(run.vm)
    await container.wait()
    assert containers(run) == ["c1"]


@anyio_test
@pytest.mark.parametrize("asks", ["vm", "guest"])
async def test_a_state_is_deleted_by_the_id_of_its_container(asks: str) -> None:
    async with running() as run:
        await left_behind(run)
        await (run.vm if asks == "vm" else run.vm.guest).delete_container_state("c1")
        at_rest(run)
        with pytest.raises(GuestError):
            await run.vm.delete_container_state("c1")
        await exited(run.vm)


@anyio_test
async def test_the_state_of_a_container_that_is_there_is_not_deleted_by_its_id() -> None:
    async with running() as run:
        container = await run.vm.create_container("c1", SPEC)
        asked = len(run.backend.request_log)
        with pytest.raises(VMStateError, match="Call the delete_state of the container"):
            await run.vm.delete_container_state("c1")
        assert len(run.backend.request_log) == asked
        await container.aclose()
        at_rest(run)


@anyio_test
@pytest.mark.parametrize("closed", [False, True])
async def test_a_state_is_not_deleted_by_its_id_while_layers_are_mounted(closed: bool) -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        container = await exited(run.vm, root=root)
        await (container.aclose() if closed else container.wait())
        with pytest.raises(VMStateError, match=r"mounted at /run/gcs/c/c1.*Release that first"):
            await run.vm.delete_container_state("c1")
        assert containers(run) == ["c1"]
        await root.release()
        if not closed:
            await run.vm.delete_container_state("c1")
        at_rest(run)


@anyio_test
async def test_an_id_stays_taken_until_its_state_is_deleted_also_for_a_caller_who_left() -> None:
    async with running() as run:
        await left_behind(run)
        with run.backend.faults.hold(operation="delete container state") as gate:
            async with anyio.create_task_group() as tasks:
                deletion = Attempt.begin(tasks, lambda: run.vm.delete_container_state("c1"))
                [parked] = await gate.wait()
                tasks.cancel_scope.cancel()
            assert deletion.error is None
            with pytest.raises(OptionsError, match="nothing was sent"):
                await run.vm.create_container("c1", TRUE)
            with pytest.raises(VMStateError, match="being deleted"):
                await run.vm.delete_container_state("c1")
            parked.proceed()
            await run.vm.settled()
        at_rest(run)
        await exited(run.vm)


@anyio_test
@pytest.mark.parametrize("fails", ["refuse", "lose"])
async def test_a_deletion_by_id_that_fails_can_be_asked_for_again(fails: str) -> None:
    async with running() as run:
        await left_behind(run)
        getattr(run.backend.faults, fails)(operation="delete container state", first=1)
        with pytest.raises(UVMError):
            await run.vm.delete_container_state("c1")
        if fails == "refuse":
            await run.vm.delete_container_state("c1")
        at_rest(run)


@anyio_test
async def test_the_states_of_containers_that_hcs_hosts_are_not_the_guests_to_delete() -> None:
    async with running(lcow(external_guest_connection=False)) as run:
        with pytest.raises(NotSupportedError, match="external_guest_connection"):
            await run.vm.delete_container_state("c1")
    async with running(backend=host_backend(guest_capabilities={})) as run:
        with pytest.raises(NotSupportedError, match="DeleteContainerStateSupported"):
            await run.vm.delete_container_state("c1")


@anyio_test
@pytest.mark.parametrize("layered", [False, True])
async def test_a_deletion_by_id_waits_for_that_of_the_container_itself(layered: bool) -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK) if layered else None
        container = await exited(run.vm, root=root)
        last = container.aclose
        if root is not None:
            await container.aclose()
            last = root.release
        with run.backend.faults.hold(operation="delete container state") as gate:
            async with anyio.create_task_group() as tasks:
                end = Attempt.begin(tasks, last)
                [parked] = await gate.wait()
                deletion = Attempt.begin(tasks, lambda: run.vm.delete_container_state("c1"))
                await quiet()
                assert list(gate.pending) == [parked]
                gate.close()
        assert end.error is None
        # There is none any more.
        assert isinstance(deletion.error, GuestError)
        at_rest(run)
