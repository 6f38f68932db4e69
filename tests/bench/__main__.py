"""Prints the table, row by row measured, in a few minutes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from tests.bench import gcs, hcs, machines, processes, vms
from tests.bench.figures import Figure, render

_PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "scsi": machines.scsi,
    "vpmem": machines.vpmem,
    "disks": vms.disks_at_once,
    "document": machines.document,
    "import": processes.imports,
    "life": vms.lives,
    "memory": processes.idle_vms,
    "codec": gcs.codec,
    "calls": gcs.calls,
    "processes": gcs.many_processes,
    "stdout": processes.output,
    "hcs": hcs.calls,
    "hcs-many": hcs.in_flight,
    "hcs-life": hcs.lives,
    "hcs-growth": processes.hcs_growth,
}


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure uvm.")
    parser.add_argument("only", nargs="*", metavar="PART", help=f"of {', '.join(_PARTS)}; all by default")
    names = parser.parse_args().only or list(_PARTS)
    if unknown := set(names) - set(_PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    figures: list[Figure] = []
    for name in names:
        print(f"measuring {name} ...", end="\r", file=sys.stderr, flush=True)
        figures += _PARTS[name]()
    print(render(figures))


if __name__ == "__main__":
    main()
