"""Images that were built: a directory each, named by the digest of what it was made of.

``$XDG_CACHE_HOME/uvm`` (else ``~/.cache/uvm``) is its user's alone, since what boots from it decides about
guests. An image comes by renaming a directory that is complete. A process that builds one holds a lock, so
that others that want the same wait and find it. What a builder that was killed left is removed by the next.

A process that has a VM holds a shared lock of the directory of its image until the VM has ended: clones are
started from the files of their template's image, and a VM that is saved is compared with them. A QEMU that
survives that process is named in the directory, and holds no lock, with which a guest that has escaped could
keep others from the image. What is locked, or has the name of a process that runs, is not pruned; one of
another container's, which is not seen here, counts as running until the machine boots again, and so does one
whose name cannot be read, as another version of this package may have written it. An image is removed by
renaming it first, so that there is none in part.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from attrs import define, frozen

from uvm.backends.qemu.guestimage.sources import sha256_of
from uvm.backends.qemu.homes import user_directory
from uvm.backends.qemu.locks import keep, locked, open_lock, release, try_lock
from uvm.errors import HostError, HostPathError, NotSupportedError, UVMError
from uvm.hresult import HResult

if TYPE_CHECKING:
    from uvm.backends.qemu.runtime import ProcessName

_MANIFEST: Final = "manifest.json"
_UNFINISHED: Final = ".unfinished-"
#: Begins the name of the file that names a process.
_USED: Final = ".used-"
#: How long one that prunes an image may take.
_HOLD_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01


class ImageDamagedError(UVMError):
    """A file of an image is not as it was built: it was cut short, or changed."""


@define(eq=False)
class Hold:
    """Keeps an image from being pruned, as long as this process has its descriptor.

    :ivar fd: the descriptor of its directory; -1 once it is closed.
    """

    fd: int

    def __attrs_post_init__(self) -> None:
        keep(self.fd)

    def again(self) -> Hold | None:
        """Return another one of the same image; None once it is closed."""
        return Hold(os.dup(self.fd)) if self.fd >= 0 else None

    def close(self) -> None:
        """Hold it no more."""
        if self.fd >= 0:
            release(self.fd, shared=True)
            self.fd = -1

    def keep_for(self, process: ProcessName) -> None:
        """Have the image kept until a process has ended, though it is held no more.

        :raises HostPathError: the process cannot be noted.
        """
        _is_used(self.fd)
        name = f"{_USED}{process.written()}"
        try:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self.fd))
        except OSError as error:
            directory = os.readlink(f"/proc/self/fd/{self.fd}")
            raise HostPathError(directory, f"{name} cannot be made there: {error.strerror}") from error


@frozen
class Image:
    """A guest image.

    :ivar directory: where it is; its name is the image's key.
    :ivar manifest: what it was made of.
    """

    directory: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """The digest of what it was made of."""
        return str(self.manifest["key"])

    @property
    def kernel(self) -> str:
        """The path of the kernel, for QEMU."""
        return str(self.directory / "kernel")

    @property
    def initrd(self) -> str:
        """The path of the first root file system, for QEMU."""
        return str(self.directory / "initrd")

    @property
    def size_bytes(self) -> int:
        """The size of its files."""
        return sum(each["size"] for each in self.manifest["files"].values())

    def hold(self) -> Hold | None:
        """Keep it from being pruned; return None if it was pruned before. Blocks, not for long.

        :raises HostError: another process has it locked, and does not prune it.
        """
        with suppress(FileNotFoundError):
            held = Hold(open_lock(self.directory))
            try:
                self._lock(held.fd)
                if os.path.samestat(os.fstat(held.fd), os.stat(self.directory)):
                    return held
            except BaseException:
                held.close()
                raise
            held.close()
        return None

    def _lock(self, fd: int) -> None:
        # Python has it on Unix only.
        import fcntl

        deadline = time.monotonic() + _HOLD_SECONDS
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError(
                        "create a VM",
                        HResult.ERROR_SHARING_VIOLATION,
                        f"another process has had the guest image {self.directory} locked for "
                        f"{_HOLD_SECONDS:g} s, and has not removed it; nothing was started; end that process "
                        "(lslocks names it)",
                    ) from None
                time.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Compare its files with what was built.

        :raises ImageDamagedError: one differs.
        """
        for name, built in self.manifest["files"].items():
            if digest_of(str(self.directory / name)) != built:
                raise ImageDamagedError(
                    f"the guest image {self.directory} is damaged: {name} is not as it was built; "
                    f"remove that directory ('uvm image prune --all' removes all), and it is built again"
                )


def digest_of(path: str) -> dict[str, Any]:
    """Return the size and the digest of a file; size -1 if it cannot be read."""
    try:
        return {"size": os.path.getsize(path), "sha256": sha256_of(path)}
    except OSError:
        return {"size": -1, "sha256": ""}


@frozen
class Cache:
    """The images of one user."""

    root: Path

    @property
    def images(self) -> Path:
        """The directory of the images."""
        return self.root / "images"

    @property
    def downloads(self) -> Path:
        """The directory of the kernels that were downloaded."""
        return self.root / "kernels"

    def prepare(self) -> None:
        """Make the directories.

        :raises NotSupportedError: they cannot be made, or another user could write into them.
        """
        try:
            for directory in (self.root, self.images, self.downloads):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.root.stat()
        except OSError as e:
            raise NotSupportedError(
                f"the cache of guest images, {self.root}, cannot be made: {e.strerror}; "
                "name another directory: XDG_CACHE_HOME"
            ) from e
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise NotSupportedError(
                f"the cache of guest images, {self.root}, is open to other users; 'chmod 700 {self.root}', "
                "or name another directory: XDG_CACHE_HOME"
            )

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of those who build or remove, waiting for it."""
        return locked(self.root / "lock")

    def find(self, key: str) -> Image | None:
        """Return an image; None if it was never completed."""
        directory = self.images / key
        try:
            return Image(directory, json.loads((directory / _MANIFEST).read_text()))
        except (OSError, ValueError):
            return None

    def all(self) -> list[Image]:
        """Return all images, the newest first."""
        found = filter(None, (self.find(path.name) for path in self.images.glob("[!.]*")))
        return sorted(found, key=lambda image: -os.stat(image.directory).st_mtime)

    def add(self, key: str, make: Callable[[Path], dict[str, Any]]) -> Image:
        """Build an image; the lock is held.

        :param make: writes the files into a directory, and returns the manifest.
        :raises OSError: there is no room.
        """
        self.remove_unfinished()
        directory = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.images))
        try:
            made = make(directory)
            built = {path.name: digest_of(str(path)) for path in sorted(directory.iterdir())}
            manifest = json.dumps({"key": key, **made, "files": built}, indent=1)
            (directory / _MANIFEST).write_text(manifest)
            self.remove(key)
            directory.rename(self.images / key)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return Image(self.images / key, json.loads(manifest))

    def remove(self, key: str) -> None:
        """Remove an image; the lock is held."""
        unfinished = self.images / f"{_UNFINISHED}{uuid4().hex}"
        with suppress(FileNotFoundError):
            (self.images / key).rename(unfinished)
            shutil.rmtree(unfinished, ignore_errors=True)

    def remove_unfinished(self) -> None:
        """Remove what a process has left that was killed as it built or removed; the lock is held."""
        for left in self.images.glob(f"{_UNFINISHED}*"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def prune(self, image: Image) -> bool:
        """Remove an image unless a VM uses it; return whether it was removed; the lock is held."""
        try:
            lock = try_lock(image.directory)
        except BlockingIOError:
            return False
        try:
            if _is_used(lock):
                return False
            self.remove(image.key)
        finally:
            release(lock)
        return True

    def remove_downloads(self) -> list[str]:
        """Remove all kernels that were downloaded, and return their names; the lock is held."""
        names = sorted(path.name for path in self.downloads.iterdir())
        for name in names:
            shutil.rmtree(self.downloads / name)
        return names

    def recall(self, request: str) -> dict[str, Any] | None:
        """Return what was noted for a request; None if nothing was."""
        try:
            noted: dict[str, Any] = json.loads((self.images / f".request-{request}").read_text())
        except (OSError, ValueError):
            return None
        return noted

    def note(self, request: str, value: dict[str, Any]) -> None:
        """Note something for a request; the lock is held."""
        path = self.images / f".request-{request}"
        unfinished = path.with_name(f"{_UNFINISHED}{request}")
        unfinished.write_text(json.dumps(value))
        unfinished.replace(path)


def _is_used(fd: int) -> bool:
    """Return whether a process may run that an image's directory names; forget those that have ended."""
    used = False
    for name in os.listdir(fd):
        # Another process may forget it at the same time.
        with suppress(FileNotFoundError):
            if name.startswith(_USED):
                if _may_run(name, fd):
                    used = True
                else:
                    os.unlink(name, dir_fd=fd)
    return used


def _may_run(name: str, fd: int) -> bool:
    """Return whether a process may run that a file names."""
    from uvm.backends.qemu.runtime import ProcessName

    try:
        process = ProcessName.read(name.removeprefix(_USED))
    except ValueError:
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return os.stat(name, dir_fd=fd).st_mtime > booted
    return process.runs or process.is_hidden


def default_cache() -> Cache:
    """Return the cache of the user who runs this.

    :raises NotSupportedError: the user has no home directory.
    """
    return Cache(user_directory("XDG_CACHE_HOME", ".cache") / "uvm")
