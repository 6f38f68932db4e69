"""The test suite on Windows CPython, under Wine: ``make test-windows``. On Debian, installs what that takes.

``tests/backends/hcs`` calls Windows: it runs on both event loops, and what concerns sockets, threads and the
end of the interpreter runs on the oldest Python as well as on the newest. All the rest runs on one loop
(``tests/conftest.py``) of the newest: there, Windows differs in paths, time zones and the interpreter only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO

from attrs import frozen

from tests.windows import setup
from tests.windows.run import COMPILER, exit_on_signal

# Of what is needed, the Debian packages.
PACKAGES = {"wine": ("wine", "wine64"), COMPILER: ("gcc-mingw-w64-x86-64",)}

# A run waits for Wine's server more than it computes.
AT_ONCE = 3
LIMIT_SECONDS = 1500
# A test that hangs shows where, long before that.
HANGING_SECONDS = 60


@frozen
class Run:
    """One call of pytest: on a version of Windows' Python, or on the Python that runs this."""

    name: str
    arguments: tuple[str, ...]
    python: str | None = None

    def start(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start it; all it says goes to this file."""
        wine = [
            "tests.windows.run",
            "--python",
            str(self.python),
            "--timeout",
            str(LIMIT_SECONDS),
            "--",
            "-m",
        ]
        pytest = ["pytest", "-q", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={HANGING_SECONDS}"]
        return subprocess.Popen(
            [sys.executable, "-m", *(wine if self.python else []), *pytest, *self.arguments],
            cwd=setup.CHECKOUT,
            env=os.environ | {"HYPOTHESIS_PROFILE": "few"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


# What differs between the oldest Python and the newest.
HCS = "tests/backends/hcs/test_{}.py"
DIFFERENT = tuple(
    HCS.format(each)
    for each in ("hvsocket", "interpreter_end", "operations", "pipes", "poller", "sockets", "streams")
)

# The longest first. The compiler is on this side, and may be new here.
RUNS = (
    Run("tests/backends/hcs, 3.13", ("tests/backends/hcs",), "3.13"),
    Run("tests/backends, 3.13", ("tests/backends", "--ignore=tests/backends/hcs"), "3.13"),
    Run("the rest, 3.13", ("tests", "docs", "README.md", "--ignore=tests/backends"), "3.13"),
    Run("tests/backends/hcs, 3.11", DIFFERENT, "3.11"),
    Run("declarations, mingw-w64", (HCS.format("declarations"),)),
)


def install_missing() -> None:
    """Install the Debian packages that are missing; raises :exc:`~tests.windows.setup.SetupError`."""
    present = {"wine": setup.find_wine() is not None, COMPILER: shutil.which(COMPILER) is not None}
    missing = [package for what, packages in PACKAGES.items() if not present[what] for package in packages]
    if not missing:
        return
    wanted = f"make test-windows needs {' and '.join(missing)}"
    if not shutil.which("apt-get"):
        raise setup.SetupError(f"{wanted}, and there is no apt-get to install them with")
    root = [] if os.geteuid() == 0 else [shutil.which("sudo") or ""]
    if root == [""]:
        raise setup.SetupError(f"{wanted}; as root: apt-get install {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes"]
    try:
        setup.command(*apt, "update")
    except setup.SetupError as error:
        # The source that failed need not be the one that has them.
        print(error, file=sys.stderr)
    setup.command(*apt, "install", "--no-install-recommends", *missing)


def run_all() -> bool:
    """Run everything, a line for each as it ends, all it said if it failed; whether none did."""
    waiting = list(RUNS)
    running: dict[subprocess.Popen[bytes], tuple[Run, float, IO[bytes]]] = {}
    good = True
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                output = tempfile.TemporaryFile()  # noqa: SIM115
                run = waiting.pop(0)
                running[run.start(output)] = run, time.monotonic(), output
            for process in [process for process in running if process.poll() is not None]:
                good &= _tell(process.returncode, *running.pop(process))
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
            process.wait()
    return good


def _tell(status: int, run: Run, began: float, output: IO[bytes]) -> bool:
    output.seek(0)
    text = output.read().decode(errors="replace").rstrip()
    took = time.monotonic() - began
    if status == 0:
        print(f"  {run.name:<28}ok: {text.splitlines()[-1]}", flush=True)
    else:
        print(f"  {run.name:<28}FAILED after {took:.0f} s, exit status {status}\n{text}", flush=True)
    return status == 0


def main() -> int:
    """Install, set up and run."""
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        install_missing()
        for version in sorted({run.python for run in RUNS if run.python}):
            setup.set_up(version)
    except setup.SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if run_all() else 1


if __name__ == "__main__":
    sys.exit(main())
