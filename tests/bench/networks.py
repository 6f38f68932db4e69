"""Ten adapters in the VM's namespace, on a host and a guest that take their time: at once, and one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import anyio

from tests.bench.figures import Figure, Span
from tests.bench.vms import LOOPS, OPTIONS, boot_files
from uvm import AdapterLease, FakeBackend, NamespaceLease, UtilityVM
from uvm.backends.fake import Latency

__all__ = ["adapters"]

_CALL_MS: Final = 10.0
_ROUNDS: Final = 10
_NAMESPACE: Final = "5eed0000-0000-0000-0000-000000000000"
_ENDPOINTS: Final = tuple(f"5eed0000-0000-0000-0001-{n:012}" for n in range(10))


def adapters() -> Iterator[Figure]:
    """Add ten adapters and remove them, in each order."""
    for loop in LOOPS:
        for order, add in {"at once": _at_once, "one after the other": _one_by_one}.items():
            yield Figure.of_seconds(
                f"10 adapters, calls of {_CALL_MS:g} ms, {order}",
                "ms",
                # The first is for what is made once.
                [each.wall for each in anyio.run(_measured, add, backend=loop)[1:]],
                loop=loop,
            )


def _host() -> FakeBackend:
    backend = FakeBackend(files=boot_files(), latency=Latency(host_ms=_CALL_MS, guest_ms=_CALL_MS))
    backend.network.add_namespace({"ID": _NAMESPACE})
    for n, endpoint in enumerate(_ENDPOINTS):
        document = {"ID": endpoint, "Name": f"eth{n}", "HostComputeNamespace": _NAMESPACE}
        backend.network.add_endpoint(document)
    return backend


async def _measured(add: Callable[[NamespaceLease], Awaitable[Sequence[AdapterLease]]]) -> list[Span]:
    took: list[Span] = []
    async with UtilityVM.create(OPTIONS, backend=_host()) as vm:
        await vm.start()
        for _ in range(1 + _ROUNDS):
            async with vm.network.add_namespace(_NAMESPACE) as namespace:
                with Span.measured(took):
                    leases = await add(namespace)
                assert len(leases) == len(vm.network.adapters) == len(_ENDPOINTS)
    return took


async def _at_once(namespace: NamespaceLease) -> list[AdapterLease]:
    leases: list[AdapterLease] = []

    async def add(endpoint: str) -> None:
        leases.append(await namespace.add_endpoint(endpoint))

    async with anyio.create_task_group() as tasks:
        for endpoint in _ENDPOINTS:
            tasks.start_soon(add, endpoint)
    return leases


async def _one_by_one(namespace: NamespaceLease) -> list[AdapterLease]:
    return [await namespace.add_endpoint(endpoint) for endpoint in _ENDPOINTS]
