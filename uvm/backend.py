r"""The protocols that a hypervisor's backend implements.

They have the shape of HCS, which is the reference: documents in, documents out, as JSON values under HCS's
own names. A call that the host refuses raises :class:`~uvm.errors.HostError` and has changed nothing; the
outcome of a call that raises :class:`~uvm.errors.UnknownOutcomeError`, or is cancelled, is unknown.

Host paths are read through :class:`HostFiles` alone, so that ``C:\layers\base.vhd`` means the same on a
Linux CI machine with the fake as on a Windows host.
"""

from __future__ import annotations

import ntpath
import posixpath
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any, Final, Literal, Protocol, runtime_checkable

import anyio
from attrs import Factory, field, frozen

from uvm._checks import (
    U32,
    U64,
    Checked,
    choice,
    each,
    flag,
    go,
    instance,
    items_or_value,
    optional,
    whole,
)
from uvm._names import GuestOS, PathFlavour
from uvm._repr import call_of
from uvm.errors import ExitStatus
from uvm.schema.common import V25H1_SERVER
from uvm.schema.requests import ModificationRequest

__all__ = [
    "AccessMask",
    "BROKEN_STREAM",
    "Backend",
    "ByteStream",
    "Concurrency",
    "EagerByteStream",
    "FileInfo",
    "Guest",
    "HCS_CONCURRENCY",
    "HostFiles",
    "HostInfo",
    "HostNetwork",
    "HostPipes",
    "HostProcess",
    "JSON",
    "Listener",
    "System",
    "VM_GROUP",
]

#: A JSON object, as it goes to the host or the guest.
JSON = dict[str, Any]


#: At least one, or nothing would ever be done.
_LIMIT: Final = go(None, optional(whole(U32, 1)))


@frozen
class Concurrency(Checked):
    """How many operations of one kind the host takes at once, from 1; None is any number.

    A fact of the host; by default it has no limits.
    """

    scsi: int | None = field(default=None, metadata=_LIMIT)
    vpmem: int | None = field(default=None, metadata=_LIMIT)
    vsmb: int | None = field(default=None, metadata=_LIMIT)
    plan9: int | None = field(default=None, metadata=_LIMIT)
    vpci: int | None = field(default=None, metadata=_LIMIT)
    pipes: int | None = field(default=None, metadata=_LIMIT)
    network: int | None = field(default=None, metadata=_LIMIT)

    __repr__ = call_of


#: What hcsshim does in production: SCSI and Plan9 at once, the others under the VM's one lock.
HCS_CONCURRENCY = Concurrency(vpmem=1, vsmb=1, vpci=1, network=1)


@frozen
class HostInfo(Checked):
    """Facts of the host that documents and devices depend on.

    :ivar build: the Windows build number, for instance 26100.
    :ivar processors: logical processors, over all processor groups.
    :ivar memory_mb: physical memory.
    :ivar machine: ``"amd64"`` or ``"arm64"``.
    :ivar time_zone: HCS's ``TimeZoneInformation`` document.
    :ivar paths: the flavour of host paths, ``"windows"`` or ``"posix"``.
    :ivar templates: the kinds of guests, ``"windows"`` and ``"linux"``, whose VMs can be saved as templates.
    :ivar guest_images: the kinds of guests that boot from an image of the backend's own if the options name
        no boot files.
    :ivar overlays: each writable disk of a clone is a qcow2 image over that of its template, which has to
        stay as long as the clone; else it is a copy.
    """

    build: int = field(default=V25H1_SERVER, metadata=go(None, whole(U32)))
    processors: int = field(default=8, metadata=go(None, whole(U32, 1)))
    memory_mb: int = field(default=65536, metadata=go(None, whole(U64)))
    machine: Literal["amd64", "arm64"] = field(default="amd64", metadata=go(None, choice("amd64", "arm64")))
    time_zone: Mapping[str, Any] = field(
        default=Factory(dict), hash=False, metadata=go(None, instance(Mapping))
    )
    paths: PathFlavour = field(default="windows", metadata=go(None, choice("windows", "posix")))
    concurrency: Concurrency = field(default=Concurrency(), metadata=go(None, instance(Concurrency)))
    templates: tuple[GuestOS, ...] = field(
        default=("windows",), converter=items_or_value, metadata=go(None, each(choice("windows", "linux")))
    )
    guest_images: tuple[GuestOS, ...] = field(
        default=(), converter=items_or_value, metadata=go(None, each(choice("windows", "linux")))
    )
    overlays: bool = field(default=False, metadata=go(None, flag))

    __repr__ = call_of

    @property
    def path(self) -> ModuleType:
        """The path module of the host's flavour: ``ntpath`` or ``posixpath``."""
        return ntpath if self.paths == "windows" else posixpath


@frozen(repr=False)
class FileInfo(Checked):
    """What :meth:`HostFiles.stat` returns of a path."""

    size: int = field(default=0, metadata=go(None, whole(U64)))
    is_dir: bool = field(default=False, metadata=go(None, flag))


class HostFiles(Protocol):
    """The operations on the host's file system that uvm needs. Paths are the host's."""

    async def stat(self, path: str) -> FileInfo | None:
        """Return what is at a path; None if nothing is."""

    async def resolve(self, path: str) -> str:
        """Return a path with symbolic links, junctions and substituted drives resolved.

        A path without any, or whose target is missing, is returned as it is. hcsshim does it in
        ``internal/layers/lcow.go`` (``filepath.EvalSymlinks``), so that a disk has one path however it is
        reached.

        :raises HostError: its links never end.
        """

    async def read(self, path: str, max_bytes: int) -> bytes:
        """Read a whole file; HostPathError if it is missing or larger than `max_bytes`."""

    async def copy(self, source: str, target: str) -> None:
        """Copy a file over whatever is at the target."""

    async def make_overlay(self, base: str, target: str) -> None:
        """Make an empty disk over another, which is only read from then on; nothing may be at the target.

        :raises NotSupportedError: the host has none (:attr:`HostInfo.overlays`).
        :raises HostError: the host refuses: with ERROR_FILE_EXISTS if something is at the target.
        """

    async def mkdir(self, path: str) -> None:
        """Make a directory with its parents, unless it exists."""

    async def remove(self, path: str) -> None:
        """Remove a file or an empty directory, if it exists."""

    async def has_file_ids(self, path: str) -> bool:
        """Return whether the path's file system answers file-id queries (Azure Files does not)."""

    async def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a virtual disk file (virtdisk's SetVirtualDiskInformation)."""


class HostNetwork(Protocol):
    """Host Compute Network: documents of namespaces and endpoints, under HCN's names."""

    async def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; HostError ERROR_NOT_FOUND if there is none."""

    async def endpoint(self, endpoint: str) -> JSON:
        """Return an endpoint's document, found by id or by name."""

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints that are in a namespace, in its order."""

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Add an endpoint to a namespace."""

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Remove an endpoint from a namespace."""

    async def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, under the ``ID`` of its document or one of HCN's; return what it is."""

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace, if it exists. Its endpoints stay."""

    async def create_endpoint(self, network_id: str, document: JSON) -> JSON:
        """Create an endpoint in a network, in no namespace; as :meth:`create_namespace`."""

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, if it exists."""


class ByteStream(Protocol):
    """A connected byte stream, such as anyio's. ``receive`` never returns empty bytes."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end. If it is cancelled, no byte is lost."""

    async def send(self, item: bytes) -> None:
        """Send all the bytes."""

    async def send_eof(self) -> None:
        """Close our direction."""

    async def aclose(self) -> None:
        """Close both directions, at once: also if the caller is cancelled. Idempotent."""


@runtime_checkable
class EagerByteStream(ByteStream, Protocol):
    """A byte stream that also sends without waiting, which saves a task for most requests to a guest.

    The streams of a backend need not, and the standard streams of processes never do.
    """

    def send_nowait(self, item: bytes) -> int:
        """Send what of the bytes the stream takes at once; return how many these are, 0 for none.

        It is not called while a task sends. If it raises it has sent nothing, and ``send`` is called with the
        same bytes, which is to raise what keeps the stream from sending.
        """


#: The exceptions that mean that a byte stream is broken or closed.
BROKEN_STREAM: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Listener(Protocol):
    """A listener for connections: of one VM's guest, or at a pipe of the host."""

    async def accept(self) -> ByteStream:
        """Wait for the next connection."""

    async def aclose(self) -> None:
        """Stop listening, at once: also if the caller is cancelled. Idempotent.

        :meth:`accept` raises anyio.ClosedResourceError then.
        """


class HostPipes(Protocol):
    r"""Connections between processes of the host: named pipes on Windows, and elsewhere Unix sockets.

    A path is that of a local pipe, such as ``\\.\pipe\name``, or of a socket.
    """

    async def listen(self, path: str) -> Listener:
        """Listen at a path where nothing does. Only the host's administrators, and itself, may connect.

        :raises OptionsError: it is no such path.
        :raises HostError: the host refuses: with E_ACCESSDENIED if any process listens there.
        """

    async def dial(self, path: str) -> ByteStream:
        """Connect to what listens at a path; wait while it is busy.

        :raises OptionsError: it is no such path.
        :raises HostError: the host refuses: with ERROR_FILE_NOT_FOUND if nothing listens there.
        """


class Guest(Protocol):
    """The compute service inside the VM, as the devices see it."""

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The capabilities that the guest reported (``GuestDefinedCapabilities``)."""

    async def modify(self, request: JSON | ModificationRequest) -> None:
        """Have the guest carry out a request.

        :raises GuestError: the guest refuses.
        :raises BridgeClosedError: the connection is closed; AnswerLostError if the request had been sent.
        """

    def close(self) -> None:
        """Close the connection at once; requests that wait for an answer fail."""


class HostProcess(Protocol):
    """A process in a VM that the host itself started, over its own connection to the guest.

    :class:`System` makes it. The handle is closed exactly once, by :meth:`close`; the process runs on.
    """

    @property
    def pid(self) -> int:
        """The process's id in the guest."""

    @property
    def stdin(self) -> ByteStream | None:
        """The standard input; None without ``CreateStdInPipe``, or if the process was opened by pid."""

    @property
    def stdout(self) -> ByteStream | None:
        """The standard output (``CreateStdOutPipe``)."""

    @property
    def stderr(self) -> ByteStream | None:
        """The standard error (``CreateStdErrPipe``)."""

    async def wait(self) -> int:
        """Wait for the process to exit, and return its exit code. Any number of callers may wait, or none.

        :raises HostError: E_HANDLE if this handle is closed meanwhile; or the error of a lost process.
        """

    async def signal(self, options: JSON) -> None:
        """Send a signal (``SignalProcessOptionsLCOW`` or ``...WCOW``).

        :raises HostError: ERROR_NOT_FOUND or HCS_E_PROCESS_ALREADY_STOPPED if it has exited.
        """

    async def terminate(self) -> None:
        """Kill the process, without waiting for signals in flight. Errors as of :meth:`signal`."""

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ProcessModifyRequest``: resize its console, close its input."""

    async def properties(self) -> JSON:
        """Return its ``ProcessStatus``: ``ProcessId``, ``Exited``, ``ExitCode``."""

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
        """Start the system."""

    async def shutdown(self, options: JSON | None = None) -> None:
        """Ask for an orderly shutdown; the system has exited when :meth:`wait` returns."""

    async def terminate(self) -> None:
        """Terminate the system at once; HCS_E_SYSTEM_ALREADY_STOPPED if it has exited."""

    async def crash(self, options: JSON | None = None) -> None:
        """Crash the guest, for a dump."""

    async def pause(self, options: JSON | None = None) -> None:
        """Pause its processors."""

    async def resume(self) -> None:
        """Resume its processors."""

    async def save(self, options: JSON | None = None) -> None:
        """Save its state; the system must be paused."""

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``. Cancelled means that the outcome is unknown."""

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Return properties, by HCS's names (``Memory``, ``Statistics``, ``GuestConnection``, ...).

        :param types: ``PropertyTypes`` of the query, which every version of HCS knows.
        :param queries: ``Queries``, those with arguments of their own, by type; newer versions of HCS.
        """

    async def create_process(self, parameters: JSON) -> HostProcess:
        """Start a process in the guest (``ProcessParameters``), over the host's own connection to it.

        :raises HostError: HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION if the document has no
            ``GuestConnection``; or the guest's own error.
        """

    async def open_process(self, pid: int) -> HostProcess:
        """Open a process that was started so, without its streams.

        :raises HostError: ERROR_NOT_FOUND if there is none.
        """

    async def working_set_bytes(self) -> int:
        """Return the physical memory that a virtually backed VM occupies on the host (its vmmem process)."""

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a service id (a GUID)."""

    async def wait(self) -> ExitStatus:
        """Wait for the exit. Any number of callers may wait.

        One has to wait as long as the system runs: a backend may do its work for the system in that task.
        """

    async def close(self) -> None:
        """Close the handle. The system ends with its last handle if its document says so."""


#: What access to a host path is granted to instead of one VM, by its id: every VM (the VM group).
VM_GROUP: Literal["VM_GROUP"] = "VM_GROUP"

AccessMask = Literal["read", "all"]


class Backend(Protocol):
    """One hypervisor host."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""

    @property
    def files(self) -> HostFiles:
        """The host's file system."""

    @property
    def network(self) -> HostNetwork:
        """The host's networks."""

    @property
    def pipes(self) -> HostPipes:
        """The pipes of the host."""

    async def host(self) -> HostInfo:
        """Return the host's facts."""

    async def service_properties(self, *types: str) -> JSON:
        """Return properties of the compute service: ``Basic``, ``ProcessorTopology``, ``CpuGroup``, ...

        :raises HostError: HCS_E_INVALID_JSON for a type that is not known.
        """

    async def modify_service(self, request: JSON) -> None:
        """Change the compute service itself, such as its CPU groups (HCS's ``ModificationRequest``).

        :raises HostError: HCS_E_INVALID_JSON for a type that is not known.
        """

    async def grant_access(self, path: str, to: str, mask: AccessMask = "read") -> None:
        """Grant a VM (its id), or :data:`VM_GROUP`, access to a path."""

    async def revoke_access(self, path: str, to: str) -> None:
        """Revoke that access; nothing happens if there is none, or nothing at the path any more."""

    async def create(self, system_id: str, document: JSON) -> System:
        """Create a compute system."""

    async def open(self, system_id: str) -> System:
        """Open a compute system that exists."""

    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        """List compute systems (``Id``, ``Owner``, ``State``, ``SystemType``, ``RuntimeId``)."""

    def new_id(self) -> str:
        """Return a fresh GUID."""

    async def __aenter__(self) -> Backend: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...
