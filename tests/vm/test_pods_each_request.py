"""Pods brought up and ended: one run for each request, which fails, is lost, or is where the caller leaves.

The bring-up and the end of single containers are in :mod:`tests.api` and :mod:`tests.vm.test_windows_pods`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import product
from typing import Any, Final

import anyio
import pytest
from attrs import evolve

import uvm
from tests.clocks import jumping_backends
from tests.points import Point, points, spoil
from tests.vm import support as host
from tests.vm.audit import check_at_rest
from tests.vm.support import OPTIONS, REDIALS, Running, host_backend
from uvm._guest.timeouts import GuestTimeouts
from uvm._ttrpc.protobuf import Message
from uvm._ttrpc.server import Method, Services
from uvm.backends.fake import FakeBackend
from uvm.errors import RPCCode, RPCError, UVMError
from uvm.testing.ncproxy import FakeNetworkProxy

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

PROXY: Final = r"\\.\pipe\ncproxy"
SPECS: Final[dict[str, dict[str, Any]]] = {
    "linux": {
        "process": {"args": ["sleep", "3600"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "network"}]},
        "mounts": [{"destination": "/data", "type": "bind", "source": host.SHARED}],
    },
    "windows": {
        "process": {"args": ["sleep", "3600"]},
        "mounts": [{"destination": "C:\\data", "source": host.SHARED}],
    },
}
LAYERS: Final[dict[str, list[Any]]] = {
    "linux": [host.LAYER],
    "windows": [uvm.WCOWLayer(host.OTHER_SHARED, "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11")],
}
#: What is mapped directly would stay shared.
KEEPS_NOTHING: Final[dict[str, dict[str, Any]]] = {"linux": {}, "windows": {"no_direct_map": True}}
#: What a proxy is asked in the life of a pod.
ASKED: Final = ["RegisterComputeAgent", "Setup", "Teardown", "UnregisterComputeAgent"]


@pytest.fixture
def hows(anyio_backend_name: str) -> tuple[str, ...]:
    """What may become of a request; the loops differ in how callers are cancelled."""
    return ("refuse", "lose", "cancelled") if anyio_backend_name == "asyncio" else ("cancelled",)


class Proxy(FakeNetworkProxy):
    """A proxy that can refuse one call, lose its answer, or hold it until its caller has left.

    :ivar spoilt: the number of that call, and what becomes of it.
    """

    spoilt: tuple[int, str] = (0, "")

    def __init__(self, backend: FakeBackend) -> None:
        super().__init__(backend, PROXY, {"vm1": ["endpoint-eth0"]})
        self.begun, self.left, self._asked = anyio.Event(), anyio.Event(), 0

    def _services(self) -> Services:
        ((name, methods),) = super()._services().items()
        made = {key: Method(each.request, partial(self._answer, each)) for key, each in methods.items()}
        return {name: made}

    async def _answer(self, method: Method[Any], request: Any) -> Message:
        self._asked += 1
        how = self.spoilt[1] if self.spoilt[0] == self._asked else ""
        if how == "refuse":
            raise RPCError("the proxy", RPCCode.UNKNOWN, "not now")
        if how == "cancelled":
            self.begun.set()
            await self.left.wait()
        answer = await method.carry_out(request)
        if how == "lose":
            await anyio.sleep_forever()
        return answer


@asynccontextmanager
async def host_of(left: int = 0) -> AsyncIterator[FakeBackend]:
    """A host, on which nothing of a pod may be left, but what is reported: so much."""
    backend = host_backend()
    yield backend
    assert (len(backend.leftovers()), backend.network.attachments()) == (left, {}), backend.leftovers()


@asynccontextmanager
async def proxy_on(backend: FakeBackend) -> AsyncIterator[Proxy]:
    """A proxy, which knows nothing of a pod in the end."""
    async with Proxy(backend) as proxy:
        yield proxy
        assert (dict(proxy.agents), backend.pipes.listened_at) == ({}, (PROXY,))


def pod_on(backend: FakeBackend, os: str, *, proxied: bool = False) -> Any:
    """A pod in a network namespace."""
    options = OPTIONS[os](network_config_proxy=PROXY if proxied else "", **KEEPS_NOTHING[os])
    timeouts = REDIALS if os == "linux" else GuestTimeouts()
    return uvm.Pod.create(options, backend=backend, network=host.NAMESPACE, timeouts=timeouts)


async def sandbox_of(pod: uvm.Pod) -> uvm.PodContainer:
    os = pod.vm.os
    return await pod.run_sandbox(SPECS[os], LAYERS[os], host.SCRATCH, id="pause")


async def workload_of(pod: uvm.Pod, id: str = "c1") -> uvm.PodContainer:
    return await pod.run_container(SPECS[pod.vm.os], LAYERS[pod.vm.os], host.OTHER_DISK, id=id)


async def fill(pod: uvm.Pod) -> None:
    """Run a sandbox, and a workload of it."""
    await sandbox_of(pod)
    await workload_of(pod)


def left_in(vm: uvm.UtilityVM) -> Any:
    """Return what a VM has, but access that was not revoked, which is reported."""
    return evolve(vm.devices(), unrevoked_access=())


# Ends.


async def check_end(
    end: Callable[[], Awaitable[None]], run: Running, bare: Any, point: Point, how: str
) -> None:
    """Spoil one request of an end: asked for again it ends all, and nothing stays but what is reported."""
    done = await spoil(run.backend, how, point, end)
    await run.vm.settled()
    check_at_rest(run)
    if how == "refuse":
        assert not done or left_in(run.vm) == bare, point
        await end()
    elif how == "lose":
        # Each that waits for an outcome has it reported once.
        for _ in range(2):
            with suppress(UVMError):
                await end()
        await end()
    if run.vm.os == "linux":
        assert dict(run.backend.vms[run.vm.id].service.containers) == {}, (point, how)
    unrevoked = point.to == "revoke" and how != "cancelled"
    assert (run.vm.orphans, bool(run.vm.devices().unrevoked_access)) == ((), unrevoked), point
    if run.vm.quarantined:
        assert how == "lose", point
    else:
        assert left_in(run.vm) == bare, point
    check_at_rest(run)


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_the_end_of_a_pod_is_whole_once_it_is_asked_for_again(os: str, hows: tuple[str, ...]) -> None:
    async with host_of() as backend, pod_on(backend, os) as pod:
        await fill(pod)
        begun = backend.request_log._seq
        await pod.end()
        found, bare = [*points(backend, begun)], left_in(pod.vm)
        assert (bare.disks, bare.plan9_shares, bare.adapters, bare.roots, bare.namespaces) == ((),) * 5
    for point, how in product(found, hows):
        async with host_of() as backend, pod_on(backend, os) as pod:
            await fill(pod)
            await check_end(pod.end, Running(pod.vm, backend), bare, point, how)
            assert not pod.containers


async def test_the_end_of_a_sandbox_is_whole_once_it_is_asked_for_again(hows: tuple[str, ...]) -> None:
    async with host_of() as backend, pod_on(backend, "linux") as pod:
        bare, sandbox = left_in(pod.vm), await sandbox_of(pod)
        begun = backend.request_log._seq
        await sandbox.aclose()
        found = [*points(backend, begun)]
    for point, how in product(found, hows):
        async with host_of() as backend, pod_on(backend, "linux") as pod:
            bare, sandbox = left_in(pod.vm), await sandbox_of(pod)
            await check_end(sandbox.aclose, Running(pod.vm, backend), bare, point, how)
            assert sandbox.closed
            assert not pod.containers


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_the_end_of_a_container_disturbs_no_other_wherever_it_fails(
    os: str, hows: tuple[str, ...]
) -> None:
    async with host_of() as backend, pod_on(backend, os) as pod:
        sandbox = await sandbox_of(pod)
        without, one = left_in(pod.vm), await workload_of(pod)
        begun = backend.request_log._seq
        await one.aclose()
        found = [point for point in points(backend, begun) if point.to != "revoke"]
        # What is lost stays withheld.
        for number, (point, how) in enumerate(product(found, {*hows} - {"lose"})):
            # A Windows guest keeps the ids of containers that have ended.
            one = await workload_of(pod, "c1" if os == "linux" else f"w{number}")
            await spoil(backend, how, point, one.aclose)
            await pod.vm.settled()
            assert (await sandbox.run(["echo", "on"])).stdout == b"on\n", point
            assert sandbox.resources.state is uvm.LeaseState.HELD, point
            await one.aclose()
            assert left_in(pod.vm) == without, point
            assert [*pod.containers] == ["pause"], point


# Lives.


async def live(backend: FakeBackend, os: str, *, proxied: bool = False) -> None:
    """Bring a pod up, and end it."""
    async with pod_on(backend, os, proxied=proxied):
        pass


@pytest.mark.parametrize(("os", "proxied"), [("windows", False), ("linux", True), ("windows", True)])
async def test_nothing_is_left_of_a_pod_that_fails_as_it_comes_up_or_ends(
    os: str, proxied: bool, hows: tuple[str, ...]
) -> None:
    async with host_of() as backend, proxy_on(backend) as proxy:
        await live(backend, os, proxied=proxied)
        found = [*points(backend, 0)]
        assert [call for call, _ in proxy.calls] == ASKED * proxied
    for point, how in product(found, hows):
        refused = point.to == "revoke" and how == "refuse"
        async with host_of(left=int(refused)) as backend, proxy_on(backend):
            done = await spoil(backend, how, point, partial(live, backend, os, proxied=proxied))
            assert not (done and refused)


async def test_a_proxy_forgets_a_pod_whatever_becomes_of_one_of_its_answers(hows: tuple[str, ...]) -> None:
    for number, how in product(range(1, len(ASKED) + 1), hows):
        async with host_of() as backend, proxy_on(backend) as proxy:
            proxy.spoilt = number, how
            if how != "cancelled":
                with pytest.raises(UVMError, match="not now" if how == "refuse" else "unknown"):
                    await live(backend, "linux", proxied=True)
                continue
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(live, backend, "linux", proxied=True))
                await proxy.begun.wait()
                tasks.cancel_scope.cancel()
                proxy.left.set()
