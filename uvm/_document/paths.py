"""Paths of the host, in its own flavour."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from attrs import evolve

from uvm._names import PathFlavour, host_path
from uvm.backend import FileInfo, HostInfo
from uvm.errors import OptionsError
from uvm.options import BlockCIMBootFiles, LCOWOptions, VmbFSBootFiles, WCOWOptions

#: The stat of each path that :func:`uvm._document.files_to_stat` returns; None if nothing is there.
Files = Mapping[str, FileInfo | None]

T = TypeVar("T", bound=LCOWOptions | WCOWOptions | VmbFSBootFiles | BlockCIMBootFiles)

#: The options that hold paths of the host, as opposed to names of files in one.
_HOST_PATHS: dict[type, tuple[str, ...]] = {
    LCOWOptions: ("boot_files_path", "bundle_directory"),
    WCOWOptions: (
        "dump_directory",
        "bundle_directory",
        "debug_data_path",
        "boot_files_root_path",
        "guest_state_file",
        "uvm_reference_info_file",
        "uvm_hash_envelope_reference_info_file",
    ),
    VmbFSBootFiles: ("os_files_path", "scratch_vhd_path"),
    BlockCIMBootFiles: ("boot_cim_vhd_path", "efi_vhd_path", "scratch_vhd_path"),
}


def with_host_paths(options: T, host: HostInfo) -> T:
    """Return options whose host paths are cleaned.

    :raises OptionsError: a path is not an absolute one of this host.
    """
    changed: dict[str, Any] = {}
    for name in next(names for cls, names in _HOST_PATHS.items() if isinstance(options, cls)):
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
