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

The numbers are of a range that no distribution uses and that is mapped in containers too.

Source: setpriv(1); systemd's docs/UIDS-GIDS.md.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Callable, Collection
from typing import Final

from attrs import frozen

from uvm._repr import brief_call
from uvm.errors import HostError, NotSupportedError, OptionsError
from uvm.hresult import HResult

#: The users of QEMUs: 60578 to 61183 are unused.
FIRST_USER: Final = 60_600
USERS: Final = 512

_KVM: Final = "/dev/kvm"


@frozen(repr=False)
class Identity:
    """A user, and its only group.

    :ivar groups: the groups that it is in besides.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    __repr__ = brief_call

    @property
    def options(self) -> tuple[str, ...]:
        """The options of ``setpriv`` that start a program as this user, without any privilege."""
        groups = ",".join(map(str, self.groups))
        return (
            f"--reuid={self.uid}",
            f"--regid={self.gid}",
            f"--groups={groups}" if groups else "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
            "--inh-caps=-all",
        )


#: Chooses a user, of which the numbers in use are none.
Choose = Callable[[Collection[int]], Identity | None]


def chooser(name: str) -> Choose:
    """Return what chooses the user of each VM.

    :param name: the name or number of a user that all have; empty for one each if this process is root's, and
        its own else.
    :raises OptionsError: there is no such user.
    :raises NotSupportedError: it is another one, and this process is not root's.
    """
    if not name:
        return _own if os.geteuid() == 0 else _unchanged
    found = _user(name)
    if found.uid == os.geteuid():
        return _unchanged
    if os.geteuid() != 0:
        raise NotSupportedError(
            f"run QEMU as {name}: only a process of root's starts others as another user, and this one is "
            f"of user {os.geteuid()}; nothing was started; leave out `user`"
        )
    return lambda used: found


def _user(name: str) -> Identity:
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal() and int(name) < 1 << 31:
            return Identity(int(name), int(name), _groups_of_kvm())
        raise OptionsError(f"user is the name or the number of a user, and there is no {name!r}") from None
    return Identity(found.pw_uid, found.pw_gid, _groups_of_kvm())


def _unchanged(used: Collection[int]) -> None:
    """Choose the user of this process."""
    return


def _own(used: Collection[int]) -> Identity:
    """Choose a user that nothing else runs as."""
    running = {_user_of(name) for name in os.listdir("/proc") if name.isdecimal()}
    for number in range(FIRST_USER, FIRST_USER + USERS):
        if number not in used and number not in running:
            return Identity(number, number, _groups_of_kvm())
    raise HostError(
        "create a VM",
        HResult.ERROR_NO_SYSTEM_RESOURCES,
        f"each QEMU of root's has a user of its own, and all {USERS} are in use; nothing was started; create "
        "the backend with the user that all of its VMs are to have",
    )


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
    identity = choose(())
    if identity is None or identity.groups or not os.path.exists(_KVM):
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
