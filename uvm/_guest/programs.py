"""The programs by which files in a guest are read and changed.

A Linux guest has ``cat``, ``find``, ``mkdir``, ``rm``, ``stat`` and ``tar``, those of busybox or others. A
Windows guest has ``cmd`` and ``tar.exe`` (Windows 10 and Server 2019 on). No shell reads a path: it is an
argument of its own; ``cmd``, which would read it, is started in the directory that is meant.
"""

from __future__ import annotations

import re
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

import anyio
import anyio.to_thread
from attrs import frozen

from uvm._checks import U64
from uvm._guest.exchange import CompletedProcess
from uvm._guest.process import Process, discard
from uvm._guest.stdio import StreamBrokenError
from uvm._guest.tar import Reader
from uvm._names import HostPath, guest_path
from uvm._repr import Value, brief, printed
from uvm.errors import ArchiveError, GuestFileError, OptionsError, OutputLimitError

FileType = Literal["file", "directory", "link", "other"]

#: How much of a listing is taken.
_MAX_LISTING_BYTES: Final = 16 * 1024 * 1024
#: How much of what a program says of a failure is kept.
_MAX_SAID_BYTES: Final = 4096

#: What stat prints of a file: type and mode, size, time and path. No path has two slashes, which end it.
_STAT: Final = "%f %s %Y %n//"
_STATED: Final = re.compile(r"([0-9a-f]{1,8}) ([0-9]{1,20}) (-?[0-9]{1,12}) (.*)", re.DOTALL)
_TYPES: Final[dict[int, FileType]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
}
_MISSING: Final = ("No such file or directory", "Not a directory")
#: A line of ``dir /a /-c``: date and time, as the language has them; the kind or the size; the name.
_LISTED: Final = re.compile(r"\S.*?\s{2,}(?:<(\w+)>\s+|(\d{1,20}) )(.+)")


class ProgramHost(Protocol):
    """Where programs are run: what is needed here of :class:`~uvm._guest.run.ProcessHost`."""

    async def run(
        self, args: Sequence[str], *, cwd: str | None = None, max_output_bytes: int = ...
    ) -> CompletedProcess[bytes]: ...

    def open_process(
        self, args: Sequence[str], *, stdin: bool = ..., stdout: bool = ...
    ) -> Awaitable[Process]: ...


@frozen(repr=False)
class GuestFile(Value):
    """A file of a guest, or a directory, or what else is at a path. All of it is what the guest says.

    :ivar name: the last part of its path.
    :ivar type: what it is; links are not followed.
    :ivar mode: its permission bits; 0 in a Windows guest, which does not say.
    :ivar modified: when it was changed; None in a Windows guest.
    """

    name: str
    type: FileType
    size: int = 0
    mode: int = 0
    modified: datetime | None = None


class Programs(ABC):
    """What one kind of guest does for files.

    :ivar host: where its programs run.
    """

    windows: bool

    def __init__(self, host: ProgramHost) -> None:
        self.host = host

    def path(self, path: HostPath) -> str:
        """Return the spelling of a path that is sent; OptionsError if it is no absolute one."""
        return guest_path(path, "windows" if self.windows else "linux")

    @abstractmethod
    def split(self, path: HostPath) -> tuple[str, str]:
        """Return the directory of a path and its name there; OptionsError if it is the root."""

    @abstractmethod
    async def read(self, path: str, max_bytes: int) -> bytes:
        """Return what is in a file."""

    @abstractmethod
    async def stat(self, path: str) -> GuestFile | None:
        """Return what is at a path."""

    @abstractmethod
    async def is_directory(self, path: str) -> bool:
        """Return whether a directory is at a path, by links as well."""

    @abstractmethod
    async def list(self, path: str) -> Iterable[GuestFile]:
        """Return what is in a directory."""

    @abstractmethod
    async def remove(self, path: str, recursive: bool) -> None:
        """Remove what is at a path."""

    @abstractmethod
    async def make_directory(self, path: str, parents: bool) -> None:
        """Make a directory."""

    async def pack(self, directory: str, only: str | None) -> AsyncGenerator[bytes, None]:
        """Yield the archive of a directory, or of one file in it."""
        what = "." if only is None else f"./{only}"
        process = await self.host.open_process(
            # A file that is a link is followed; links in a directory are not.
            ["tar", *(["-h"] if only is not None else []), "-cf", "-", "-C", directory, what],
            stdin=False,
        )
        said = bytearray()
        async with process:
            try:
                async for name, data in process.stream():
                    if name == "stdout":
                        yield data
                    else:
                        said += data[: _MAX_SAID_BYTES - len(said)]
                code = await process.wait()
            except BaseException:
                discard(process)
                raise
        if code:
            raise _failed(f"archive {directory}", code, said)

    async def unpack(self, directory: str, pieces: Any) -> None:
        """Have an archive unpacked in a directory.

        :param pieces: its bytes, by an iterator that blocks.
        """
        process = await self.host.open_process(["tar", "-xf", "-", "-C", directory], stdout=False)
        said = bytearray()
        failures: list[Exception] = []

        async def send() -> None:
            try:
                while (data := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
                    await process.stdin.send(data)
                await process.stdin.send_eof()
            except StreamBrokenError:
                # It ended before its input did, and says why.
                pass
            except Exception as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

        code = 0
        async with process:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(send)
                    try:
                        async for data in process.stderr:
                            said += data[: _MAX_SAID_BYTES - len(said)]
                        code = await process.wait()
                    except Exception as error:
                        failures.append(error)
                    tasks.cancel_scope.cancel()
                if failures:
                    raise failures[0]
            except BaseException:
                discard(process)
                raise
        if code:
            raise _failed(f"unpack in {directory}", code, said)

    async def run(
        self, what: str, args: Sequence[str], *, cwd: str | None = None, max_bytes: int = _MAX_LISTING_BYTES
    ) -> bytes:
        """Run a program to its end, and return its output; GuestFileError if it fails."""
        done = await self.host.run(args, cwd=cwd, max_output_bytes=max_bytes)
        if done.exit_code:
            raise _failed(what, done.exit_code, done.stderr)
        return done.stdout


class LinuxPrograms(Programs):
    """Those of a Linux guest: busybox's, or others."""

    windows = False

    def split(self, path: HostPath) -> tuple[str, str]:
        directory, _, name = self.path(path).rpartition("/")
        return directory or "/", _named(name, path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        return await self.run(f"read {path}", ["cat", path], max_bytes=max_bytes)

    async def stat(self, path: str) -> GuestFile | None:
        return await self._stat(path)

    async def is_directory(self, path: str) -> bool:
        found = await self._stat(path, "-L")
        if found is None:
            raise GuestFileError(f"copy {path} out of the guest: nothing is there")
        return found.type == "directory"

    async def _stat(self, path: str, *options: str) -> GuestFile | None:
        done = await self.host.run(["stat", *options, "-c", _STAT, path], max_output_bytes=_MAX_LISTING_BYTES)
        said = done.stderr.decode(errors="replace")
        if done.exit_code and any(each in said for each in _MISSING):
            return None
        if done.exit_code:
            raise _failed(f"look at {path}", done.exit_code, done.stderr)
        return next(iter(_stated(done.stdout)), None)

    async def list(self, path: str) -> Iterable[GuestFile]:
        here = f"{path.rstrip('/')}/."
        look = ["find", here, "-mindepth", "1", "-maxdepth", "1", "-exec", "stat", "-c", _STAT, "{}", "+"]
        return _stated(await self.run(f"list {path}", look))

    async def remove(self, path: str, recursive: bool) -> None:
        await self.run(f"remove {path}", ["rm", *(["-r"] if recursive else []), path])

    async def make_directory(self, path: str, parents: bool) -> None:
        await self.run(f"make {path}", ["mkdir", *(["-p"] if parents else []), path])


class WindowsPrograms(Programs):
    """Those of a Windows guest, whose file system is read by ``dir``."""

    windows = True

    def split(self, path: HostPath) -> tuple[str, str]:
        directory, _, name = self.path(path).rpartition("\\")
        return f"{directory}\\", _named(name, path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        directory, name = self.split(path)
        # Its member says how large it is before it comes.
        reader = Reader(U64, 1)
        found = bytearray()
        try:
            async with aclosing(self.pack(directory, name)) as pieces:
                async for data in pieces:
                    for item in reader.feed(data):
                        if isinstance(item, bytes):
                            found += item
                        elif item.kind != "file" or item.parts != (name,):
                            raise GuestFileError(f"read {path}: it is no file")
                        elif item.size > max_bytes:
                            raise _too_large(path, max_bytes)
            reader.end()
        except ArchiveError as error:
            raise ArchiveError(f"read {path}: {error}") from None
        return bytes(found)

    async def stat(self, path: str) -> GuestFile | None:
        if path.rstrip("\\").endswith(":"):
            return GuestFile(path, "directory")
        directory, name = self.split(path)
        found = (file for file in await self.list(directory) if file.name.lower() == name.lower())
        return next(found, None)

    async def is_directory(self, path: str) -> bool:
        found = await self.stat(path)
        if found is None:
            raise GuestFileError(f"copy {path} out of the guest: nothing is there")
        return found.type != "file"

    async def list(self, path: str) -> Iterable[GuestFile]:
        command = ["cmd", "/d", "/u", "/c", "dir", "/a", "/-c"]
        listing = await self.run(f"list {path}", command, cwd=path)
        lines = listing.decode("utf-16-le", "replace").splitlines()
        found = [_listed(line) for line in lines]
        return [file for file in found if file is not None and file.name not in (".", "..")]

    async def remove(self, path: str, recursive: bool) -> None:
        directory, name = self.split(path)
        found = await self.stat(path)
        if found is None or (found.type == "directory" and not recursive):
            why = "nothing is there" if found is None else "it is a directory"
            raise GuestFileError(f"remove {path}: {why}")
        delete = ["del", "/f", "/q", "/a"] if found.type == "file" else ["rmdir", "/s", "/q"]
        await self._command(f"remove {path}", delete, directory, name)
        # What it says of a file that it cannot delete is no exit code.
        if await self.stat(path) is not None:
            raise GuestFileError(f"remove {path}: it is still there")

    async def make_directory(self, path: str, parents: bool) -> None:
        if parents and (found := await self.stat_or_none(path)) is not None and found.type == "directory":
            return
        drive, _, rest = path.partition("\\")
        directory, name = (f"{drive}\\", rest) if parents else self.split(path)
        await self._command(f"make {path}", ["mkdir"], directory, name)

    async def stat_or_none(self, path: str) -> GuestFile | None:
        """Return what is at a path, of which directories may be missing."""
        with suppress(GuestFileError):
            return await self.stat(path)
        return None

    async def _command(self, what: str, command: Iterable[str], directory: str, name: str) -> None:
        if "%" in name:
            raise OptionsError(f"{what}: cmd would read the % in its name")
        await self.run(what, ["cmd", "/d", "/c", *command, name], cwd=directory)


def _named(name: str, path: HostPath) -> str:
    if not name:
        raise OptionsError(f"{path} is a root, and no file")
    return name


def _failed(what: str, code: int, said: bytes | bytearray) -> GuestFileError:
    message = bytes(said[:_MAX_SAID_BYTES]).decode(errors="replace").strip()
    return GuestFileError(f"{what}: {brief(message) or f'the program exited with {code}'}")


def _too_large(path: str, max_bytes: int) -> OutputLimitError:
    return OutputLimitError(f"read {path}: it is larger than {max_bytes} bytes", ("tar",), b"", b"")


def _stated(listing: bytes) -> list[GuestFile]:
    """Return the files of what stat has printed."""
    found = []
    for record in listing.decode("utf-8", "surrogateescape").split("//\n")[:-1]:
        said = _STATED.fullmatch(record)
        if said is None:
            raise GuestFileError(f"the guest lists what cannot be read: {printed(record)}")
        mode = int(said[1], 16)
        kind = _TYPES.get(stat.S_IFMT(mode), "other")
        modified = datetime.fromtimestamp(min(max(0, int(said[3])), 2**33), UTC)
        name = said[4].rpartition("/")[2] or "/"
        found.append(GuestFile(name, kind, int(said[2]), stat.S_IMODE(mode), modified))
    return found


def _listed(line: str) -> GuestFile | None:
    """Return the file of a line of ``dir``; None for a line about others."""
    said = _LISTED.fullmatch(line.rstrip())
    if said is None:
        return None
    if said[1] is None:
        return GuestFile(said[3], "file", int(said[2]))
    if said[1] == "DIR":
        return GuestFile(said[3], "directory")
    # A link is followed by its target.
    return GuestFile(re.sub(r" \[[^\[]*\]$", "", said[3]), "link")
