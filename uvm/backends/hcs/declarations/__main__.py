"""Generate the modules of ``_bindings`` from the headers in this directory, after each change of one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BINDINGS = HERE.parent / "_bindings"
PACKAGE = "uvm.backends.hcs._bindings"


def names() -> list[str]:
    """Return the names of the groups: of the headers without those of types and the prelude."""
    return sorted(
        path.stem for path in HERE.glob("*.h") if not path.stem.endswith("_types") and path.stem != "prelude"
    )


def source(name: str) -> str:
    """Return the C declarations of one group, types first."""
    parts = [HERE / "prelude.h", HERE / f"{name}_types.h", HERE / f"{name}.h"]
    return "\n".join(part.read_text("utf-8") for part in parts if part.exists())


def generate(name: str) -> str:
    """Return the text of the module for one group, in cffi's out-of-line form, which needs no parser."""
    from cffi import FFI
    from cffi.recompiler import make_py_source

    ffi = FFI()
    ffi.cdef(source(name))
    ffi.set_source(f"{PACKAGE}.{name}", None)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "module.py"
        make_py_source(ffi, f"{PACKAGE}.{name}", str(target))
        return target.read_text("utf-8")


def main() -> None:
    """Write all modules, and remove those without a header."""
    BINDINGS.mkdir(exist_ok=True)
    for stale in {path.stem for path in BINDINGS.glob("*.py")} - {*names(), "__init__"}:
        (BINDINGS / f"{stale}.py").unlink()
    for name in names():
        (BINDINGS / f"{name}.py").write_text(generate(name), "utf-8")
        print(f"{BINDINGS.name}/{name}.py", file=sys.stderr)


if __name__ == "__main__":
    main()
