"""The guests that scenarios run against."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attrs import frozen

from tests.guestsuite.host import GuestHost, HostedProcess
from uvm._wire.frames import Procedure
from uvm.backend import JSON

#: The mounts of a container that has a terminal and sees its own processes alone.
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
]
NAMESPACES = [{"type": each} for each in ("pid", "mount", "ipc", "uts", "network", "cgroup")]
PATH = "PATH=/bin:/usr/bin"


@frozen
class Guest:
    """A guest, and what makes it differ from others.

    :ivar root: makes the root file system of a container, and returns its path.
    :ivar forgets_running: a state that it refuses to delete, since its container runs, is forgotten.
    """

    host: GuestHost
    root: Callable[[str], Awaitable[str]]
    forgets_running: bool = False

    async def config(self, container: str, *args: str, **parts: Any) -> str:
        """Return the document of a container with a network namespace of its own."""
        import json

        process = {"args": list(args), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": [PATH]}
        process |= parts.pop("process", {})
        linux = {"namespaces": NAMESPACES, "resources": parts.pop("resources", {})}
        spec = {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": await self.root(container)},
            "mounts": MOUNTS,
            "linux": linux,
            "windows": {"network": {"networkNamespace": container}},
            **parts,
        }
        document = {
            "SchemaVersion": {"Major": 2, "Minor": 1},
            "OciBundlePath": f"/run/gcs/c/{container}",
            "OciSpecification": spec,
        }
        return json.dumps(document)

    async def create(self, container: str, *args: str, **parts: Any) -> None:
        """Create a container, and have it started as far as it starts without its first process."""
        config = await self.config(container, *args, **parts)
        await self.host.ask(Procedure.CREATE, container, ContainerConfig=config)
        await self.host.ask(Procedure.START, container)

    async def start(self, container: str, *streams: str) -> HostedProcess:
        """Start the first process of a container."""
        return await self.host.start_process({}, *(streams or ("StdIn", "StdOut")), container=container)

    async def execute(self, container: str, *args: str, **process: Any) -> HostedProcess:
        """Run another process in a container."""
        oci = {"args": list(args), "cwd": "/", "env": [PATH], "user": {"uid": 0, "gid": 0}, **process}
        return await self.host.start_process({"OciProcess": oci}, "StdIn", "StdOut", container=container)

    async def properties(self, container: str, *types: str) -> JSON:
        """Return properties of a container."""
        import json

        query = json.dumps({"PropertyTypes": list(types)})
        answer = await self.host.ask(Procedure.GET_PROPERTIES, container, Query=query)
        found: JSON = json.loads(answer["Properties"])
        return found

    async def end(self, process: HostedProcess) -> tuple[bytes, int]:
        """Return what a process writes, and its exit code."""
        output = await process.read()
        return output, await process.wait()

    async def delete(self, container: str) -> None:
        """Delete the state of a container that has ended."""
        await self.host.ask(Procedure.DELETE_CONTAINER_STATE, container)

    async def terminate(self, first: HostedProcess) -> None:
        """End a container by its first process, and delete its state."""
        await self.host.ask(Procedure.SHUTDOWN_FORCED, first.container)
        assert (await self.end(first))[1] == 128 + 9
        assert (await self.host.notification())["Type"] == "ForcedExit"
        await self.delete(first.container)
