"""Pods on the fake, whose host and guest take 10 ms for each answer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, Final

import anyio

from tests.bench.figures import Figure, Span
from tests.bench.vms import LOOPS, OPTIONS, boot_files
from uvm import FakeBackend, Pod
from uvm.backends.fake import Latency

__all__ = ["pods", "up_and_down"]

_CONTAINERS: Final = 10
_LAYERS: Final = 20
_RUNS: Final = 5
_EACH: Final = Latency(host_ms=10, guest_ms=10, grant_ms=10, lifecycle_ms=10)
_SPEC: Final[dict[str, Any]] = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}


def pods() -> Iterator[Figure]:
    """Bring a pod up, with its containers at once, and end it."""
    for loop in LOOPS:
        one = anyio.run(up_and_down, 1, 1, backend=loop)
        many = anyio.run(up_and_down, _CONTAINERS, _LAYERS, backend=loop)
        path_ms = statistics.median(each.wall for each in one) * 1000
        yield Figure.of_seconds(
            f"a pod of {_CONTAINERS} containers of {_LAYERS} layers each: up and down, 10 ms per answer",
            "ms",
            [each.wall for each in many],
            loop=loop,
            note=f"a pod of one container of one layer, whose calls wait for each other: {path_ms:.0f} ms",
        )


async def up_and_down(containers: int, layers: int, runs: int = _RUNS) -> list[Span]:
    """Bring up and end a pod, so many times; returns what each took."""
    backend = FakeBackend(files=boot_files(), latency=_EACH)
    took: list[Span] = []
    wanted = [_files(backend, number, layers) for number in range(containers)]
    for _ in range(runs):
        with Span.measured(took):
            async with Pod.create(OPTIONS, backend=backend) as pod:
                async with anyio.create_task_group() as tasks:
                    for disks, scratch in wanted:
                        tasks.start_soon(pod.run_container, _SPEC, disks, scratch)
                assert len(pod.containers) == containers
    assert backend.leftovers() == []
    return took


def _files(backend: FakeBackend, number: int, layers: int) -> tuple[list[str], str]:
    """Put the layers of a container and its scratch disk on the host; returns their paths."""
    paths = [rf"C:\layers\{number}-{layer}.vhd" for layer in range(layers)]
    scratch = rf"C:\scratch\{number}.vhdx"
    for path in (*paths, scratch):
        backend.files.add(path, size=1 << 20)
    return paths, scratch
