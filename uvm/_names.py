r"""When two names are one. Names are folded here alone, once, when a caller passes them.

A name has a spelling that is sent: the caller's, cleaned (`host_path`, `guest_path`, `pipe_path`). And it has
a key, equal for all its spellings (`host_path_key` and the like), for comparing only. A key is itself a
spelling of its name: folding it again changes nothing. In doubt two names stay two, for two keys of one disk
end in the host's refusal, and one key of two disks in the wrong disk. No file is looked at: links are the
backend's to resolve.

Windows makes an NT path of a path before a file system sees it; two paths are one if their NT paths are.

- ``C:\x``, ``\\server\share\x``, ``\\.\device`` (Win32): ``/`` is ``\``; doubled separators, ``.`` and ``..``
  go. Trailing dots and spaces of the last component go, of the others only one single dot: ``C:\a \x`` is in
  a directory whose name ends in a space.
- ``\\?\``, also written ``\??\`` (verbatim): the rest is the NT path. Slashes, ``.``, ``..``, trailing dots
  and spaces are parts of names, and only empty names go: Go's Clean, which tidies more, makes another path.
- ``C:\x`` is ``\\.\C:\x`` and ``\\?\C:\x``; ``\\s\h`` is ``\\?\UNC\s\h``. The separator of a drive or volume
  stays: ``\\.\C:\`` is a directory, ``\\.\C:`` a device.

What only ``\\?\`` can say is spelled with it, in keys too. On POSIX hosts ``..`` stays, for it may follow a
link. In guests it goes: our own mount points are compared there, and none may hide behind it.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase
from typing import Literal, Protocol, TypeAlias
from unicodedata import ucd_3_2_0

from uvm.errors import OptionsError


class PathLike(Protocol):
    """What `os.PathLike` of text is, without `os`."""

    def __fspath__(self) -> str:
        """Return the path as text."""


HostPath: TypeAlias = str | PathLike
PathFlavour: TypeAlias = Literal["windows", "posix"]
GuestOS: TypeAlias = Literal["linux", "windows"]

_DEVICE, _VERBATIM = "\\\\.\\", "\\\\?\\"
_DRIVE = re.compile(r"[A-Za-z]:\\")
_ROOT = re.compile(r"(?ai)[a-z]:|volume\{[^\\]*\}")
_SHARE = re.compile(r"(?ai)unc\\[^\\]+\\[^\\]+")
_NOTHING = re.compile(r"(?ai)(unc(\\[^\\]*)?)?")
_BRACES = re.compile(r"\{\s*([^{}]*?)\s*\}")
_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def text_of(path: HostPath, what: str = "path") -> str:
    """Return a path as text.

    :param what: what an error calls it.
    :raises OptionsError: it is neither text nor `os.PathLike` of text, is empty, or has a NUL in it.
    """
    fspath = getattr(type(path), "__fspath__", None)
    text: object = path if fspath is None else fspath(path)
    if not isinstance(text, str):
        raise OptionsError(f"{what}: {path!r} is neither a str nor an os.PathLike of one")
    if not text:
        raise OptionsError(f"{what}: it is empty; a path is wanted")
    if "\0" in text:
        raise OptionsError(f"{what}: {text!r} has a NUL in it, which no path can have")
    return text


def host_path(path: HostPath, flavour: PathFlavour, what: str = "host path") -> str:
    """Return the spelling of a host path that is sent.

    :raises OptionsError: it is no path, or not an absolute one.
    """
    if flavour == "windows":
        return _spelled(*_nt_path(path, what))
    names = [name for name in _posix(path, what).split("/") if name not in ("", ".")]
    while names[:1] == [".."]:  # The parent of the root is the root.
        del names[0]
    return "/" + "/".join(names)


def host_path_key(path: HostPath, flavour: PathFlavour, what: str = "host path") -> str:
    """Return the key of a host path; raise as `host_path` does."""
    if flavour == "windows":
        return windows_upper(_spelled("", _nt_path(path, what)[1]))
    return host_path(path, flavour, what)


def guest_path(path: HostPath, os: GuestOS, what: str = "guest path") -> str:
    """Return the spelling of a guest path that is sent.

    :raises OptionsError: it is no path, or not an absolute one.
    """
    if os == "windows":
        return host_path(path, "windows", what)
    return _linux_path(_posix(path, what))


def guest_path_key(path: HostPath, os: GuestOS, what: str = "guest path") -> str:
    """Return the key of a guest path; raise as `guest_path` does."""
    return host_path_key(path, "windows", what) if os == "windows" else guest_path(path, os, what)


def is_at_or_under(path: str, directory: str) -> bool:
    """Return whether a path is that of a directory, or in it; both are keys of paths of one guest."""
    return path == directory or path.startswith(trimmed(directory) + _separator(directory))


def lineage(path: str) -> list[str]:
    """Return the key of a guest path and those of all directories above it, :func:`trimmed`."""
    separator, found = _separator(path), [trimmed(path)]
    while separator in found[-1]:
        found.append(found[-1].rpartition(separator)[0])
    return found


def trimmed(path: str) -> str:
    """Return the key of a guest path without separators at its end."""
    return path.rstrip(_separator(path))


def _separator(key: str) -> str:
    return "/" if key.startswith("/") else "\\"


def pipe_path(path: HostPath, what: str = "named pipe") -> str:
    r"""Return the spelling of a named pipe that is sent; HCS wants it to begin with ``\\.\pipe\``.

    :raises OptionsError: it is not a named pipe of the host.
    """
    text = text_of(path, what)
    name = _parsed(text)[1]
    if name[:5].lower() != "pipe\\":
        raise OptionsError(f"{what}: {text!r} is not a named pipe, which is {_DEVICE}pipe\\ and a name")
    return _spelled(_DEVICE, "pipe" + name[4:])


def pipe_key(path: HostPath, what: str = "named pipe") -> str:
    """Return the key of a named pipe; raise as `pipe_path` does."""
    return windows_upper(pipe_path(path, what))


def guid_text(guid: str) -> str:
    """Return the spelling of a GUID that is sent: without braces, which HCS and HCN do not write.

    :raises OptionsError: it is no text.
    """
    if not isinstance(guid, str):
        raise OptionsError(f"a GUID is a str, not {guid!r}")
    text = guid.strip()
    braced = _BRACES.fullmatch(text)
    return braced[1] if braced else text


def guid_key(guid: str) -> str:
    """Return the key of a GUID, as HCN writes it; other texts, which ids may be, are folded alike.

    :raises OptionsError: it is no text.
    """
    return guid_text(guid).translate(_ASCII_LOWER)


def pci_key(instance_path: str) -> str:
    r"""Return the key of a device's instance path, such as ``PCI\VEN_10DE&DEV_1EB8\4&1&0``.

    :raises OptionsError: it is no text, or empty.
    """
    return windows_upper(text_of(instance_path, "a PCI device"))


def pci_function(instance_path: str, function: int) -> tuple[str, int]:
    """Return the instance path and the function of a PCI device that may be named ``<path>/<function>``.

    Source: hcsshim ``internal/controller/device/vpci/utils.go``, which takes a backslash there too, so that a
    path that ends in a number loses it.

    :param function: the function beside the path; 0 if the path names it.
    :raises OptionsError: the path is no text, or empty; or it names another function.
    """
    text = text_of(instance_path, "a PCI device")
    path, slash, last = text.rpartition("/")
    if not (slash and path and last.isascii() and last.isdecimal() and int(last) <= 0xFFFF):
        return text, function
    if function not in (0, int(last)):
        raise OptionsError(
            f"{instance_path} names function {int(last)}, and function {function} was asked for"
        )
    return path, int(last)


def windows_upper(text: str) -> str:
    """Return a text in upper case, one character for one, as file systems of Windows compare names."""
    return text.upper() if text.isascii() else "".join(map(_upper, text))


def _upper(character: str) -> str:
    """Return the capital of a letter if the $UpCase table of every Windows since Vista has the pair.

    Those are the pairs of Unicode 3.2 in the BMP whose letters are each other's only counterparts. Sharp and
    long s, dotless i, micro, final sigma and the Kelvin sign have none, nor have capitals that came later.
    """
    upper = character.upper()
    if len(upper) > 1 or upper.lower() != character or character > "\uffff":
        return character
    return character if "Cn" in map(ucd_3_2_0.category, (character, upper)) else upper


def _posix(path: HostPath, what: str) -> str:
    """Return a path as text if it is absolute."""
    text = text_of(path, what)
    if not text.startswith("/"):
        raise OptionsError(f"{what}: {text!r} is relative; a path such as /directory/file is wanted")
    return text


def _nt_path(path: HostPath, what: str) -> tuple[str, str]:
    """Return the prefix and the NT path of a path if it is absolute and more than a prefix."""
    text = text_of(path, what)
    prefix, name = _parsed(text)
    if not _NOTHING.fullmatch(name):
        return prefix, name
    if text[1:2] == ":":
        problem = "has a drive and no root"
    elif text[0] in "/\\":
        problem = "names no file" if text[1:2] in ("/", "\\", "?") else "has no drive"
    else:
        problem = "is relative"
    raise OptionsError(f"{what}: {text!r} {problem}; a path such as C:\\directory\\file is wanted")


# The same few paths are parsed for the door, the key and each look-up.
@lru_cache(maxsize=1024)
def _linux_path(path: str) -> str:
    """Return an absolute path in its shortest spelling."""
    # normpath keeps two separators at the start, which POSIX lets mean something; Linux does not.
    return "/" + posixpath.normpath(path).lstrip("/")


@lru_cache(maxsize=1024)
def _parsed(path: str) -> tuple[str, str]:
    r"""Return the prefix and the NT path, without its ``\??\``; two empty texts for what is not absolute."""
    prefix = ""
    if path.startswith((_VERBATIM, "\\??\\")):
        prefix, name = _VERBATIM, re.sub(r"\\+", r"\\", path[4:]).lstrip("\\")
    else:
        path = path.replace("/", "\\").rstrip(" ")
        if path.startswith((_DEVICE, _VERBATIM)):
            prefix, name = path[:4], _resolved(path[4:])
        elif path.startswith("\\\\"):
            server, _, rest = path.lstrip("\\").partition("\\")
            share, _, rest = rest.lstrip("\\").partition("\\")
            name = f"UNC\\{server}\\{share}\\{_resolved(rest)}"
        elif _DRIVE.match(path):
            name = path[:3] + _resolved(path[3:])
        else:
            return "", ""
    stem = name.rstrip("\\")
    is_root = _SHARE.fullmatch(stem) or (_ROOT.fullmatch(stem) and stem != name)
    return prefix, stem + "\\" if is_root else stem


def _resolved(path: str) -> str:
    """Return what follows the root of a path as Win32 resolves it (GetFullPathName)."""
    names: list[str] = []
    for name in path.split("\\"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name[:-1] if re.search(r"[^.]\.\Z", name) else name)
    resolved = "\\".join(names)
    return resolved + "\\" if path.endswith("\\") else resolved.rstrip(" .")


def _spelled(prefix: str, name: str) -> str:
    r"""Return an NT path with a prefix, or with ``\\?\`` if another NT path would be made of that."""
    if not prefix and _DRIVE.match(name):
        path = name
    elif not prefix and name[:4].upper() == "UNC\\":
        path, name = "\\\\" + name[4:], "UNC" + name[3:]
    else:
        path = (prefix or _DEVICE) + name
    return path if _parsed(path)[1] == name else _VERBATIM + name
