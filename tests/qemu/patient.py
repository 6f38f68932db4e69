"""Run a program in Python with the limits of the tests: ``python -m tests.qemu.patient -m MODULE``.

A program may also be a file, or ``-c CODE``. Its arguments follow.
"""

from __future__ import annotations

import runpy
import sys
from typing import Final

from tests.qemu.limits import be_patient

#: What a process of the tests that has VMs is started with.
PATIENT_PYTHON: Final = (sys.executable, "-m", "tests.qemu.patient")


def main(arguments: list[str]) -> None:
    """Run it as Python would."""
    be_patient()
    match arguments:
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [path, *_]:
            sys.argv = arguments
            runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
