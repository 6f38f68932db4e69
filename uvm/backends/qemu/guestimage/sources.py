"""The files of the machine that an image is made of: what they held, and whether they are still the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache

from attrs import define, field

#: Size, times of change (of contents, of anything) in nanoseconds, inode, device.
Stamp = list[int]


@define
class Sources:
    """Reads files, each once, and keeps note of them.

    :ivar digests: SHA-256 of each file that was read, by path.
    :ivar stamps: what ``stat`` said of each before it was read.
    """

    digests: dict[str, str] = field(init=False, factory=dict)
    stamps: dict[str, Stamp] = field(init=False, factory=dict)
    _contents: dict[str, bytes] = field(init=False, factory=dict, repr=False)

    def read(self, path: str) -> bytes:
        """Return the contents of a file.

        :raises OSError: it cannot be read.
        """
        if path not in self._contents:
            stamp = stamp_of(path)
            with open(path, "rb") as file:
                self._contents[path] = data = file.read()
            self.stamps[path] = stamp
            self.digests[path] = hashlib.sha256(data).hexdigest()
        return self._contents[path]


def stamp_of(path: str) -> Stamp:
    """Return what says whether a file was changed.

    :raises OSError: it is not there.
    """
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def unchanged(stamps: Mapping[str, Stamp]) -> bool:
    """Return whether all files are there as they were."""
    try:
        return all(stamp_of(path) == stamp for path, stamp in stamps.items())
    except OSError:
        return False


def sha256_of(path: str) -> str:
    """Return the digest of a file, which is read again only once it was changed.

    :raises OSError: it cannot be read.
    """
    return _sha256(path, tuple(stamp_of(path)))


# Each VM asks for those of its image, and 90 MB take 60 ms.
@lru_cache(maxsize=64)
def _sha256(path: str, stamp: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
