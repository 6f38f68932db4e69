"""Where something belongs: to this process, and to one event loop of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from attrs import frozen

from uvm._arguments import kind_of
from uvm.errors import VMStateError

if TYPE_CHECKING:
    import asyncio


class Bound:
    """The base of what is bound to a VM, and to the process that holds that: no copy of it could be used."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{kind_of(self)} can be neither copied nor pickled: its VM is bound to this process")


@frozen(eq=False, repr=False)
class Home:
    """The event loop to which something belongs.

    :ivar thread: the name of the loop's thread.
    """

    thread: str
    _loop: object
    _running_loop: Callable[[], object]

    @classmethod
    def here(cls) -> Home:
        """Return the loop that runs now."""
        # The function of the event loop itself: anyio's costs ten times as much.
        trio = trio_lowlevel()
        if trio is None:
            from asyncio import get_running_loop as running
        else:
            running = trio.current_trio_token
        return cls(threading.current_thread().name, running(), running)

    def is_here(self) -> bool:
        """Return whether it is the loop that runs now; each loop is one thread's."""
        try:
            return self._running_loop() is self._loop
        except RuntimeError:
            return False

    def check(self, what: str) -> None:
        """Refuse what another event loop, or none, asks for.

        :param what: what belongs to this loop.
        :raises VMStateError: this is not the loop.
        """
        if not self.is_here():
            raise VMStateError(
                f"{what} belongs to an event loop of the thread {self.thread}, and is used from another, "
                f"of the thread {threading.current_thread().name}; nothing was done. Call it "
                "from its own loop, as anyio.from_thread.run and asyncio.run_coroutine_threadsafe do"
            )


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of asyncio that runs now; asyncio is loaded with the first, and never on trio."""
    import asyncio

    return asyncio.get_running_loop()


def trio_lowlevel() -> Any:
    """Return what trio has for libraries such as this, if the task that runs now is trio's; None on asyncio.

    trio need not be installed. As the guest of a loop of asyncio it has tasks of its own.
    """
    # It has no attributes yet while another thread imports it.
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    return lowlevel if lowlevel is not None and lowlevel.in_trio_task() else None
