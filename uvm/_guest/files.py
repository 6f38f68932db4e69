"""Files in a guest, or in a container of one: by the programs that are there.

What the guest calls a file is data. It never becomes a path on the host but by the rules of
:mod:`uvm._guest.tar`; what comes is bounded, and passes through in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from threading import Event, Lock
from typing import Final, TypeAlias, TypeVarTuple

import anyio
import anyio.to_thread

from uvm._arguments import kind_of
from uvm._checks import U64, checked, flag, text, whole
from uvm._guest.programs import GuestFile, LinuxPrograms, ProgramHost, Programs, WindowsPrograms
from uvm._guest.tar import END, filling, header
from uvm._guest.unpack import Unpacking, packed
from uvm._home import Bound
from uvm._names import HostPath
from uvm.errors import ArchiveError, OptionsError

Args = TypeVarTuple("Args")
LocalPath: TypeAlias = str | os.PathLike[str]

MAX_READ_BYTES: Final = 16 * 1024 * 1024
MAX_COPY_BYTES: Final = 4 * 1024**3
MAX_COPY_ENTRIES: Final = 100_000


class GuestFiles(Bound):
    """The files of a guest, or of a container: ``vm.files``, ``container.files``.

    Paths in the guest are absolute. Each call runs programs there, as :meth:`uvm.UtilityVM.run` does, whose
    errors it raises; where a program is not there, that is a :class:`~uvm.errors.GuestError`.
    """

    def __init__(self, host: ProgramHost, os: str) -> None:
        self._programs: Programs = WindowsPrograms(host) if os == "windows" else LinuxPrograms(host)

    def __repr__(self) -> str:
        return f"<GuestFiles of {self._programs.host!r}>"

    async def read(self, path: HostPath, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Return what is in a file.

        :param max_bytes: how much of it is taken at most.
        :raises GuestFileError: there is none, or it cannot be read.
        :raises OutputLimitError: it is larger.
        """
        checked(max_bytes, whole(U64), "max_bytes")
        return await self._programs.read(self._programs.path(path), max_bytes)

    async def write(self, path: HostPath, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file, in place of one that is there. Its directory has to be there.

        :param mode: its permission bits, in a Linux guest.
        :raises GuestFileError: it cannot be written.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise OptionsError(f"what is written to a file of a guest is bytes, not {kind_of(data)}")
        checked(mode, whole(0o7777), "mode")
        directory, name = self._programs.split(path)
        content = bytes(data)
        now = datetime.now(UTC).timestamp()
        windows = self._programs.windows
        first = header(name, "file", size=len(content), mode=mode, modified=now, windows=windows)
        await self._programs.unpack(directory, iter((first, content, filling(len(content)), END)))

    async def stat(self, path: HostPath) -> GuestFile | None:
        """Return what is at a path; None if nothing is. A link is not followed.

        :raises GuestFileError: the guest cannot say.
        """
        return await self._programs.stat(self._programs.path(path))

    async def list(self, path: HostPath) -> tuple[GuestFile, ...]:
        """Return what is in a directory, by name.

        :raises GuestFileError: it is none, or cannot be read.
        :raises OutputLimitError: there is too much in it.
        """
        found = await self._programs.list(self._programs.path(path))
        return tuple(sorted(found, key=lambda file: file.name))

    async def remove(self, path: HostPath, *, recursive: bool = False) -> None:
        """Remove a file or a link; or a directory, with all that is in it.

        :param recursive: it may be a directory.
        :raises GuestFileError: nothing is there, or it is a directory, or cannot be removed.
        """
        checked(recursive, flag, "recursive")
        await self._programs.remove(self._programs.path(path), recursive)

    async def make_directory(self, path: HostPath, *, parents: bool = False) -> None:
        """Make a directory.

        :param parents: make those above it as well; that it is there is no error then.
        :raises GuestFileError: it cannot be made.
        """
        checked(parents, flag, "parents")
        await self._programs.make_directory(self._programs.path(path), parents)

    async def copy_in(self, source: LocalPath, target: HostPath) -> None:
        """Copy a file, or all that is in a directory, into the guest.

        Links are copied as they are. A directory is made where there is none, and what it has stays.

        :param source: a path on the machine of this program.
        :param target: the path of the copy in the guest. The directory of a file has to be there.
        :raises HostPathError: nothing is at the source; or a device or the like, or was changed meanwhile.
        :raises GuestFileError: the guest cannot take it.
        """
        local = os.fspath(source)
        checked(local, text, "source")
        directory, name = self._programs.split(target)
        if await anyio.to_thread.run_sync(os.path.isdir, local):
            directory = self._programs.path(target)
            await self._programs.make_directory(directory, True)
        await self._programs.unpack(directory, packed(local, name, windows=self._programs.windows))

    async def copy_out(
        self,
        source: HostPath,
        target: LocalPath,
        *,
        max_bytes: int = MAX_COPY_BYTES,
        max_entries: int = MAX_COPY_ENTRIES,
    ) -> None:
        """Copy a file, or a directory with all that is in it, out of the guest.

        The guest is not trusted. There are only files, directories, and links to within the copy; special
        bits of modes are dropped, as are owners. If anything else comes, nothing is at the target.

        :param source: a path in the guest; a link there is followed.
        :param target: the path of the copy on the machine of this program, where nothing may be yet.
        :param max_bytes: how large all files together may be.
        :param max_entries: how many files, directories and links there may be.
        :raises HostPathError: something is at the target, or no directory above it.
        :raises ArchiveError: what the guest sends is larger, or not to be unpacked.
        :raises GuestFileError: nothing is at the source, or it cannot be read.
        """
        checked(max_bytes, whole(U64), "max_bytes")
        checked(max_entries, whole(U64), "max_entries")
        local = os.fspath(target)
        checked(local, text, "target")
        path = self._programs.path(source)
        directory, only = path, None
        if not await self._programs.is_directory(path):
            directory, only = self._programs.split(path)
        unpacking = Unpacking(local, only=only, max_bytes=max_bytes, max_entries=max_entries)
        threads = _Threads()
        try:
            await threads.make(unpacking.begin)
            async with aclosing(self._programs.pack(directory, only)) as pieces:
                async for data in pieces:
                    await threads.make(unpacking.feed, data)
            await threads.make(unpacking.finish)
        except BaseException as failure:
            await threads.end(unpacking.discard)
            if isinstance(failure, ArchiveError):
                raise ArchiveError(f"copy {path} out of the guest: {failure}; nothing was kept") from None
            raise


class _Threads:
    """Threads that make calls, one after the other; the last is made although its caller is cancelled."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._ended = Event()

    async def make(self, function: Callable[[*Args], object], *args: *Args) -> None:
        """Have a call made; if asyncio cancels its caller it may go on, or begin, until the last one."""

        def call() -> None:
            with self._turn:
                if not self._ended.is_set():
                    function(*args)

        await anyio.to_thread.run_sync(call)

    async def end(self, function: Callable[[], object]) -> None:
        """Have the last call made, after the one that is under way; return once it has been."""

        def call() -> None:
            with self._turn:
                if not self._ended.is_set():
                    try:
                        function()
                    finally:
                        self._ended.set()

        cancelled = None
        with anyio.CancelScope(shield=True):
            while not self._ended.is_set():
                try:
                    await anyio.to_thread.run_sync(call)
                except anyio.get_cancelled_exc_class() as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled
