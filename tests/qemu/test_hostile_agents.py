"""Guests that are hostile: what each fault of an agent is reported as, and what it costs the host."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.qemu.hostile import ENDING, ENDLESS, IMAGE, SILENCE_SECONDS
from tests.qemu.patient import PATIENT_PYTHON
from tests.qemu.setup import CHECKOUT
from tests.qemu.vms import leaving_nothing
from uvm.backends.qemu.guestimage import build
from uvm.hresult import HResult

#: By how much the host's process may grow.
GROWN_BYTES = 16 << 20
#: How long its event loop may keep a task waiting, in processor time.
TURN_SECONDS = 0.05

PANIC = ("UnexpectedExit", HResult.HCS_E_GUEST_CRITICAL_ERROR)
#: What the caller of each fault that ends is told.
ERRORS = {
    "exit": ("VMExitedError", "HCS_E_GUEST_CRITICAL_ERROR"),
    "panic": ("VMExitedError", "HCS_E_GUEST_CRITICAL_ERROR"),
    "hang": ("AnswerLostError", f"the guest has answered nothing for {SILENCE_SECONDS:g} s"),
    "garbage": ("AnswerLostError", "the guest broke the protocol: a frame's header has no end"),
    "overrun": ("AnswerLostError", "bytes came where 16384 are allowed"),
    "lie": ("AnswerLostError", "an answer arrived to request 1099511627776, which is not open"),
    "flood": ("AnswerLostError", "the guest reported the exit of a container that is not there"),
}


def test_a_hostile_guest_is_reported_costs_the_host_little_and_disturbs_no_other(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    # Here, so that it costs that process no memory.
    build(IMAGE)
    command = [*PATIENT_PYTHON, "-m", "tests.qemu.hostile", anyio_backend_name, str(tmp_path)]
    with leaving_nothing(tmp_path) as pids:
        # It asserts itself that the other guest works.
        played = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=CHECKOUT)
        found = json.loads(played.stdout)
        pids += found["pids"]
    outcomes: dict[str, dict[str, Any]] = found["outcomes"]
    assert {*outcomes} == {*ENDING, *ENDLESS} == {*ERRORS, *ENDLESS}
    for fault, outcome in outcomes.items():
        error, text = ERRORS.get(fault, ("", ""))
        assert (fault, outcome["error"]) == (fault, error)
        assert text in outcome["text"]
        exits = PANIC if fault in ("exit", "panic") else ("ForcedExit", 0)
        assert (fault, outcome["exit_type"], outcome["code"]) == (fault, *exits)
        assert outcome["grown_bytes"] < GROWN_BYTES, outcome
        assert outcome["longest_turn_seconds"] < TURN_SECONDS, outcome
