"""Paths of the host, in its own flavour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from uvm._names import PathFlavour, host_path
from uvm.backend import FileInfo, HostInfo
from uvm.errors import OptionsError

if TYPE_CHECKING:
    from uvm.options import BlockCIMBootFiles, LayerBootFiles, LCOWOptions, VmbFSBootFiles, WCOWOptions

#: The stat of each path that :func:`uvm._document.files_to_stat` returns; None if nothing is there.
Files = Mapping[str, FileInfo | None]

T = TypeVar("T", bound="LCOWOptions | WCOWOptions | VmbFSBootFiles | LayerBootFiles | BlockCIMBootFiles")


def with_host_paths(options: T, names: Iterable[str], host: HostInfo) -> T:
    """Return options whose host paths are cleaned.

    :param names: the fields that hold paths of the host, as opposed to names of files in one.
    :raises OptionsError: a path is not an absolute one of this host.
    """
    changed: dict[str, Any] = {}
    for name in names:
        path = getattr(options, name)
        if path and (clean := host_path(path, host.paths, name)) != path:
            changed[name] = clean
    return evolve(options, **changed) if changed else options


def join(host: HostInfo, directory: str, name: str) -> str:
    r"""Return the path of a name in a directory of the host, cleaned.

    Unlike Python's ``join`` it never drops the directory: ``C:\a`` and ``\b`` are ``C:\a\b``.
    """
    return _joined(host.paths, directory, name)


# The same few paths are joined for the stats and for the document.
@lru_cache(maxsize=256)
def _joined(flavour: PathFlavour, directory: str, name: str) -> str:
    if flavour == "posix":
        return host_path(f"{directory}/{name}", flavour)
    # Under \\?\ a slash is a part of a name.
    return host_path(directory + "\\" + name.replace("/", "\\"), flavour)


def need(files: Files, path: str, what: str, *, directory: bool = False) -> FileInfo:
    """Return the stat of a file or a directory that has to exist.

    :raises OptionsError: it does not exist, or is the other of the two.
    """
    info = files.get(path)
    if info is None:
        raise OptionsError(f"{what}: {path} was not found on the host")
    if info.is_dir is not directory:
        raise OptionsError(f"{what}: {path} is {'a' if info.is_dir else 'not a'} directory")
    return info
