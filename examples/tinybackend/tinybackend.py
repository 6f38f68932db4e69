"""The beginning of a backend: this machine's files, and a host that has no VMs yet.

It has what is below the VMs of every backend, and passes the level ``host`` of the conformance suite::

    uvm conform tiny --level host --rig tinybackend:make_rig

What comes next is ``create``: a :class:`uvm.System`, and the level ``vm``.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

import anyio.to_thread

import uvm
from uvm.backend import JSON, AccessMask
from uvm.hresult import HResult
from uvm.testing.backends import Control, Host, Rig

T = TypeVar("T")

#: The types of the service's properties that this backend knows.
_PROPERTIES: dict[str, Callable[[], JSON]] = {
    "Basic": lambda: {"SupportedSchemaVersions": [{"Major": 2, "Minor": 1}]},
    "ProcessorTopology": lambda: {"LogicalProcessorCount": os.cpu_count() or 1},
}


class TinyFiles:
    """The files of this machine. Whatever may block runs in a thread, where it cannot hold up the loop."""

    async def stat(self, path: str) -> uvm.FileInfo | None:
        def look() -> uvm.FileInfo | None:
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return uvm.FileInfo(size=found.st_size, is_dir=os.path.isdir(path))

        return await _in_thread(path, look)

    async def resolve(self, path: str) -> str:
        def follow() -> str:
            try:
                return os.path.realpath(path, strict=True)
            except FileNotFoundError:
                return path
            except OSError as error:
                if error.errno == errno.ELOOP:
                    _refuse(f"resolve {path}", HResult.ERROR_CANT_RESOLVE_FILENAME, "its links never end")
                raise

        return await _in_thread(path, follow)

    async def read(self, path: str, max_bytes: int) -> bytes:
        def load() -> bytes:
            with open(path, "rb") as file:
                return file.read(max_bytes + 1)

        content = await _in_thread(path, load)
        if len(content) > max_bytes:
            raise uvm.HostPathError(path, f"it is larger than {max_bytes} bytes")
        return content

    async def copy(self, source: str, target: str) -> None:
        await _in_thread(source, lambda: shutil.copyfile(source, target))

    async def make_overlay(self, base: str, target: str) -> None:
        raise uvm.NotSupportedError("tiny has no overlays of disks")

    async def mkdir(self, path: str) -> None:
        await _in_thread(path, lambda: os.makedirs(path, exist_ok=True))

    async def remove(self, path: str) -> None:
        def remove() -> None:
            with suppress(FileNotFoundError):
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)

        await _in_thread(path, remove)

    async def has_file_ids(self, path: str) -> bool:
        return True

    async def set_disk_id(self, path: str, disk_id: str) -> None:
        if await self.stat(path) is None:
            raise uvm.HostPathError(path, "there is no such file")


async def _in_thread(path: str, function: Callable[[], T]) -> T:
    """Run a function of files in a thread; its errors are those of a path."""
    try:
        return await anyio.to_thread.run_sync(function)
    except OSError as error:
        raise uvm.HostPathError(path, error.strerror or str(error)) from error


class TinyBackend:
    """A host without VMs: this machine."""

    name = "tiny"

    def __init__(self) -> None:
        self.files = TinyFiles()

    @property
    def network(self) -> uvm.HostNetwork:
        raise uvm.NotSupportedError("tiny has no networks")

    @property
    def pipes(self) -> uvm.HostPipes:
        raise uvm.NotSupportedError("tiny has no pipes")

    async def __aenter__(self) -> TinyBackend:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Close what was opened: nothing is."""

    async def host(self) -> uvm.HostInfo:
        return uvm.HostInfo(
            processors=os.cpu_count() or 1,
            machine="arm64" if platform.machine() in ("aarch64", "arm64", "ARM64") else "amd64",
            paths="windows" if os.name == "nt" else "posix",
        )

    async def service_properties(self, *types: str) -> JSON:
        if unknown := [each for each in types if each not in _PROPERTIES]:
            _refuse("service properties", HResult.HCS_E_INVALID_JSON, f"{unknown[0]} is not known")
        return {"Properties": [_PROPERTIES[each]() for each in types]}

    async def modify_service(self, request: JSON) -> None:
        _refuse("modify service", HResult.HCS_E_INVALID_JSON, f"{request.get('PropertyType')} is not known")

    async def grant_access(self, path: str, to: str, mask: AccessMask = "read") -> None:
        if await self.files.stat(path) is None:
            _refuse(f"grant {path}", HResult.ERROR_FILE_NOT_FOUND, "")

    async def revoke_access(self, path: str, to: str) -> None:
        """Do nothing: there is none to whom access was granted."""

    async def create(self, system_id: str, document: JSON) -> uvm.System:
        if not isinstance(document.get("VirtualMachine"), dict):
            _refuse(f"create {system_id}", HResult.HCS_E_INVALID_JSON, "it is no document of a VM")
        raise uvm.NotSupportedError("tiny has no VMs yet")

    async def open(self, system_id: str) -> uvm.System:
        _refuse(f"open {system_id}", HResult.HCS_E_SYSTEM_NOT_FOUND, "")

    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        return []

    def new_id(self) -> str:
        return str(uuid.uuid4())


def _refuse(operation: str, code: HResult, text: str) -> NoReturn:
    """Refuse as HCS does: callers go by the code."""
    raise uvm.HostError(operation, code, text)


# Control of the host, for the conformance suite.


class TinyHost(Host):
    """Puts files and links on this machine."""

    controls = frozenset({Control.FILES, Control.LINKS})

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory).resolve()

    def path_of(self, name: str) -> str:
        return str(self.directory / name)

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        (self.directory / name).write_bytes(content.ljust(size_bytes, b"\0"))
        return self.path_of(name)

    def put_directory(self, name: str) -> str:
        (self.directory / name).mkdir(exist_ok=True)
        return self.path_of(name)

    def put_link(self, name: str, target: str) -> str:
        (self.directory / name).symlink_to(target)
        return self.path_of(name)


@asynccontextmanager
async def make_rig() -> AsyncIterator[Rig]:
    """Make a rig for one scenario."""
    with tempfile.TemporaryDirectory() as name:
        # As a Backend: type checkers hold the class to the protocol.
        backend: uvm.Backend = TinyBackend()
        async with backend:
            yield Rig(backend, TinyHost(name))
