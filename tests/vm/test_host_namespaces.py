"""Namespaces that are created on the host: in whole, or not at all; released with their endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.support import Attempt, host_backend, lcow, quiet, running
from uvm.backends.fake import FakeBackend
from uvm.errors import AlreadyReleasedError, HostError, OptionsError, UnknownOutcomeError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

HOST_NETWORK = "44444444-0000-0000-0000-000000000004"
LOOSE = "55555555-0000-0000-0000-00000000000e"
OWN = "66666666-0000-0000-0000-000000000006"
NEW = "77777777-0000-0000-0000-000000000007"


def networked() -> FakeBackend:
    """A host with an HCN network, and an endpoint that is in no namespace."""
    backend = host_backend()
    backend.network.add_network({"ID": HOST_NETWORK})
    backend.network.add_endpoint({"ID": LOOSE, "Name": "loose"})
    return backend


def state(backend: FakeBackend) -> tuple[Any, ...]:
    table = backend.network._table
    return sorted(table._namespaces), sorted(table._endpoints.items()), sorted(table._named.items())


async def create(backend: FakeBackend) -> uvm.HostNamespace:
    namespace = await uvm.create_namespace(backend, id=NEW, endpoints=[LOOSE])
    try:
        await namespace.create_endpoint(HOST_NETWORK, {"ID": OWN, "Name": "own_eth0"})
    except BaseException:
        await namespace.__aexit__(None, None, None)
        raise
    return namespace


async def made_and_released(backend: FakeBackend) -> None:
    async with uvm.create_namespace(backend, id=NEW, endpoints=[LOOSE]) as namespace:
        await namespace.create_endpoint(HOST_NETWORK, {"ID": OWN, "Name": "own_eth0"})


async def test_a_vm_is_put_into_a_namespace_that_was_created_with_its_endpoints() -> None:
    backend = networked()
    before = state(backend)
    async with running(lcow(), backend=backend) as run:
        namespace = await create(backend)
        assert namespace.endpoints == (LOOSE, OWN)
        assert {f"namespace {NEW}", f"endpoint {OWN}"} <= {*backend.leftovers()}
        lease = await run.vm.network.setup(namespace.id)
        assert [each.endpoint_name for each in run.vm.network.adapters] == ["own_eth0", "loose"]
        await lease.release()
        await namespace.release()
        assert state(backend) == before
        assert not {f"namespace {NEW}", f"endpoint {OWN}"} & {*backend.leftovers()}
        with pytest.raises(AlreadyReleasedError):
            await namespace.release()
        with pytest.raises(AlreadyReleasedError):
            await namespace.add_endpoint(LOOSE)


async def test_a_namespace_is_entered_as_itself_and_released_when_it_is_left() -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    assert await namespace.__aenter__() is namespace
    await namespace.__aexit__(None, None, None)
    assert state(backend) == before


async def test_what_is_created_without_ids_has_fresh_ones_and_the_schema_version_2() -> None:
    backend = networked()
    async with uvm.create_namespace(backend, type="Guest") as namespace:
        endpoint_id = await namespace.create_endpoint(HOST_NETWORK)
        document = await backend.network.namespace(namespace.id)
        assert (document["Type"], document["SchemaVersion"]) == ("Guest", {"Major": 2, "Minor": 0})
        endpoint = await backend.network.endpoint(endpoint_id)
        assert (endpoint["HostComputeNetwork"], endpoint["SchemaVersion"]["Major"]) == (HOST_NETWORK, 2)


STEPS = ["create namespace", "add endpoint", "create endpoint", "add endpoint"]


def _nth(step: int) -> int:
    return STEPS[: step + 1].count(STEPS[step])


@pytest.mark.parametrize("step", range(len(STEPS)), ids=lambda step: f"{step} {STEPS[step]}")
@pytest.mark.parametrize("how", ["refuse", "lose"])
async def test_what_fails_leaves_the_host_as_it_was(how: str, step: int) -> None:
    backend = networked()
    before = state(backend)
    getattr(backend.faults, how)(operation=STEPS[step], nth=_nth(step))
    with pytest.raises(HostError if how == "refuse" else UnknownOutcomeError):
        await made_and_released(backend)
    assert state(backend) == before


@pytest.mark.parametrize("step", range(len(STEPS)), ids=lambda step: f"{step} {STEPS[step]}")
async def test_a_caller_who_is_cancelled_leaves_the_host_as_it_was(step: int) -> None:
    backend = networked()
    before = state(backend)
    gate = backend.faults.hold(operation=STEPS[step], nth=_nth(step))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made_and_released, backend)
        await gate.wait()
        tasks.cancel_scope.cancel()
    gate.close()
    assert state(backend) == before


ENDS = ["remove endpoint", "delete endpoint", "remove endpoint", "delete namespace"]


@pytest.mark.parametrize("step", range(len(ENDS)), ids=lambda step: f"{step} {ENDS[step]}")
@pytest.mark.parametrize("how", ["refuse", "lose"])
async def test_a_release_that_fails_does_the_rest_and_goes_on_when_asked_again(how: str, step: int) -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    nth = ENDS[: step + 1].count(ENDS[step])
    rule = getattr(backend.faults, how)(operation=ENDS[step], nth=nth)
    with pytest.raises(HostError if how == "refuse" else UnknownOutcomeError):
        await namespace.release()
    assert namespace.endpoints == ({1: (OWN,), 0: (OWN,), 2: (LOOSE,), 3: ()}[step])
    rule.remove()
    await namespace.release()
    assert namespace.released
    assert state(backend) == before


@pytest.mark.parametrize("step", range(len(ENDS)), ids=lambda step: f"{step} {ENDS[step]}")
async def test_a_release_goes_on_for_a_caller_who_is_cancelled_in_it(step: int) -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    gate = backend.faults.hold(operation=ENDS[step], nth=ENDS[: step + 1].count(ENDS[step]))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(namespace.release)
        await gate.wait()
        tasks.cancel_scope.cancel()
        gate.close()
    assert namespace.released
    assert state(backend) == before


@pytest.mark.parametrize("step", range(len(ENDS)), ids=lambda step: f"{step} {ENDS[step]}")
async def test_a_release_goes_on_for_a_caller_whom_asyncio_cancels_in_it(
    step: int, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    gate = backend.faults.hold(operation=ENDS[step], nth=ENDS[: step + 1].count(ENDS[step]))
    release = asyncio.create_task(namespace.release())
    await gate.wait()
    for _ in range(2):
        release.cancel()
        await quiet()
        assert not release.done()
    gate.close()
    with pytest.raises(asyncio.CancelledError):
        await release
    assert namespace.released
    assert state(backend) == before


async def test_a_release_is_carried_out_for_a_caller_who_is_cancelled() -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await namespace.release()
    assert state(backend) == before


@pytest.mark.parametrize("answer", ["proceed", "refuse"])
async def test_of_two_releases_the_second_waits_for_the_first(answer: str) -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    gate = backend.faults.hold(operation="delete endpoint")
    async with anyio.create_task_group() as tasks:
        first, second = (Attempt.begin(tasks, namespace.release) for _ in range(2))
        [parked] = await gate.wait()
        await quiet()
        assert len(gate.pending) == 1
        getattr(parked, answer)()
        gate.close()
    errors = [each.error for each in (first, second) if each.error is not None]
    assert [type(each) for each in errors] == [HostError] * (answer == "refuse")
    assert state(backend) == before


async def test_an_endpoint_does_not_come_into_a_namespace_that_is_released() -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    gate = backend.faults.hold(operation="delete namespace")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(namespace.release)
        await gate.wait()
        late = Attempt.begin(tasks, lambda: namespace.create_endpoint(HOST_NETWORK))
        await quiet()
        gate.close()
    assert isinstance(late.error, AlreadyReleasedError)
    assert state(backend) == before


async def test_a_host_that_does_not_answer_a_release_is_not_waited_for_for_ever() -> None:
    backend = networked()
    namespace = await create(backend)
    fault = backend.faults.hang(operation="delete namespace")
    with pytest.raises(UnknownOutcomeError, match="within 10 s"):
        await namespace.release()
    fault.remove()
    await namespace.release()


async def test_what_is_gone_already_is_no_error() -> None:
    backend = networked()
    before = state(backend)
    namespace = await create(backend)
    await backend.network.delete_endpoint(OWN)
    await backend.network.delete_namespace(NEW)
    await namespace.release()
    assert state(backend) == before


async def test_an_endpoint_that_a_vm_uses_stays_until_the_vm_lets_go() -> None:
    backend = networked()
    async with running(lcow(), backend=backend) as run:
        namespace = await create(backend)
        lease = await run.vm.network.setup(namespace.id)
        with pytest.raises(HostError, match="HCN_E_ENTITY_HAS_REFERENCES"):
            await namespace.release()
        await lease.release()
        await namespace.release()


WRONG: dict[str, Callable[[FakeBackend], Awaitable[object]]] = {
    "id": lambda backend: uvm.create_namespace(backend, id="x"),
    "type": lambda backend: uvm.create_namespace(backend, type="Other"),
    "endpoint": lambda backend: uvm.create_namespace(backend, endpoints=["x"]),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_arguments_are_refused_before_anything_is_sent(name: str) -> None:
    backend = networked()
    before = len(list(backend.request_log))
    with pytest.raises(OptionsError):
        await WRONG[name](backend)
    assert len(list(backend.request_log)) == before


async def test_a_namespace_that_is_another_s_stays() -> None:
    backend = networked()
    await backend.network.create_namespace({"ID": NEW})
    with pytest.raises(HostError, match="ERROR_ALREADY_EXISTS"):
        await uvm.create_namespace(backend, id=NEW)
    async with uvm.create_namespace(backend, endpoints=[LOOSE]) as namespace:
        for spelled in (LOOSE, f"{{{LOOSE.upper()}}}"):
            with pytest.raises(OptionsError, match="already"):
                await namespace.add_endpoint(spelled)
        with pytest.raises(OptionsError, match="document must be Mapping or None"):
            await namespace.create_endpoint(HOST_NETWORK, [OWN])  # type: ignore[arg-type]
        with pytest.raises(HostError, match="HCN_E_NETWORK_NOT_FOUND"):
            await namespace.create_endpoint(NEW)
        assert namespace.endpoints == (LOOSE,)
    await backend.network.namespace(NEW)


async def test_what_another_has_is_not_deleted_where_an_answer_is_lost() -> None:
    backend = networked()
    await backend.network.create_namespace({"ID": NEW})
    await backend.network.create_endpoint(HOST_NETWORK, {"ID": OWN})
    before = state(backend)
    for operation in ("create namespace", "create endpoint"):
        backend.faults.lose(operation=operation)
    with pytest.raises(HostError, match="ERROR_ALREADY_EXISTS"):
        await uvm.create_namespace(backend, id=NEW)
    for rule in list(backend.faults.rules)[:1]:
        rule.remove()
    async with uvm.create_namespace(backend) as namespace:
        with pytest.raises(HostError, match="ERROR_ALREADY_EXISTS"):
            await namespace.create_endpoint(HOST_NETWORK, {"ID": OWN})
    assert state(backend) == before


async def test_a_refused_deletion_is_raised_and_logged_for_a_caller_who_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeBackend() as backend:
        namespace = await uvm.create_namespace(backend)
        backend.faults.refuse(operation="delete namespace", first=2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(HostError, match="delete namespace: E_FAIL"):
                await namespace.release()
        with anyio.CancelScope() as scope:
            async with namespace:
                scope.cancel()
                await anyio.sleep_forever()
        assert not namespace.released
        said = [
            record.getMessage() for record in caplog.records if "still on the host" in record.getMessage()
        ]
        assert len(said) == 2
        await namespace.release()
        assert namespace.released
