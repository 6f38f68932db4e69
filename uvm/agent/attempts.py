"""Attempts at what may succeed a little later, without an event that says when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

_PAUSE_SECONDS: Final = 0.005


def attempts(seconds: float, longest_pause: float = _PAUSE_SECONDS) -> Iterator[None]:
    """Yield for each attempt, with a pause before every one but the first.

    :param seconds: when the last one begins; there is one in any case.
    :param longest_pause: that to which the pauses grow, in seconds.
    """
    until, pause = time.monotonic() + seconds, _PAUSE_SECONDS
    yield
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, longest_pause)
        yield
