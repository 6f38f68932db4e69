"""The rig of the conformance suite on QEMU: files, sockets and networks of a host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.backends.directory import DirectoryHost
from tests.backends.qemu.images import fixed_vhd, qcow2, vhdx
from uvm.backend import JSON, VM_GROUP
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.network import RESTRICTED
from uvm.testing.backends import Control, Network

#: Makes an empty image of a size, by the suffix of its name.
IMAGES: dict[str, Callable[[int], bytes]] = {".vhd": fixed_vhd, ".vhdx": vhdx, ".qcow2": qcow2}


class QEMUHost(DirectoryHost):
    """Control of a host that is a :class:`~uvm.backends.qemu.backend.QEMUBackend`.

    :param directory: the place of its files.
    """

    controls = frozenset({Control.FILES, Control.LINKS, Control.NETWORKS, Control.PIPES, Control.EXIT})

    def __init__(self, backend: QEMUBackend, directory: Path) -> None:
        super().__init__(directory)
        self.backend = backend
        self._networks = 0

    def image(self, suffix: str, size_bytes: int) -> bytes | None:
        """Return an image of a disk, as a name with that suffix says; None if it says nothing."""
        return IMAGES[suffix](size_bytes) if suffix in IMAGES else None

    def pipe_path(self, name: str) -> str:
        """Return the path of a socket."""
        return self.path_of(f"{name}.sock")

    def put_network(self, endpoints: int) -> Network:
        """Put a namespace with endpoints on the host."""
        self._networks += 1
        network, number, operation = self.backend.network, self._networks, "put network"
        namespace_id = f"5eed0000-0000-0000-{number:04x}-000000000000"
        network._table.add_namespace({"ID": namespace_id}, operation)
        documents = []
        for index in range(endpoints):
            document: JSON = {
                "ID": f"5eed0000-0000-0000-{number:04x}-{index + 1:012x}",
                "Name": f"network{number}-eth{index}",
                "MacAddress": f"52-54-00-00-{number:02X}-{index:02X}",
            }
            network._table.create_endpoint(
                document, operation, partial(network._complete, RESTRICTED, operation)
            )
            network._table.join(namespace_id, document["ID"])
            documents.append(network._routed(network._table.endpoint(document["ID"])))
        return Network(namespace_id, tuple(documents), RESTRICTED)

    def leftovers(self) -> list[str]:
        """Return what is left of systems: VMs, their directories, access, endpoints that are connected."""
        backend = self.backend
        left = [f"VM {vm.id} ({vm.state})" for vm in backend._vms.values()]
        # Locks of users are there if this process may make none for the whole machine.
        names = {path.name for path in backend._directory.path.iterdir()} - {"lock", "users"}
        left += [f"directory {name}" for name in names]
        left += [f"access of {to} to {path}" for path, to in backend._access.entries() if to != VM_GROUP]
        return left + [f"endpoint {e} attached to {vm}" for e, vm in backend.network.attachments().items()]
