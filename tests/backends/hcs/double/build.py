"""Builds the double, once for each state of its sources.

``python -m tests.backends.hcs.double.build [windows]`` prints where the libraries are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

__all__ = ["Libraries", "NoCompilerError", "build"]

Target = Literal["native", "windows"]

_SOURCES: Final = Path(__file__).parent
_ROOT: Final = _SOURCES.parents[3]
_DECLARATIONS: Final = _ROOT / "uvm" / "backends" / "hcs" / "declarations"
_CACHE: Final = _ROOT / "build" / "double"
#: Where libraries are that were built elsewhere: for Windows's Python, which has no compiler, or with a
#: sanitizer.
PREBUILT: Final = "UVM_HCS_DOUBLE"

_NETWORK: Final = "computenetwork.c"
_FLAGS: Final = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared")
#: At the end of the interpreter threads still sleep in the library. macOS's linker lacks the flag.
_NEVER_UNLOADED: Final = ("-Wl,-z,nodelete",) if sys.platform == "linux" else ()
_NATIVE_FLAGS: Final = (
    "-D_POSIX_C_SOURCE=200809L",
    "-fPIC",
    "-pthread",
    *_NEVER_UNLOADED,
    f"-I{_DECLARATIONS}",
)
_WINDOWS_FLAGS: Final = ("-D_WIN32_WINNT=0x0A00", "-static-libgcc")
_WINDOWS_COMPILER: Final = "x86_64-w64-mingw32-gcc"


class NoCompilerError(Exception):
    """There is no C compiler; the message lists those that were looked for."""


@frozen
class Libraries:
    """The two libraries."""

    computecore: Path
    computenetwork: Path


def build(target: Target = "native") -> Libraries:
    """Return the libraries, built of the current sources if they are not yet.

    :raises NoCompilerError: there is no compiler.
    """
    prebuilt = os.environ.get(PREBUILT)
    if prebuilt and target == "native":
        return _libraries(Path(prebuilt), "windows" if sys.platform == "win32" else "native")
    command = _compiler(target)
    directory = _CACHE / f"{target}-{_fingerprint(target, command)}"
    if not directory.exists():
        _build_into(directory, target, command)
    return _libraries(directory, target)


def _libraries(directory: Path, target: Target) -> Libraries:
    suffix = ".dll" if target == "windows" else ".so"
    return Libraries(directory / f"computecore{suffix}", directory / f"computenetwork{suffix}")


def _compiler(target: Target) -> str:
    names = (
        (_WINDOWS_COMPILER,)
        if target == "windows"
        else tuple(filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))
    )
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise NoCompilerError(f"there is no C compiler; looked for {', '.join(names)}")


def _fingerprint(target: Target, command: str) -> str:
    digest = hashlib.sha256(repr((target, command, _FLAGS, _NATIVE_FLAGS, _WINDOWS_FLAGS)).encode())
    headers = _DECLARATIONS.glob("*.h") if target == "native" else ()
    for path in sorted([*_SOURCES.glob("*.[ch]"), *headers]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build_into(directory: Path, target: Target, command: str) -> None:
    """Build beside the directory and rename: two processes may build at once."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as name:
        work = Path(name) / "done"
        work.mkdir()
        libraries = _libraries(work, target)
        core = [str(p) for p in sorted(_SOURCES.glob("*.c")) if p.name != _NETWORK]
        network = [str(_SOURCES / _NETWORK)]
        if target == "windows":
            import_library = str(Path(name) / "computecore.a")
            flags = [*_FLAGS, *_WINDOWS_FLAGS]
            core += ["-lole32", f"-Wl,--out-implib,{import_library}"]
            network += [import_library]
        else:
            flags = [*_FLAGS, *_NATIVE_FLAGS]
            core += [f"-Wl,-soname,{libraries.computecore.name}"]
            network += [str(libraries.computecore), "-Wl,-rpath,$ORIGIN"]
        _run([command, *flags, "-o", str(libraries.computecore), *core])
        _run([command, *flags, "-o", str(libraries.computenetwork), *network])
        try:
            work.rename(directory)
        except OSError:
            if not directory.exists():
                raise


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    libraries = build("windows" if sys.argv[1:] == ["windows"] else "native")
    print(libraries.computecore.parent)
