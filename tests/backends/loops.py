"""On which event loops the scenarios of the conformance suite are played.

A fault in each call is most of the time, and nothing in it depends on the loop but when a task is woken.
"""

from __future__ import annotations

import re
from typing import Final

from uvm.testing.backends import SCENARIOS, Scenario

__all__ = ["on_both_loops"]

_ON_ONE: Final = re.compile(r"any_call_of_.*(?<!is_cancelled_with_the_answer)")


def on_both_loops() -> list[tuple[str, Scenario]]:
    """Return the scenarios, each with a loop: on trio without the faults that do not depend on it."""
    on_trio = [each for each in SCENARIOS if not _ON_ONE.fullmatch(each.name)]
    return [("asyncio", each) for each in SCENARIOS] + [("trio", each) for each in on_trio]
