"""The interpreter ends while systems are open, calls are in progress, and HCS sends events all the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.backends.hcs.ending import ENDINGS, EXIT_STATUS
from tests.backends.hcs.harness import require_double

ROOT = Path(__file__).parents[3]
LOOPS = ["asyncio", "trio"]
if "UVM_WINE" in os.environ:
    # Each program takes ten seconds there: one loop on each of the two Pythons.
    LOOPS = LOOPS[1:] if sys.version_info >= (3, 12) else LOOPS[:1]
#: Longer than any program takes that ends.
PATIENCE_SECONDS = 300

needs_late_threads = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="this Python starts no thread once it ends (gh-113964)"
)


@frozen
class End:
    """How a program ended.

    :ivar account: the misuses and leaks of the C API after everything else.
    """

    status: int
    errors: list[str]
    account: dict[str, Any]


def end(ending: str, loop: str) -> End:
    """Run ``tests.backends.hcs.ending`` to its end."""
    require_double()
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.backends.hcs.ending", ending, loop],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    return End(done.returncode, done.stderr.splitlines(), json.loads(done.stdout))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(each, marks=needs_late_threads if each == "in a thread" else ())
        for each in sorted(ENDINGS.keys() - {"raises", "hangs while closing"})
    ],
)
def test_the_program_ends_and_nothing_stays_open(ending: str, loop: str) -> None:
    ended = end(ending, loop)
    assert ended.account == {"misuses": [], "leaks": []}
    assert ended.status == (EXIT_STATUS if ending == "exits" else 0)
    # An abandoned loop may log something itself.
    assert ended.errors == [] or (ending == "abandoned" and "abandoned" in ended.errors[0])


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_that_ends_the_program_is_all_that_is_said(loop: str) -> None:
    ended = end("raises", loop)
    assert ended.account == {"misuses": [], "leaks": []}
    assert ended.status == 1
    assert ended.errors[0].startswith("Traceback")
    assert ended.errors[-1] == "RuntimeError: out of the loop"
    assert len([line for line in ended.errors if not line.startswith(" ")]) == 2


@needs_late_threads
@pytest.mark.parametrize("loop", LOOPS)
def test_a_host_that_hangs_does_not_keep_the_program_from_ending(loop: str) -> None:
    ended = end("hangs while closing", loop)
    assert (ended.status, ended.errors, ended.account["misuses"]) == (0, [], [])
    hanging = [line for line in ended.account["leaks"] if line.startswith("system ")]
    assert len(hanging) == 2
    assert hanging == ended.account["leaks"]
