r"""What a hypervisor must offer to uvm, as protocols.

The protocols are HCS-shaped, because HCS is the reference: documents in, documents out, as JSON
values under HCS's own names. A call that the host refuses raises :class:`~uvm.errors.HostError` and
has changed nothing; a call whose outcome nobody knows raises
:class:`~uvm.errors.UnknownOutcomeError` or is cancelled.

Everything that reads a host path goes through :class:`HostFiles`, so that ``C:\layers\base.vhd``
means the same on a Linux CI machine with the fake as on a Windows host.
"""

from __future__ import annotations

import ntpath
import posixpath
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any, Final, Literal, Protocol

import anyio
from attrs import Factory, frozen

from uvm._names import PathFlavour
from uvm.errors import ExitStatus
from uvm.schema.common import V25H1_SERVER

__all__ = [
    "AccessMask",
    "BROKEN_STREAM",
    "Backend",
    "ByteStream",
    "Concurrency",
    "FileInfo",
    "Guest",
    "HCS_CONCURRENCY",
    "HostFiles",
    "HostInfo",
    "HostNetwork",
    "HostProcess",
    "JSON",
    "Listener",
    "System",
    "VM_GROUP",
]

#: A JSON object, as it goes to the host or the guest.
JSON = dict[str, Any]


@frozen
class Concurrency:
    """How many operations of one kind the host takes at once; None is any number.

    A fact of the host. The defaults are "no limit"; a real host says what it can do.
    """

    scsi: int | None = None
    vpmem: int | None = None
    vsmb: int | None = None
    plan9: int | None = None
    vpci: int | None = None
    pipes: int | None = None
    network: int | None = None


#: What hcsshim does in production: SCSI and Plan9 at once, the others under the VM's one lock.
HCS_CONCURRENCY = Concurrency(vpmem=1, vsmb=1, vpci=1, network=1)


@frozen
class HostInfo:
    """Facts of the host that documents and devices depend on.

    :ivar build: the Windows build number, for instance 26100.
    :ivar processors: logical processors, over all processor groups.
    :ivar memory_mb: physical memory.
    :ivar machine: ``"amd64"`` or ``"arm64"``.
    :ivar time_zone: HCS's ``TimeZoneInformation`` document.
    :ivar paths: the flavour of host paths.
    """

    build: int = V25H1_SERVER
    processors: int = 8
    memory_mb: int = 65536
    machine: Literal["amd64", "arm64"] = "amd64"
    time_zone: Mapping[str, Any] = Factory(dict)
    paths: PathFlavour = "windows"
    concurrency: Concurrency = Concurrency()

    @property
    def path(self) -> ModuleType:
        """The path module of the host's flavour: ``ntpath`` or ``posixpath``."""
        return ntpath if self.paths == "windows" else posixpath


@frozen
class FileInfo:
    """What :meth:`HostFiles.stat` tells of a path."""

    size: int = 0
    is_dir: bool = False


class HostFiles(Protocol):
    """The file system of the host, as far as uvm needs it. Paths are the host's."""

    async def stat(self, path: str) -> FileInfo | None:
        """Look at a path; None where nothing is there."""

    async def resolve(self, path: str) -> str:
        """Return a path with symbolic links, junctions and substituted drives resolved.

        A path without any, or whose target is missing, is returned as it is. hcsshim does it in
        ``internal/layers/lcow.go`` (``filepath.EvalSymlinks``), so that a disk has one path however it is
        reached.

        :raises HostError: its links never end.
        """

    async def read(self, path: str, max_bytes: int) -> bytes:
        """Read a whole file; HostPathError where it is missing or larger than ``max_bytes``."""

    async def copy(self, source: str, target: str) -> None:
        """Copy a file over whatever is at the target."""

    async def mkdir(self, path: str) -> None:
        """Make a directory with its parents; nothing happens where it exists."""

    async def remove(self, path: str) -> None:
        """Remove a file or an empty directory; nothing happens where it does not exist."""

    async def has_file_ids(self, path: str) -> bool:
        """Tell whether the path's file system answers file-id queries (Azure Files does not)."""

    async def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a virtual disk file (virtdisk's SetVirtualDiskInformation)."""


class HostNetwork(Protocol):
    """Host Compute Network: documents of namespaces and endpoints, under HCN's names."""

    async def namespace(self, namespace_id: str) -> JSON:
        """Give a namespace's document; HostError ERROR_NOT_FOUND where there is none."""

    async def endpoint(self, endpoint: str) -> JSON:
        """Give an endpoint's document, found by id or by name."""

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Give the documents of the endpoints that are in a namespace, in its order."""

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Put an endpoint into a namespace."""

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Take an endpoint out of a namespace."""

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace; nothing happens where it does not exist."""


class ByteStream(Protocol):
    """A connected byte stream, such as anyio's. An empty ``receive`` never happens."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end. Where it is cancelled, nothing is lost."""

    async def send(self, item: bytes) -> None:
        """Send all of it."""

    async def send_eof(self) -> None:
        """Close our direction."""

    async def aclose(self) -> None:
        """Close both directions."""


#: What a byte stream raises when it is of no more use.
BROKEN_STREAM: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Listener(Protocol):
    """Where the guest of one VM dials in."""

    async def accept(self) -> ByteStream:
        """Wait for the next connection."""

    async def aclose(self) -> None:
        """Stop listening; :meth:`accept` raises anyio.ClosedResourceError then. Again, it does nothing."""


class Guest(Protocol):
    """The compute service inside the VM, as the devices see it."""

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the guest said of itself (``GuestDefinedCapabilities``)."""

    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a ``ModificationRequest``.

        :raises GuestError: it refuses.
        :raises BridgeClosedError: the connection is gone; where the request had been sent, AnswerLostError.
        """

    def close(self) -> None:
        """End the connection, at once; whoever waits for an answer is told."""


class HostProcess(Protocol):
    """A process in a VM that the host itself started, over its own connection to the guest.

    :class:`System` makes it. The handle is closed exactly once, by :meth:`close`; the process lives on.
    """

    @property
    def pid(self) -> int:
        """The process's id in the guest."""

    @property
    def stdin(self) -> ByteStream | None:
        """Where its input goes; None without ``CreateStdInPipe``, and where the process was opened by pid."""

    @property
    def stdout(self) -> ByteStream | None:
        """Where its output comes from (``CreateStdOutPipe``)."""

    @property
    def stderr(self) -> ByteStream | None:
        """Where its error output comes from (``CreateStdErrPipe``)."""

    async def wait(self) -> int:
        """Wait for its end, and give the exit code. Any number of callers may wait, and nobody has to.

        :raises HostError: E_HANDLE where this handle is closed meanwhile; or what the host lost it with.
        """

    async def signal(self, options: JSON) -> None:
        """Send a signal (``SignalProcessOptionsLCOW`` or ``...WCOW``).

        :raises HostError: ERROR_NOT_FOUND or HCS_E_PROCESS_ALREADY_STOPPED where it has exited.
        """

    async def terminate(self) -> None:
        """Kill it; it does not wait for signals that are under way. Errors as of :meth:`signal`."""

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ProcessModifyRequest``: the size of its console, the end of its input."""

    async def properties(self) -> JSON:
        """Ask for its ``ProcessStatus``: ``ProcessId``, ``Exited``, ``ExitCode``."""

    async def close(self) -> None:
        """Close the handle and the streams."""


class System(Protocol):
    """One compute system of the host. Handles are closed exactly once, by :meth:`close`."""

    @property
    def id(self) -> str:
        """The compute system's id."""

    @property
    def runtime_id(self) -> str:
        """The Hyper-V VM id, a GUID."""

    async def start(self) -> None:
        """Start it."""

    async def shutdown(self, options: JSON | None = None) -> None:
        """Ask for an orderly shutdown; it has exited when :meth:`wait` says so."""

    async def terminate(self) -> None:
        """End it at once; HCS_E_SYSTEM_ALREADY_STOPPED where it has exited."""

    async def crash(self, options: JSON | None = None) -> None:
        """Make the guest crash, for a dump."""

    async def pause(self, options: JSON | None = None) -> None:
        """Stop its processors."""

    async def resume(self) -> None:
        """Let its processors go on."""

    async def save(self, options: JSON | None = None) -> None:
        """Save its state; it must be paused."""

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``. Cancelled means that the outcome is unknown."""

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties, by HCS's names (``Memory``, ``Statistics``, ``GuestConnection``, ...).

        :param types: ``PropertyTypes`` of the query, which every version of HCS knows.
        :param queries: ``Queries``, those with arguments of their own, by type; newer versions of HCS.
        """

    async def create_process(self, parameters: JSON) -> HostProcess:
        """Start a process in the guest (``ProcessParameters``), over the host's own connection to it.

        :raises HostError: HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION where the document has no
            ``GuestConnection``; or what the guest refused with.
        """

    async def open_process(self, pid: int) -> HostProcess:
        """Open a process that was started so; it comes without streams.

        :raises HostError: ERROR_NOT_FOUND where there is none.
        """

    async def working_set_bytes(self) -> int:
        """Physical memory that a virtually backed VM occupies on the host (its vmmem process)."""

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a service id (a GUID)."""

    async def wait(self) -> ExitStatus:
        """Wait for the exit. Any number of callers may wait.

        One has to wait all the time that the system runs: a backend may do its work for it in that task.
        """

    async def close(self) -> None:
        """Close the handle. The system ends with its last handle where its document says so."""


#: To whom access to a host path is given: one VM by its id, or every VM (the VM group).
VM_GROUP: Literal["VM_GROUP"] = "VM_GROUP"

AccessMask = Literal["read", "all"]


class Backend(Protocol):
    """One hypervisor host."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""

    @property
    def files(self) -> HostFiles:
        """Its file system."""

    @property
    def network(self) -> HostNetwork:
        """Its networks."""

    async def host(self) -> HostInfo:
        """Ask for the host's facts."""

    async def service_properties(self, *types: str) -> JSON:
        """Ask the host's compute service about itself (``Basic``, ``ProcessorTopology``, ``CpuGroup``, ...).

        :raises HostError: HCS_E_INVALID_JSON for a type that is not known.
        """

    async def grant_access(self, path: str, to: str, mask: AccessMask = "read") -> None:
        """Give a VM (its id), or :data:`VM_GROUP`, access to a path."""

    async def revoke_access(self, path: str, to: str) -> None:
        """Take that access away; quietly where there is none, or nothing at the path any more."""

    async def create(self, system_id: str, document: JSON) -> System:
        """Create a compute system."""

    async def open(self, system_id: str) -> System:
        """Open one that exists."""

    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        """List compute systems (``Id``, ``Owner``, ``State``, ``SystemType``, ``RuntimeId``)."""

    def new_id(self) -> str:
        """Make a fresh GUID."""

    async def __aenter__(self) -> Backend: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...
