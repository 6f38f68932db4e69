"""Run Windows CPython under Wine: ``python -m tests.windows.run -- -m pytest tests/backends/hcs``.

Everything after ``--`` goes to ``python.exe``, whose exit status becomes this one's; 124 if it took too long.
The stand-ins of the DLLs are built first, where there is a compiler for them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.windows import setup

TIMED_OUT = 124
COMPILER = "x86_64-w64-mingw32-gcc"


def run(python: Path, arguments: list[str], *, timeout_seconds: float) -> int:
    """Run ``python.exe`` with these arguments, passing its output on, and return its exit status."""
    extra = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPYCACHEPREFIX": setup.windows_path(python.parent / "pycache"),
    }
    process = subprocess.Popen(
        [setup.wine(), str(python), *arguments],
        cwd=setup.CHECKOUT,
        env=setup.environment() | extra | _double() | {"UVM_WINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        if _pass_on(process, deadline=time.monotonic() + timeout_seconds):
            return process.returncode
        print(f"\nnot done after {timeout_seconds:.0f} seconds: ended", flush=True)
        return TIMED_OUT
    finally:
        _end(process)


def _double() -> dict[str, str]:
    """Build the double, and say where it is: there is no compiler on the Windows side."""
    if not shutil.which(COMPILER):
        return {}
    command = [sys.executable, "-m", "tests.backends.hcs.double.build", "windows"]
    built = subprocess.run(command, cwd=setup.CHECKOUT, check=False, capture_output=True, text=True)
    if built.returncode:
        raise setup.SetupError(f"the double cannot be built\n{built.stderr}")
    return {"UVM_HCS_DOUBLE": setup.windows_path(Path(built.stdout.strip()))}


def _pass_on(process: subprocess.Popen[bytes], *, deadline: float) -> bool:
    """Copy output until the process ends, not until the pipe does: what Wine leaves running holds it open.

    Returns whether the process ended before the deadline.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        readable, _, _ = select.select([pipe], [], [], 0 if ended else 0.05)
        data = os.read(pipe, 65536) if readable else b""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        if ended and not data:
            return True
        if readable and not data:
            time.sleep(0.05)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what the run leaves: its process group, which Wine's services, shared by all runs, are not in."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exit_on_signal(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal so that what is under way is ended too."""
    sys.exit(128 + signum)


def main() -> int:
    """Set up the Python version asked for, if need be, and run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.windows.run", description=__doc__)
    parser.add_argument("--python", choices=setup.EMBEDDED, default=setup.DEFAULT_VERSION)
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("arguments", nargs="+", metavar="-- ARGUMENT")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        return run(setup.set_up(options.python), options.arguments, timeout_seconds=options.timeout)
    except setup.SetupError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
