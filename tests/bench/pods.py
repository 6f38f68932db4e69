"""Pods on the fake, whose host and guest take 10 ms for each answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import anyio
from attrs import frozen

from tests.bench.figures import Figure, Span
from tests.bench.vms import LOOPS, OPTIONS, boot_files
from uvm import FakeBackend, Pod
from uvm.backends.fake import Latency
from uvm.testing.clocks import run_without_waiting

__all__ = ["pods"]

_CONTAINERS: Final = 10
_LAYERS: Final = 20
_RUNS: Final = 5
_EACH: Final = Latency(host_ms=10, guest_ms=10, grant_ms=10, lifecycle_ms=10)
_SPEC: Final[dict[str, Any]] = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}


@frozen
class _Lap:
    """A moment: by the clock, by the time of the processor, and by the loop, whose time may jump."""

    wall: float
    cpu: float
    loop: float

    @classmethod
    def now(cls) -> _Lap:
        return cls(time.perf_counter(), time.process_time(), anyio.current_time())


def pods() -> Iterator[Figure]:
    """Bring a pod up, with its containers at once, and end it."""
    for loop in LOOPS:
        # Where all but the answers takes no time, what is left is the longest of what has to wait in turn.
        (path,) = run_without_waiting(_up_and_down, 1, backend=loop)
        runs = anyio.run(_up_and_down, _RUNS, backend=loop)
        for number, part in enumerate(("brought up", "ended")):
            spans = [Span(b.wall - a.wall, b.cpu - a.cpu) for a, b in (run[number:][:2] for run in runs)]
            path_ms = (path[number + 1].loop - path[number].loop) * 1000
            yield _row(part, spans, path_ms, loop)


def _row(part: str, spans: Sequence[Span], path_ms: float, loop: str) -> Figure:
    cpu_ms = min(each.cpu for each in spans) * 1000
    return Figure.of_seconds(
        f"a pod of {_CONTAINERS} containers of {_LAYERS} layers {part}, 10 ms an answer "
        f"(critical path of its calls {path_ms:.0f} ms)",
        "ms",
        [each.wall for each in spans],
        loop=loop,
        note=f"of which {cpu_ms:.0f} ms at least are processor time",
    )


async def _up_and_down(runs: int) -> list[list[_Lap]]:
    """Bring up and end a pod, so many times; return when each began, was up, and had ended."""
    backend = FakeBackend(files=boot_files(), latency=_EACH)
    wanted = [_files(backend, number) for number in range(_CONTAINERS)]
    laps: list[list[_Lap]] = []
    for _ in range(runs):
        laps.append([])
        await _once(backend, wanted, lambda: laps[-1].append(_Lap.now()))
    assert backend.leftovers() == []
    return laps


async def _once(
    backend: FakeBackend, wanted: Sequence[tuple[list[str], str]], lap: Callable[[], None]
) -> None:
    lap()
    async with Pod.create(OPTIONS, backend=backend) as pod:
        async with anyio.create_task_group() as tasks:
            for disks, scratch in wanted:
                tasks.start_soon(pod.run_container, _SPEC, disks, scratch)
        assert len(pod.containers) == _CONTAINERS
        lap()
    lap()


def _files(backend: FakeBackend, number: int) -> tuple[list[str], str]:
    """Put the layers of a container and its scratch disk on the host; return their paths."""
    paths = [rf"C:\layers\{number}-{layer}.vhd" for layer in range(_LAYERS)]
    scratch = rf"C:\scratch\{number}.vhdx"
    for path in (*paths, scratch):
        backend.files.add(path, size=1 << 20)
    return paths, scratch
