"""The directories that the containers of a pod share.

They are mounts of their own, so that what one container mounts in them is seen by the others.

A container that runs may replace a directory of them by a link at any time, so a path in them is not to be
followed twice. It is opened once, step by step and without links; what was opened is bound at a place that no
container reaches, and that is the source for the runtime, until it has made the container::

    sandboxMounts --open--> a --open--> b      bind /proc/self/fd/N at /run/uvm-shared-*/0 ... unmount it

Source: hcsshim internal/guest/runtime/hcsv2/uvm.go (``setupSandboxMountsPath`` and its kind), and its
workload_container.go, which follows links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from uvm.agent import syscalls
from uvm.agent.containers.bundle import SHARED, SharedMount
from uvm.agent.mounts import deepest_mount
from uvm.agent.refused import Refused, reason
from uvm.agent.syscalls import MS_BIND
from uvm.agent.workers import apart

_MS_REC: Final = 1 << 14
_MS_PRIVATE: Final = 1 << 18
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
#: No container has a path to it.
_PRIVATE: Final = "/run"


def mount(pod: str) -> None:
    """Make the directories of a pod.

    :raises OSError: the kernel refused.
    """
    for prefix, name in SHARED.items():
        path = f"{pod}/{name}"
        os.makedirs(path, exist_ok=True)
        if prefix == "sandbox-tmp://":
            syscalls.mount("tmpfs", path, "tmpfs")
        else:
            syscalls.mount(path, path, "", MS_BIND)
        syscalls.mount("", path, "", _MS_SHARED | _MS_REC)


@contextmanager
def bound(wanted: Sequence[SharedMount]) -> Iterator[None]:
    """Bind what a container is to have of its pod's directories, while its runtime makes the container.

    :raises Refused: a part of a path is a link, or the kernel refused.
    """
    if not wanted:
        yield
        return
    # It takes long to load, and no boot needs it.
    from tempfile import mkdtemp

    place = mkdtemp(prefix="uvm-shared-", dir=_PRIVATE)
    with ExitStack() as undo:
        undo.callback(os.rmdir, place)
        for number, each in enumerate(wanted):
            each.mount["source"] = f"{place}/{number}"
            try:
                _bind(each, f"{place}/{number}", undo)
            except OSError as error:
                where = "/".join((each.directory, *each.names))
                raise Refused(f"failed to bind {where}: {reason(error)}") from None
        yield


def _bind(wanted: SharedMount, place: str, undo: ExitStack) -> None:
    with opened(wanted) as fd:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(place)
            undo.callback(os.rmdir, place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            undo.callback(os.unlink, place)
        syscalls.mount(_path(fd), place, "", MS_BIND | _MS_REC)
        undo.callback(_unbind, place)


def _unbind(place: str) -> None:
    # What is mounted in it stays everywhere else.
    syscalls.mount("", place, "", _MS_PRIVATE | _MS_REC)
    syscalls.umount(place, _MNT_DETACH)


@contextmanager
def opened(wanted: SharedMount) -> Iterator[int]:
    """Open what a container is to have, which is made if it is not there, for any user to write to.

    What a container puts in its place meanwhile is opened as it is, and not changed.

    :raises Refused: a part of its path is a link, which a container may have made to see what is elsewhere;
        or no directory, and has to be one.
    """
    os.makedirs(wanted.directory, exist_ok=True)
    fd = os.open(wanted.directory, os.O_PATH | os.O_CLOEXEC)
    try:
        for number, name in enumerate(wanted.names, 1):
            last, made = number == len(wanted.names), _made(name, fd)
            if made and last and wanted.huge_pages:
                _mount_huge_pages(wanted, name, fd)
            below = _open_below(wanted, name, fd, directory_only=made or not last)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _open_below(wanted: SharedMount, name: str, directory: int, *, directory_only: bool) -> int:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode) or not (stat.S_ISLNK(mode) or directory_only):
        return fd
    os.close(fd)
    if stat.S_ISLNK(mode):
        raise Refused(f"{name} in {wanted.directory} is a link, which a mount is not to follow")
    raise Refused(f"{name} in {wanted.directory} is no directory, which a mount needs there")


def _made(name: str, directory: int) -> bool:
    """Make a directory, for any user to write to; return whether it was not there."""

    def make() -> None:
        # A mode set afterwards would be that of what a container has put in its place.
        syscalls.own_umask()
        os.umask(0)
        os.mkdir(name, dir_fd=directory)

    with suppress(FileExistsError):
        apart(make)
        return True
    return False


def _mount_huge_pages(wanted: SharedMount, name: str, directory: int) -> None:
    """Mount huge pages, of the size that the first part of their path names, at a directory of a pod."""
    fd = _open_below(wanted, name, directory, directory_only=True)
    try:
        syscalls.mount("none", _path(fd), "hugetlbfs", 0, f"pagesize={wanted.names[0]},mode=777")
    finally:
        os.close(fd)


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def unmount(pod: str) -> None:
    """Unmount them, with what is mounted in them.

    :raises Refused: they are in use.
    """
    directories = [f"{pod}/{name}" for name in SHARED.values()]
    while (there := deepest_mount(directories)) is not None:
        try:
            syscalls.umount(there)
        except OSError as error:
            raise Refused(f"failed to unmount {there}: {reason(error)}") from None
