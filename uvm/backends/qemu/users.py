"""The user as which QEMU runs: never root, unless that is asked for.

How it works
------------

A guest that escapes from its QEMU has the rights of that process. Started by a process of root's, each QEMU
runs as a user of its own, which nothing else on the machine runs as, without capabilities and without a means
to get any: :func:`Identity.options` are those of ``setpriv``, which changes the user before QEMU's program is
executed. So no QEMU reaches another one either, as processes of one user do.

Such a user may open next to nothing, and need not. What QEMU uses is opened here, and QEMU inherits it, or
gets it over its monitor: memory, sockets, kernel, disk images, tap devices. A share is the exception. Files
below its directory are opened by QEMU, with that user's rights (:func:`check_access`), as only the protocol
in the guest's hand knows their names.

The numbers are of a range that no distribution uses and that is mapped in containers too. One that is in
use is locked by a file below ``/run/uvm-users``, which QEMU inherits, so that root has no user twice,
whatever its runtime directories are. QEMU has the file of its own user alone, and can do with it what it does
by running: keep that user from being chosen. Containers with a ``/run`` of their own do not see each other's
locks, which is why the first number that is tried is random.

In a user namespace without these users, root is itself an ordinary user outside. QEMU stays that one then,
with no capability of the namespace. So it does where root may not change its user, as in a container without
capabilities.

Source: setpriv(1); user_namespaces(7); capabilities(7); systemd's docs/UIDS-GIDS.md.
"""

from __future__ import annotations

import errno
import os
import pwd
import random
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field, frozen
from attrs.validators import deep_iterable, instance_of

from uvm._log import Log
from uvm._repr import Value
from uvm.backends.qemu.locks import keep, release, try_lock
from uvm.errors import HostError, NotSupportedError, OptionsError
from uvm.hresult import HResult

#: The users of QEMUs: 60578 to 61183 are unused.
FIRST_USER: Final = 60_600
USERS: Final = 512

#: Where those in use are locked, each by a file with its number.
_LOCKS: Final = "/run/uvm-users"
_PROC: Final = "/proc/self"
_KVM: Final = "/dev/kvm"
#: The capabilities that setpriv uses, by their numbers in the kernel's headers.
_NEEDED: Final = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8}

_log = Log("uvm")


@frozen(repr=False)
class Identity(Value):
    """A user, and its only group. Root is that of a user namespace: it stays what it is outside.

    :ivar groups: the groups that it is in besides.
    """

    uid: int = field(validator=instance_of(int))
    gid: int = field(validator=instance_of(int))
    groups: tuple[int, ...] = field(default=(), validator=deep_iterable(instance_of(int)))

    @property
    def options(self) -> tuple[str, ...]:
        """The options of ``setpriv`` that start a program as this user, without any privilege."""
        groups = ",".join(map(str, self.groups))
        changes = (
            f"--reuid={self.uid}",
            f"--regid={self.gid}",
            f"--groups={groups}" if groups else "--clear-groups",
        )
        return (
            *(changes if self.uid else ()),
            "--no-new-privs",
            "--bounding-set=-all",
            "--inh-caps=-all",
        )

    def may_read(self, found: os.stat_result) -> bool:
        """Return whether it may open a file, whatever the directories above allow."""
        return bool(found.st_mode & stat.S_IROTH) or found.st_uid == self.uid


@define(eq=False, repr=False)
class Chosen:
    """The user of one VM.

    :ivar identity: the user; None for that of this process.
    :ivar lock: the descriptor that keeps it from being chosen again, which QEMU is to inherit; -1 for none.
    """

    identity: Identity | None = None
    lock: int = -1

    def __attrs_post_init__(self) -> None:
        if self.lock >= 0:
            keep(self.lock)

    def close(self) -> None:
        """Have it chosen again, once QEMU has ended."""
        if self.lock >= 0:
            release(self.lock, shared=True)
            self.lock = -1


#: Chooses the user of one VM; blocking.
Choose = Callable[[], Chosen]


def chooser(name: str, fallback: str) -> Choose:
    """Return what chooses the user of each VM.

    :param name: the name or number of a user that all have; empty for one each if this process is root's, and
        its own else.
    :param fallback: the directory with the locks of users, if there can be none for the whole machine.
    :raises OptionsError: there is no such user.
    :raises NotSupportedError: it is another one, and this process is not root's, or has no such user.
    """
    if not name:
        return _unnamed(fallback)
    found = _user(name)
    if found.uid == os.geteuid():
        return Chosen
    if os.geteuid() != 0:
        raise NotSupportedError(
            f"run QEMU as {name}: only a process of root's starts others as another user, and this one is "
            f"of user {os.geteuid()}; nothing was started; leave out `user`"
        )
    if lacking := _lacking():
        raise NotSupportedError(
            f"run QEMU as {name}: this process of root's has not the capabilities {lacking}; nothing was "
            "started; start it with them, or create the backend with user='root'"
        )
    if not _changeable(found.uid, found.gid):
        raise NotSupportedError(
            f"run QEMU as {name}: the user namespace of this process has no user {found.uid} "
            f"({_PROC}/uid_map); nothing was started; map that user, or leave out `user`"
        )
    return lambda: Chosen(found)


def _unnamed(fallback: str) -> Choose:
    if os.geteuid() != 0:
        return Chosen
    if lacking := _lacking():
        _log.warning(
            None,
            "QEMU runs as root, as this process has not the capabilities %s that give it a user of its own: "
            "a guest that escapes has the rights of this process",
            lacking,
        )
        return Chosen
    if _changeable(FIRST_USER, FIRST_USER) and _changeable(FIRST_USER + USERS - 1, FIRST_USER + USERS - 1):
        return _Own(fallback)
    _log.warning(
        None,
        "QEMU runs as root of this user namespace, which has no other users (%s/uid_map), without its "
        "capabilities: a guest that escapes has the rights of your user outside; map the users %d to %d, or "
        "start as another user",
        _PROC,
        FIRST_USER,
        FIRST_USER + USERS - 1,
    )
    return lambda: Chosen(Identity(0, 0))


def _lacking() -> str:
    """Return the capabilities without which a process of root's starts none as another user."""
    with suppress(OSError):
        found = re.search(r"^CapEff:\s*(\w+)$", Path(_PROC, "status").read_text(), re.M)
        held = int(found[1], 16) if found else -1
        return ", ".join(name for name, number in _NEEDED.items() if not held >> number & 1)
    return ""


def _changeable(uid: int, gid: int) -> bool:
    """Return whether a process of root's may become a user: its user namespace may lack that one."""
    with suppress(OSError):
        if Path(_PROC, "setgroups").read_text().strip() == "deny":
            return False
    return _is_mapped(uid, "uid_map") and _is_mapped(gid, "gid_map")


def _is_mapped(number: int, kind: str) -> bool:
    try:
        lines = Path(_PROC, kind).read_text().splitlines()
    except OSError:
        return True
    ranges = [[int(each) for each in line.split()] for line in lines]
    return any(first <= number < first + count for first, _, count in ranges)


def _user(name: str) -> Identity:
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal() and int(name) < 1 << 31:
            return Identity(int(name), int(name), _groups_of_kvm())
        raise OptionsError(f"user is the name or the number of a user, and there is no {name!r}") from None
    return Identity(found.pw_uid, found.pw_gid, _groups_of_kvm())


class _Own:
    """Chooses a user that nothing else runs as."""

    def __init__(self, fallback: str) -> None:
        self._fallback = fallback
        self._directory = ""

    def __call__(self) -> Chosen:
        """Choose one."""
        self._directory = self._directory or _lock_directory(self._fallback)
        # QEMU could release its lock, but not run as another user.
        running = {_user_of(name) for name in os.listdir("/proc") if name.isdecimal()}
        first = random.randrange(USERS)
        for number in (FIRST_USER + (first + each) % USERS for each in range(USERS)):
            with suppress(BlockingIOError):
                if number not in running:
                    lock = try_lock(Path(self._directory, str(number)), make=True)
                    return Chosen(Identity(number, number, _groups_of_kvm()), lock)
        raise HostError(
            "create a VM",
            HResult.ERROR_NO_SYSTEM_RESOURCES,
            f"each QEMU of root's has a user of its own, and all {USERS} are in use; nothing was started; "
            "create the backend with the user that all of its VMs are to have",
        )


def _lock_directory(fallback: str) -> str:
    """Return the directory with the locks of users."""
    try:
        os.makedirs(_LOCKS, 0o700, exist_ok=True)
        found = os.lstat(_LOCKS)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise OSError(errno.EPERM, "it is no directory of root's that no other may change")
        # What is mounted there may be read-only, or full.
        with tempfile.TemporaryFile(dir=_LOCKS):
            pass
    except OSError as error:
        _log.warning(
            None,
            "the users of QEMUs cannot be locked in %s: %s; they are locked in %s, so that processes with "
            "another runtime directory may choose the same ones",
            _LOCKS,
            error.strerror,
            fallback,
        )
        os.makedirs(fallback, 0o700, exist_ok=True)
        return fallback
    return _LOCKS


def _user_of(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _groups_of_kvm() -> tuple[int, ...]:
    """Return the group that may use KVM; root's is none."""
    try:
        found = os.stat(_KVM)
    except OSError:
        return ()
    return (found.st_gid,) if found.st_gid and found.st_mode & stat.S_IWGRP else ()


def kvm_problem(choose: Choose) -> str:
    """Return why the users of VMs may not use KVM; empty if they may, or it is not there."""
    chosen = choose()
    chosen.close()
    identity = chosen.identity
    if identity is None or not identity.uid or identity.groups or not os.path.exists(_KVM):
        return ""
    found = os.stat(_KVM)
    if found.st_uid == identity.uid or found.st_mode & stat.S_IWOTH:
        return ""
    return (
        f"root alone may open {_KVM}, and QEMU does not run as root; 'chgrp kvm {_KVM}; chmod 660 {_KVM}' "
        "lets it, or the backend's option user='root'"
    )


def check_access(identity: Identity | None, fd: int, path: str, operation: str, *, writable: bool) -> None:
    """Refuse a directory that QEMU's user may not use; blocking.

    :param fd: refers to the directory.
    :raises HostError: E_ACCESSDENIED.
    """
    if identity is None:
        return
    here = f"/proc/self/fd/{fd}"
    asked = ("-a", "-w", here) if writable else ()
    command = ["setpriv", *identity.options, "--", "test", "-r", here, "-a", "-x", here, *asked]
    if subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=(fd,), check=False).returncode:
        kind = "read and write" if writable else "read"
        raise HostError(
            operation,
            HResult.E_ACCESSDENIED,
            f"{path}: QEMU runs as user {identity.uid}, which may not {kind} it; nothing was shared; "
            "allow it (chmod, setfacl), share it read-only, or create the backend with a `user` that may",
        )
