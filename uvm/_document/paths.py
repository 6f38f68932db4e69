"""Paths of the host, in its own flavour."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType

from uvm.backend import FileInfo, HostInfo
from uvm.errors import OptionsError

#: What was found at the paths that :func:`uvm._document.files_to_look_at` names; None where nothing is.
Files = Mapping[str, FileInfo | None]


def join(host: HostInfo, *parts: str) -> str:
    r"""Join parts and clean the result, as Go's ``filepath.Join`` does.

    Unlike Python's, it never drops a part: ``C:\a`` and ``\b`` are ``C:\a\b``. Nor does it make a network
    path of what was none: ``\`` and ``\b`` are ``\b``.
    """
    return _joined(host.path, *parts)


# The same few paths are joined when they are looked at and when the document is built.
@lru_cache(maxsize=256)
def _joined(path: ModuleType, *parts: str) -> str:
    separators = path.sep + (path.altsep or "")
    joined = ""
    for part in filter(None, parts):
        if not joined:
            joined = part
        elif joined[-1] in separators:
            joined += part.lstrip(separators)
        elif joined[-1] == ":" and path.altsep:
            # On Windows, that is relative to the drive's current directory.
            joined += part
        else:
            joined += path.sep + part
    return str(path.normpath(joined)) if joined else ""


def need_file(files: Files, path: str, what: str) -> FileInfo:
    """Give what is known of a file.

    :raises OptionsError: it is not there, or is a directory.
    """
    info = files.get(path)
    if info is None:
        raise OptionsError(f"{what}: {path} was not found on the host")
    if info.is_dir:
        raise OptionsError(f"{what}: {path} is a directory")
    return info


def need_directory(files: Files, path: str, what: str) -> None:
    """Make sure of a directory.

    :raises OptionsError: it is not there, or is a file.
    """
    info = files.get(path)
    if info is None:
        raise OptionsError(f"{what}: {path} was not found on the host")
    if not info.is_dir:
        raise OptionsError(f"{what}: {path} is not a directory")
