"""Ends that the VM's tasks carry out, so that no caller has to stay for them.

How it works
------------

The end of a container, or of its state, takes requests that a guest may never answer. A caller begins it and
waits for its outcome; a caller that leaves stops only its own waiting, and what fails then is logged::

    NOT BEGUN -- begin --> IN FLIGHT -- done ---------------------> ENDED   begun again, nothing happens
        ^                     |  |
        |                     |  `--- the VM exits, or its guest ---> ENDED
        `------ it failed ----'

Of any number of callers that begin it, the first does, and all wait for the same outcome.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from attrs import define, field

from uvm._async import Flag
from uvm._guest.access import GuestAccess
from uvm.errors import VMExitedError, own

_log = logging.getLogger("uvm.gcs")


@define(eq=False)
class _Outcome:
    """What came of it, the last time that it was begun."""

    done: Flag = field(factory=Flag, init=False)
    error: Exception | None = field(default=None, init=False)
    waiting: int = field(default=0, init=False)


class Ending:
    """One end, carried out once.

    :param what: what ends, for the log.
    :param work: carries it out.
    """

    def __init__(self, guest: GuestAccess, what: str, work: Callable[[], Awaitable[object]]) -> None:
        self._guest = guest
        self._what = what
        self._work = work
        self._outcome: _Outcome | None = None

    def begin(self) -> bool:
        """Begin it, unless it is in flight or done; one that failed is begun anew.

        :return: it was begun just now.
        """
        if self._outcome is not None and self._outcome.error is None:
            return False
        outcome = _Outcome()
        begun = self._guest.start_soon(partial(self._run, outcome))
        self._outcome = outcome
        if not begun:
            # With the guest went all that there was to end.
            outcome.done.set()
        return begun

    async def _run(self, outcome: _Outcome) -> None:
        try:
            await self._guest.call(self._work())
        except VMExitedError as error:
            _log.debug("%s: %s: %s", self._guest.name, self._what, error)
        except Exception as error:
            outcome.error = error
            if not outcome.waiting:
                _log.warning("%s: %s, whose caller has gone: %s", self._guest.name, self._what, error)
        finally:
            outcome.done.set()

    async def wait(self) -> None:
        """Begin it, and wait for its outcome; a caller that is cancelled stops only its own wait."""
        self.begin()
        assert self._outcome is not None
        outcome = self._outcome
        outcome.waiting += 1
        try:
            await outcome.done.wait()
        finally:
            outcome.waiting -= 1
        if outcome.error is not None:
            raise own(outcome.error)
