"""A CPython of this machine, as a guest gets it: the binary and the modules that a program imports.

CPython finds its standard library from where its binary is, so all of it has the same path in the guest. The
modules of Python are compiled into the one zip that every CPython has on its path; modules of C are files, at
their own path. The interpreter itself is asked what it imports: it need not be the one that runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import frozen

from uvm.errors import NotSupportedError

#: What CPython imports by itself when it is needed.
_ALWAYS: Final = (
    *("encodings.ascii", "encodings.latin_1", "encodings.utf_8", "linecache", "runpy"),
    *("tokenize", "traceback"),
)

#: Prints where the interpreter is, and the files of all that it loads by importing modules. What cannot be
#: imported is left out: imports in functions may be for another system, or be no modules but names in one.
_PROBE: Final = """
import importlib, importlib.machinery, json, os, sys
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
def origin(name, module):
    spec = getattr(module, "__spec__", None)
    if spec is None or spec.name != name:
        # It has put another module into its place, as collections.abc does.
        parent = name.rpartition(".")[0]
        path = getattr(sys.modules[parent], "__path__", []) if parent in sys.modules else None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
    return spec.origin if spec is not None and spec.has_location else None
found = {name: origin(name, module) for name, module in list(sys.modules.items()) if name != "__main__"}
files = {name: path for name, path in found.items() if path is not None}
ends = [next(path for path in sys.path if path.endswith(end)) for end in (".zip", "lib-dynload")]
print(json.dumps({
    "executable": os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable),
    "implementation": sys.implementation.name,
    "version": list(sys.version_info[:3]),
    "library": os.path.dirname(os.__file__),
    "archive": ends[0],
    "extensions": ends[1],
    "loaded": sorted(sys.modules),
    "files": files,
}))
"""

#: Compiles sources into a zip: ``[[name in the zip, path], ...]`` on standard input. Nothing in it depends on
#: when or where it is made.
_COMPILE: Final = """
import importlib.util, json, sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_STORED) as archive:
    for name, path in json.load(sys.stdin):
        with open(path, "rb") as file:
            source = file.read()
        code = compile(source, name.removesuffix("c"), "exec", dont_inherit=True, optimize=2)
        # A pyc that is never compared with its source.
        header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
        archive.writestr(zipfile.ZipInfo(name), header + __import__("marshal").dumps(code))
"""


@frozen
class Interpreter:
    """A CPython.

    :ivar executable: its binary.
    :ivar version: as ``3.11.7``.
    :ivar library: the directory of its standard library.
    :ivar archive: the zip of its path, which need not exist.
    :ivar extensions: the directory of its modules of C.
    :ivar loaded: the modules that it imported.
    :ivar files: their files; those that are built in or frozen have none.
    """

    executable: str
    version: str
    library: str
    archive: str
    extensions: str
    loaded: frozenset[str]
    files: Mapping[str, str]

    @property
    def sources(self) -> dict[str, str]:
        """The modules that are sources, by name."""
        return {name: path for name, path in sorted(self.files.items()) if path.endswith(".py")}

    @property
    def binaries(self) -> dict[str, str]:
        """The modules that are shared libraries, by name."""
        return {name: path for name, path in sorted(self.files.items()) if not path.endswith(".py")}

    def compile(self, sources: Mapping[str, str], archive: str) -> None:
        """Compile modules into a zip.

        :param sources: their files, by name.
        :raises NotSupportedError: one cannot be compiled by this interpreter.
        """
        named = [[_name_in_zip(name, path), path] for name, path in sorted(sources.items())]
        _run(self.executable, _COMPILE, archive, input=json.dumps(named))


def this_interpreter() -> str:
    """Return the interpreter that runs this."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def ask(executable: str, modules: Iterable[str]) -> Interpreter:
    """Ask an interpreter what it loads by importing modules.

    :raises NotSupportedError: it does not run, or is no CPython from 3.11 on.
    """
    answer = _run(executable, _PROBE, json.dumps(sorted({*_ALWAYS, *modules})))
    try:
        said: dict[str, Any] = json.loads(answer)
    except ValueError:
        problem = f"a guest image takes CPython from 3.11 on, and {executable} is none"
        raise NotSupportedError(problem) from None
    version = said["version"]
    if said["implementation"] != "cpython" or version < [3, 11]:
        found = f"{said['implementation']} {'.'.join(map(str, version))}"
        raise NotSupportedError(f"a guest image takes CPython from 3.11 on, and {executable} is {found}")
    return Interpreter(
        executable=said["executable"],
        version=".".join(map(str, version)),
        library=said["library"],
        archive=said["archive"],
        extensions=said["extensions"],
        loaded=frozenset(said["loaded"]),
        files=said["files"],
    )


def _name_in_zip(module: str, path: str) -> str:
    inner = "/__init__.pyc" if os.path.basename(path) == "__init__.py" else ".pyc"
    return module.replace(".", "/") + inner


def _run(executable: str, program: str, argument: str, input: str | None = None) -> str:
    command = [executable, "-I", "-S", "-c", program, argument]
    standard_input = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **standard_input)
    except OSError as e:
        raise NotSupportedError(f"the Python {executable} cannot be started: {e.strerror}") from e
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise NotSupportedError(f"the Python {executable} cannot be taken into the guest image: {last}")
    return done.stdout
