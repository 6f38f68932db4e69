"""What the bench measures, by the names that its command line takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from tests.bench import clones, disks, gcs, growth, hcs, machines, mux, networks, pods, processes, vms
from tests.bench.figures import Figure

__all__ = ["MORE", "PARTS"]

PARTS: Final[dict[str, Callable[[], Iterator[Figure]]]] = {
    "scsi": machines.scsi,
    "vpmem": machines.vpmem,
    "stubs": disks.on_stubs,
    "disks": disks.on_fake,
    "adapters": networks.adapters,
    "document": machines.document,
    "import": processes.imports,
    "life": vms.lives,
    "clones": clones.clones,
    "pods": pods.pods,
    "first": processes.first_vms,
    "memory": processes.idle_vms,
    "codec": gcs.codec,
    "calls": gcs.calls,
    "processes": gcs.many_processes,
    "stdout": processes.output,
    "mux": mux.mux,
    "hcs": hcs.calls,
    "hcs-many": hcs.in_flight,
    "hcs-life": hcs.lives,
    "hcs-growth": processes.hcs_growth,
}


#: What takes longer, and is measured only if it is named.
MORE: Final[dict[str, Callable[[], Iterator[Figure]]]] = {
    "growth": growth.growth,
    **{f"growth-{name}": partial(growth.growth, name) for name in growth.ROWS},
}
