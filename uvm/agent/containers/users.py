"""The users of a container, by its own ``/etc/passwd`` and ``/etc/group``.

A name is ``user``, ``uid``, ``user:group`` and so on. A number need not be in these files.

Source: hcsshim internal/guest/spec/spec.go (``ParseUserStr``).
"""

from __future__ import annotations

import os
from typing import Final

from uvm.agent.refused import Refused

_MAX_ID: Final = 0xFFFFFFFF
#: The larger files are not read: what is in a container is not trusted.
_MAX_BYTES: Final = 1 << 20


def user_ids(root: str, name: str) -> dict[str, int]:
    """Return the numbers of a user and its group.

    :param root: the root file system of the container.
    :raises Refused: there is none of that name.
    """
    user, colon, group = name.partition(":")
    if ":" in group:
        raise Refused(f"invalid userstr: '{name}'")
    users = _entries(root, "passwd")
    if user.isdecimal():
        uid = _number(user)
        gid = next((each[3] for each in users if each[2] == str(uid)), "0")
    else:
        found = next((each for each in users if each[0] == user), None)
        if found is None:
            raise Refused(f"failed to find user by username: {user}")
        uid, gid = _number(found[2]), found[3]
    return {"uid": uid, "gid": _group(root, group) if colon else _number(gid)}


def _group(root: str, name: str) -> int:
    if name.isdecimal():
        return _number(name)
    found = next((each[2] for each in _entries(root, "group") if each[0] == name), None)
    if found is None:
        raise Refused(f"failed to find group by groupname: {name}")
    return _number(found)


def _entries(root: str, name: str) -> list[list[str]]:
    """Return the lines of a file that has at least four fields in each."""
    try:
        # A link of a container's leads to a file of the guest.
        fd = os.open(f"{root}/etc/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with open(fd, encoding="utf-8", errors="replace") as file:
        lines = file.read(_MAX_BYTES).splitlines()
    return [fields for line in lines if len(fields := line.split(":")) >= 4]


def _number(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= _MAX_ID:
        raise Refused(f"{text} exceeds uint32 bounds")
    return number
