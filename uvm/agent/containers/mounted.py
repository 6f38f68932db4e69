"""What is mounted where, as the kernel lists it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_MOUNTS: Final = "/proc/self/mounts"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def inside(directories: Sequence[str]) -> str | None:
    """Return the deepest path in directories, or of them, at which something is mounted; None without one."""
    with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
        return deepest(file.read(), directories)


def deepest(mounts: str, directories: Sequence[str]) -> str | None:
    """Do the same from the text of ``/proc/self/mounts``."""
    points = [_unescaped(line.split()[1]) for line in mounts.splitlines()]
    found = [point for point in points if any(_is_in(point, each) for each in directories)]
    return max(found, key=len, default=None)


def _is_in(path: str, directory: str) -> bool:
    directory = directory.rstrip("/")
    return path == directory or path.startswith(f"{directory}/")


def _unescaped(path: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)
