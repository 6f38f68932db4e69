"""The tests of real VMs: ``make test-qemu``. On Debian and Ubuntu, installs what that takes.

``python -m tests.qemu -k NAME`` hands what it is called with to pytest, ``python -m tests.qemu --run
PROGRAM`` to a program in Python, which has what the tests have (``make demo-qemu``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.qemu import setup
from tests.qemu.limits import measured_boot_seconds
from uvm.errors import UVMError

# A VM is one process of QEMU that computes, on one processor.
AT_ONCE = 2
#: A test that hangs shows where it does: after so many times as long as a boot takes.
HANGING_BOOTS = 60
#: So many tests at most are run again: what fails more of them is no accident.
ACCIDENTS = 2
#: In the environment, where it is known that VMs can be run: if they cannot, that is a failure too.
REQUIRED = "UVM_QEMU_REQUIRED"
LOUD = "!" * 100


def main(arguments: list[str]) -> int:
    """Install, set up and run."""
    program = arguments[:1] == ["--run"]
    try:
        setup.set_up()
        boot = 0.0 if program else _boot_seconds()
    except setup.ImpossibleError as error:
        print(f"{LOUD}\nNOTHING WAS RUN, no real VM was tested: {error}\n{LOUD}", file=sys.stderr)
        # A machine that cannot run VMs fails no test; but who wants to see one run is not served.
        return 1 if arguments or os.environ.get(REQUIRED) else 0
    except setup.SetupError as error:
        print(error, file=sys.stderr)
        return 1
    if program:
        return subprocess.run([sys.executable, *arguments[1:]], cwd=setup.CHECKOUT, check=False).returncode
    print(f"a boot takes {boot:.1f} s", flush=True)
    os.environ[setup.ENABLED] = f"{boot:.1f}"
    hanging = f"faulthandler_timeout={HANGING_BOOTS * boot:.0f}"
    options = ("-o", hanging, "--durations=10", "--durations-min=5")
    outcome = _test("tests/qemu", "-n", str(AT_ONCE), *options, *arguments)
    failed = [] if arguments or outcome != pytest.ExitCode.TESTS_FAILED else _failed()
    if 0 < len(failed) <= ACCIDENTS:
        # Emulated processors share those of the machine with whatever else runs there.
        outcome = _test("-n", "0", *options, *failed)
        names = "\n".join(failed)
        print(f"{LOUD}\nFAILED, and run again, one VM at a time:\n{names}\n{LOUD}", file=sys.stderr)
    return outcome


def _failed() -> list[str]:
    """Return which tests of real VMs failed when they were run last."""
    noted = json.loads((setup.CHECKOUT / ".pytest_cache/v/cache/lastfailed").read_text())
    return [name for name in noted if name.startswith("tests/qemu/")]


def _test(*arguments: str) -> int:
    command = (sys.executable, "-m", "pytest", "-q", *arguments)
    return subprocess.run(command, cwd=setup.CHECKOUT, check=False).returncode


def _boot_seconds() -> float:
    """Return how long a VM takes to boot; where none does, nothing is gained by waiting for each test.

    :raises SetupError: it does not boot.
    """
    try:
        return measured_boot_seconds()
    except UVMError as error:
        raise setup.SetupError(f"no VM boots here: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
