"""How the host learns that a process in a guest has exited.

How it works
------------

::

    RUNNING ---- the wait is answered, or a probe ----> EXITED   wait() gives the exit code
       |
       |-------- the guest knows it no more ----------> LOST     wait() raises GuestError
       `-------- the connection closes ---------------> LOST     wait() raises BridgeClosedError

Right after the start of a process, one request asks the guest to wait for its exit, without a limit. It
survives a connection that breaks and comes back, costs no task, and its answer wakes all who wait.

That request, or its answer, may be lost with a connection, and the guest may have lost the exit. So a
*probe*, a second wait with a short limit, asks again after the guest has dialled again, and when the guest
says that there is no process to signal. A process that still runs after the guest dialled again is waited
for once more, and the answer that comes first counts.

The exit code of a process that the guest has forgotten is unknown. hcsshim reports 0 there, as if all had
gone well; here the wait fails.

Source: hcsshim internal/gcs/process.go.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from uvm._gcs.calls import Call
from uvm._gcs.link import GuestLink
from uvm._guest.exit import Exit
from uvm._log import Log
from uvm._wire.frames import Procedure
from uvm.errors import BridgeClosedError, GuestError, UnknownOutcomeError, UVMError, own
from uvm.hresult import HResult
from uvm.schema.gcs import WAIT_FOREVER_MS, WaitForProcessRequest, WaitForProcessResponse

_log = Log("uvm.gcs")

MAX_UINT32: Final = 0xFFFFFFFF

#: How long a probe lets the guest wait: hcsshim's ``exitProbeTimeoutMs`` after the guest dialled again, and
#: longer for a process that cannot be signalled: its exit is about to be known, or never will be.
_RESUME_PROBE_MS: Final = 50
_SIGNAL_PROBE_MS: Final = 1_000
#: However often a guest dials again.
_MAX_WAITS: Final = 2


class ExitWatch:
    """Waits for the exit of one process.

    :ivar exit: that exit.
    :ivar pid: the process.

    :raises BridgeClosedError: the connection to the guest is closed.
    """

    def __init__(self, link: GuestLink, container_id: str, pid: int) -> None:
        self._link = link
        self._container_id = container_id
        self.pid = pid
        self.exit: Exit[int] = Exit()
        self._waits = deque([self._ask(WAIT_FOREVER_MS, self._waited)])
        link.bridge.on_resume[self] = partial(self._probe, _RESUME_PROBE_MS)

    def doubt(self) -> None:
        """End the wait soon, with or without an exit code: the guest says that there is no such process.

        So it does where the guest has lost the exit (hcsshim's issue 2846).
        """
        self._probe(_SIGNAL_PROBE_MS)

    async def has_exited(self) -> bool:
        """Ask the guest. True: it has exited, or the guest knows it no more. False: it runs.

        :raises UVMError: the guest did not say.
        """
        call = self._ask(_SIGNAL_PROBE_MS, lambda _: None)
        try:
            await call.wait()
        finally:
            call.abandon()
        try:
            if not self.exit.settled:
                self._take(call)
        except GuestError as error:
            if error.hresult == HResult.ERROR_VMCOMPUTE_TIMEOUT:
                return False
            if error.hresult != HResult.ERROR_NOT_FOUND:
                raise
            self.doubt()
        return True

    def _ask(self, timeout_ms: int, then: Callable[[Call], None]) -> Call:
        request = WaitForProcessRequest(
            container_id=self._container_id, process_id=self.pid, timeout_in_ms=timeout_ms
        )
        forever = timeout_ms == WAIT_FOREVER_MS
        return self._link.bridge.submit(
            Procedure.WAIT_FOR_PROCESS,
            request,
            operation=f"wait for process {self.pid}",
            timeout_seconds=math.inf if forever else None,
            survives=forever,
            then=then,
        )

    def _waited(self, call: Call) -> None:
        """Take the answer to the wait without a limit, or that there will be none."""
        if self.exit.settled or call not in self._waits:
            return
        try:
            self._take(call)
        except BridgeClosedError:
            self._end(self._link.closed_error, cut_off=True)
        except GuestError as error:
            if error.hresult == HResult.ERROR_NOT_FOUND:
                self._waits.remove(call)
                if self._waits:
                    # The other may be answered.
                    self.doubt()
                else:
                    self._forgotten()
            else:
                # It may run.
                self._end(partial(own, error), cut_off=True)
        except UVMError as error:
            self._end(partial(own, error), cut_off=True)

    def _probe(self, timeout_ms: int, *, again: bool = True) -> None:
        if not self.exit.settled and not self._link.bridge.closed:
            self._ask(timeout_ms, lambda call: self._probed(call, timeout_ms, again))

    def _probed(self, call: Call, timeout_ms: int, again: bool) -> None:
        if self.exit.settled:
            return
        try:
            self._take(call)
        except GuestError as error:
            if error.hresult == HResult.ERROR_NOT_FOUND and again:
                # The answer to the wait, with which the guest forgot it, may be just behind this one.
                self._probe(timeout_ms, again=False)
            elif error.hresult == HResult.ERROR_VMCOMPUTE_TIMEOUT and timeout_ms == _RESUME_PROBE_MS:
                self._wait_anew()
            elif error.hresult in (HResult.ERROR_NOT_FOUND, HResult.ERROR_VMCOMPUTE_TIMEOUT):
                self._forgotten()
        except UVMError as error:
            # The wait without a limit is answered, now or after the next connection.
            _log.debug(self._link.name, "a probe of process %d: %s", self.pid, error)

    def _wait_anew(self) -> None:
        """Ask once more without a limit: the request before may have been lost, or not."""
        if self._link.bridge.closed:
            return
        self._waits.append(self._ask(WAIT_FOREVER_MS, self._waited))
        if len(self._waits) > _MAX_WAITS:
            self._waits.popleft().abandon()

    def _take(self, call: Call) -> None:
        """Take the exit code out of an answer; raises what the answer says instead."""
        code = call.result(WaitForProcessResponse).exit_code
        if not 0 <= code <= MAX_UINT32:
            raise UnknownOutcomeError(f"{call.operation}: the guest's answer cannot be read: no exit code")
        self.exit.report(code)
        self._end(None)

    def _forgotten(self) -> None:
        text = "the guest knows the process no more, so that its exit code is unknown"
        self._end(lambda: GuestError(f"wait for process {self.pid}", HResult.ERROR_NOT_FOUND, text))

    def _end(self, failure: Callable[[], Exception] | None, *, cut_off: bool = False) -> None:
        """Note that nothing more will be learnt.

        :param failure: makes the error that says why the exit code is unknown; None where it is known.
        """
        if failure is not None:
            self.exit.lose(failure, cut_off=cut_off)
        self._link.bridge.on_resume.pop(self, None)
        for each in self._waits:
            each.abandon()
