"""What is mounted where, as the kernel lists it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

_TABLE: Final = "/proc/self/mounts"
#: How spaces and the like are written in it.
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def mount_points(table: str = _TABLE) -> list[str]:
    """Return the paths at which something is mounted, the first mount first."""
    # The kernel escapes the separators of this table, and none that Python knows besides.
    with open(table, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return [_unescaped(line.split(" ")[1]) for line in file]


def _unescaped(path: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)


def is_mounted(path: str, table: str = _TABLE) -> bool:
    """Return whether something is mounted at a path, whose links are followed."""
    return os.path.realpath(path) in mount_points(table)


def deepest_mount(directories: Sequence[str], table: str = _TABLE) -> str | None:
    """Return the deepest path in directories, or of them, at which something is mounted; None without one."""
    found = [point for point in mount_points(table) if any(_is_in(point, each) for each in directories)]
    return max(found, key=len, default=None)


def _is_in(path: str, directory: str) -> bool:
    directory = directory.rstrip("/")
    return path == directory or path.startswith(f"{directory}/")
