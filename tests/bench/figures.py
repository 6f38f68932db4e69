"""Samples, and the table that shows them."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from attrs import field, frozen

from uvm._drawing.blocks import table
from uvm._drawing.drawing import Drawing

__all__ = ["HCSSHIM", "HEADINGS", "NO_LOOP", "Figure", "Span", "render", "time_per_call"]

#: Stands in the table where no event loop takes part.
NO_LOOP: Final = "no loop"

_SECONDS: Final = {"us": 1e-6, "ms": 1e-3}
HCSSHIM: Final = """\
hcsshim: 7c9ff7f4, Go 1.27.3, the least of four rounds in turns with uvm 217de4e on two shared cores,
2026-11-29; it is not measured again here. SCSI is internal/uvm/scsi, whose cost grows with the disks;
the newer
internal/controller/device/scsi does not grow, but holds one lock over host and guest calls."""
HEADINGS: Final = ("what", "on", "median", "middle half", "least", "runs", "budget", "hcsshim")


def _in_order(samples: Iterable[float]) -> list[float]:
    return sorted(samples)


@frozen
class Figure:
    """One row: what was measured, where, and every sample.

    :ivar samples: in ``unit``.
    :ivar budget: what the design allows; empty where it says nothing. The table judges nothing.
    :ivar hcsshim: what the Go library took for the same, at least.
    :ivar note: what the row says besides, printed beside it.
    """

    what: str
    unit: str
    samples: Sequence[float] = field(converter=_in_order, repr=False)
    loop: str = NO_LOOP
    budget: str = ""
    hcsshim: str = ""
    note: str = ""

    @classmethod
    def of_seconds(
        cls,
        what: str,
        unit: str,
        seconds: Iterable[float],
        *,
        loop: str = NO_LOOP,
        budget: str = "",
        hcsshim: str = "",
        note: str = "",
    ) -> Figure:
        """Make a row of times, to be shown in ``us`` or ``ms``."""
        samples = [each / _SECONDS[unit] for each in seconds]
        return cls(what, unit, samples, loop, budget, hcsshim, note)

    def cells(self) -> tuple[str, ...]:
        """The row as text, one cell for each heading."""
        first, middle, third = _quartiles(self.samples)
        return (
            self.what,
            f"{self.loop}, {platform.python_implementation()} {platform.python_version()}",
            f"{_number(middle)} {self.unit}",
            f"{_number(first)} to {_number(third)}",
            _number(self.samples[0]),
            str(len(self.samples)),
            self.budget or "-",
            self.hcsshim or "-",
        )


@frozen
class Span:
    """What something took, in seconds.

    :ivar wall: by the clock.
    :ivar cpu: of all processors, by this process.
    """

    wall: float
    cpu: float

    @classmethod
    @contextmanager
    def measured(cls, spans: list[Span]) -> Iterator[None]:
        """Measure the body of a context, and append what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spans.append(cls(time.perf_counter() - wall, time.process_time() - cpu))


def time_per_call(function: Callable[[], object], *, samples: int = 40, seconds: float = 0.01) -> list[float]:
    """Time a function that takes microseconds; each sample is the mean over a batch of calls.

    :param seconds: how long a batch takes, about.
    """
    calls = 1
    while (took := _batch(function, calls)) < seconds / 2:
        calls = max(calls * 2, int(calls * seconds / max(took, 1e-9)))
    gc.collect()
    return [_batch(function, calls) / calls for _ in range(samples)]


def _batch(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start


def _quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    first, middle, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, middle, third


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def render(figures: Sequence[Figure]) -> str:
    """Draw the table."""
    rows = [(*figure.cells(), figure.note) for figure in figures]
    drawn = str(Drawing((table((*HEADINGS, "note"), rows, right=(2, 3, 4, 5)),)))
    return f"{drawn}\n\n{HCSSHIM}" if any(figure.hcsshim for figure in figures) else drawn
