"""The end of a container, or of its state, which the VM's tasks carry out: no caller has to stay for it.

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

from collections.abc import Awaitable, Callable

import anyio.lowlevel

from uvm._async import Errand
from uvm._guest.access import GuestAccess
from uvm._log import Log
from uvm.errors import VMExitedError, own

_log = Log("uvm.gcs")


class ContainerEnd:
    """One end, carried out once.

    :param what: what ends, for the log.
    :param work: carries it out.
    """

    def __init__(self, guest: GuestAccess, what: str, work: Callable[[], Awaitable[object]]) -> None:
        self._guest = guest
        self._what = what
        self._work = work
        self._errand: Errand[None] | None = None

    def begin(self) -> bool:
        """Begin it, unless it is in flight or done; one that failed is begun anew.

        :return: it was begun just now. With a guest that has gone went all that there was to end.
        """
        if self._errand is not None and self._errand.error is None:
            return False
        errand = Errand(self._guest.name, "end container", self._carry_out)
        begun = self._guest.start_soon(errand.make)
        self._errand = errand if begun else None
        return begun

    async def _carry_out(self) -> None:
        try:
            await self._guest.call(self._work())
        except VMExitedError as error:
            _log.debug(self._guest.name, "%s: %s", self._what, error)

    async def wait(self) -> None:
        """Begin it, and wait for its outcome; a caller that is cancelled stops only its own wait."""
        self.begin()
        if (errand := self._errand) is None:
            await anyio.lowlevel.checkpoint()
            return
        await errand.wait()
        if errand.error is not None:
            raise own(errand.error)
