"""The rig of the conformance suite on QEMU: files, sockets and networks of a host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.backends.qemu.images import MIB, fixed_vhd, qcow2, vhdx
from uvm.backend import JSON, VM_GROUP
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.network import RESTRICTED
from uvm.testing.backends import Control, Host, Network

#: Makes an empty image of a size, by the suffix of its name.
IMAGES: dict[str, Callable[[int], bytes]] = {".vhd": fixed_vhd, ".vhdx": vhdx, ".qcow2": qcow2}


class QEMUHost(Host):
    """Control of a host that is a :class:`~uvm.backends.qemu.backend.QEMUBackend`.

    :param directory: the place of its files.
    """

    controls = frozenset({Control.FILES, Control.LINKS, Control.NETWORKS, Control.PIPES, Control.EXIT})

    def __init__(self, backend: QEMUBackend, directory: Path) -> None:
        self.backend = backend
        self.directory = directory
        self._networks = 0

    def path_of(self, name: str) -> str:
        """Return the path that a file of that name would have."""
        return str(self.directory / name)

    def put_file(self, name: str, *, size_bytes: int = MIB, content: bytes = b"") -> str:
        """Put a file on the host; those of disks are what their names say."""
        path = self.directory / name
        if path.suffix in IMAGES and not content:
            path.write_bytes(IMAGES[path.suffix](size_bytes))
        else:
            path.write_bytes(content.ljust(size_bytes, b"\0"))
        return str(path)

    def put_directory(self, name: str) -> str:
        """Make a directory on the host, which QEMU may use whatever its user is."""
        (self.directory / name).mkdir(exist_ok=True)
        (self.directory / name).chmod(0o777)
        return self.path_of(name)

    def put_link(self, name: str, target: str) -> str:
        """Put a link on the host."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return str(path)

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
        left += [f"directory {path}" for path in backend._directory.path.iterdir() if path.name != "lock"]
        left += [f"access of {to} to {path}" for path, to in backend._access.entries() if to != VM_GROUP]
        return left + [f"endpoint {e} attached to {vm}" for e, vm in backend.network.attachments().items()]
