"""What the commands draw beside the devices of a VM: its statistics, and requests."""

from __future__ import annotations

from typing import Final

from uvm._drawing.blocks import Span, Style, Table, table
from uvm._repr import format_size
from uvm._vm.requestsummary import Summary
from uvm._vm.statistics import VMStatistics
from uvm.schema.common import PAGE_BYTES

_COLOURS: Final[dict[str, Style]] = {"host": "cyan", "guest": "magenta", "grant": "yellow"}
#: The columns of a request, so that requests that are drawn one by one stand below each other.
_WIDTHS: Final = (5, 9, 26)


def draw_statistics(statistics: VMStatistics) -> Table:
    """Draw the statistics of a VM as a small table."""
    rows = [
        ("uptime", f"{statistics.uptime_ns / 1e6:,.1f} ms"),
        ("processor time", f"{statistics.processor_runtime_ns / 1e6:,.2f} ms"),
        ("working set", format_size(statistics.working_set_bytes)),
    ]
    if statistics.memory is not None:
        rows += [
            ("assigned", format_size(statistics.memory.assigned_pages * PAGE_BYTES)),
            ("reserved", format_size(statistics.memory.reserved_pages * PAGE_BYTES)),
        ]
    return table((), [(Span(name, "dim"), value) for name, value in rows], indent=4, right=(1,))


def draw_request(summary: Summary, failure: str = "") -> Table:
    """Draw a request, and the error that refused it below."""
    to = Span(summary.to, _COLOURS.get(summary.to, "blue"))
    settings = Span(", ".join(summary.settings), "dim")
    rows = [(to, summary.verb, summary.resource.strip(), settings)]
    if failure:
        rows.append((Span(""), "", "", Span(failure, "red")))
    return table((), rows, indent=2, least=_WIDTHS)
