"""The calls of a bridge: what became of each, and what is to be sent next. No I/O, no clock.

How it works
------------

A call has one of three states::

                | queued                      | sent
    ------------+-----------------------------+--------------------------------------------------
    its turn    | -> sent                     |
    answered    | the guest broke the         | ended: the response
                |   protocol: WireError       |
    abandon     | ended: UVMError; nothing    | ended: UnknownOutcomeError; its answer is owed
                |   was or will be sent       |
    its limit   |                             | ended: UnknownOutcomeError; its answer is owed
    resume      | stays                       | stays if it survives; otherwise ended:
                |                             |   UnknownOutcomeError, its answer is owed
    drop,       | ended: BridgeClosedError    | ended: UnknownOutcomeError, its answer is owed
      if urgent |                             |
    close       | ended: BridgeClosedError    | ended: AnswerLostError

and ``ended`` is the last. A call is removed from the table first, so that it ends once.

An answer that is owed is dropped when it comes. That of a call which starts something is not: a *late* call
takes the place of the one that ended, for the task that undoes what the guest started. It ends with the
answer, or with the connection. On another stream than that of its request it has the limit of a call again,
since the answer may have been lost.

A drop is the end of a stream, a resume is the end of the greeting on the next one. Urgent calls belong to a
greeting, and a greeting to one stream: their answers are of no use on another.

An answer is *due* that was asked for on this stream and has a limit, whether a caller still waits for it or
not.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from attrs import define, field

from uvm._async import Flag
from uvm._guest.quotes import without_quotes
from uvm._log import Log
from uvm._observed import Door, Observed, outcome_of, watched
from uvm._wire.frames import HostSide, Response, procedure_name
from uvm.errors import (
    AnswerLostError,
    BridgeClosedError,
    GuestError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
    WireError,
)
from uvm.schema.gcs import ResponseBase
from uvm.schema.json import SchemaError, dumps, from_json
from uvm.schema.secrets import printable, scrub

R = TypeVar("R", bound=ResponseBase)

_log = Log("uvm.gcs")

#: About how many bytes go out in one send.
_BATCH_BYTES: Final = 65536


@define(eq=False, repr=False)
class Call:
    """One request to the guest, from its submission to its end.

    :ivar operation: what was asked, for messages.
    :ivar sent: bytes of it may have reached the guest.
    :ivar done: it has ended.
    :ivar body: the guest's response, whatever that says; None without one.
    :ivar error: why there is no response.
    :ivar observed: the same, where it is observed.
    :ivar late: the call that ends with the answer that this one, which starts something, did not wait for.
    """

    _calls: Calls
    id: int
    #: The request's bytes, until they are sent. They may be secret.
    data: bytes
    procedure: int
    operation: str
    timeout_seconds: float = math.inf
    urgent: bool = False
    survives: bool = False
    #: It starts something, which is undone if no caller waits for the answer any more.
    starts: bool = False
    _then: Callable[[Call], None] | None = None
    deadline: float = field(default=math.inf, init=False)
    sent: bool = field(default=False, init=False)
    done: bool = field(default=False, init=False)
    body: dict[str, Any] | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    late: Call | None = field(default=None, init=False)
    observed: Observed | None = field(default=None, init=False)
    _ended: Flag = field(factory=Flag, init=False)

    def result(self, response_type: type[R]) -> R:
        """Return the response of a call that has ended.

        :raises GuestError: the guest refused.
        :raises BridgeClosedError: the connection closed; UnknownOutcomeError as well where the request had
            gone out.
        :raises UnknownOutcomeError: the answer was lost or cannot be read, or the call was abandoned.
        """
        if self.error is not None:
            raise self.error
        if self.body is None:
            raise RuntimeError(f"{self.operation}: the call has not ended")
        result = self.body.get("Result")
        if result and result.__class__ is int:
            raise self._refusal(result, self.body)
        try:
            return from_json(response_type, self.body)
        except SchemaError as e:
            problem = f"{self.operation}: the guest's answer cannot be read: {printable(str(e))}"
            raise UnknownOutcomeError(problem) from None

    def _refusal(self, result: int, body: dict[str, Any]) -> GuestError:
        message = body.get("ErrorMessage")
        text = printable(without_quotes(message)) if isinstance(message, str) else ""
        error = GuestError(self.operation, result, text)
        if (records := body.get("ErrorRecords")) and _log.traces:
            shown = printable(dumps(scrub(without_quotes(records))))
            name = self._calls.name
            _log.debug(name, "%s: %s: error records %s", self.operation, error.name, shown)
        return error

    async def wait(self) -> None:
        """Wait for the end of the call. Any number of tasks may; none that leaves disturbs the call."""
        await self._ended.wait()

    def abandon(self) -> None:
        """Want the answer no more. What was not sent never is; nothing happens if the call has ended."""
        if not self.done:
            self._calls.abandon(self)

    def start(self, now: float) -> None:
        """Count the time for the answer from now on."""
        self.sent = True
        self.data = b""
        self.deadline = now + self.timeout_seconds

    def end(self, body: dict[str, Any] | None, error: Exception | None = None) -> None:
        """End the call; only its table does."""
        self.done = True
        self.data = b""
        self.body = body
        self.error = error
        self._ended.set()
        try:
            if self._then is not None:
                self._then(self)
        except Exception:
            # Other calls are still to end, and the caller that could get this error is the one that failed.
            problem = "%s: the function to be called at the end failed"
            _log.exception(self._calls.name, problem, self.operation, operation=self.operation)
        if self.observed is not None:
            self._end_observation(self.observed)

    def _end_observation(self, observed: Observed) -> None:
        error = self.error
        result = None if self.body is None else self.body.get("Result")
        if error is None and type(result) is int and result:
            error = GuestError(self.operation, result)
        if error is None:
            observed.end("ok")
        else:
            # What was not sent changed nothing.
            observed.end(outcome_of(error) if self.sent else "refused", error)


class Calls:
    """The calls that have not ended.

    :ivar name: whose guest it is, for the log.
    :ivar host: the host's end of the connection: it takes the bytes of the guest.
    """

    __slots__ = ("_due", "_open", "_queued", "_urgent", "host", "name")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.host = HostSide()
        self._open: dict[int, Call] = {}
        self._due: set[int] = set()
        # Queues that a call can leave at any place.
        self._queued: OrderedDict[int, Call] = OrderedDict()
        self._urgent: OrderedDict[int, Call] = OrderedDict()

    @property
    def queued(self) -> bool:
        """Whether a call is yet to be sent."""
        return bool(self._queued or self._urgent)

    @property
    def unwanted(self) -> int:
        """How many answers are owed that no caller waits for."""
        return len(self.host.open) - len(self._open)

    @property
    def due(self) -> int:
        """How many answers are due."""
        return len(self._due)

    @property
    def next_deadline(self) -> float:
        """The earliest of all deadlines; infinite where there is none."""
        return min((call.deadline for call in self._open.values()), default=math.inf)

    def encode(self, procedure: int, request: object, operation: str) -> tuple[int, bytes]:
        """Open a request; OptionsError where it cannot be written."""
        try:
            return self.host.request(procedure, dumps(request))
        except (TypeError, ValueError) as e:
            raise OptionsError(f"{operation}: the request cannot be written as JSON: {e}") from e

    def queue(self, call: Call) -> None:
        """Put a new call at the end of its queue."""
        if watched():
            call.observed = Observed(Door.GUEST, self.name, procedure_name(call.procedure))
            call.observed.begin()
        self._open[call.id] = call
        (self._urgent if call.urgent else self._queued)[call.id] = call

    def take(self, *, only_urgent: bool) -> list[Call]:
        """Take calls out of the queues, urgent ones first, for one send."""
        queue = self._urgent if self._urgent or only_urgent else self._queued
        taken: list[Call] = []
        size = 0
        while queue and size < _BATCH_BYTES:
            _, call = queue.popitem(last=False)
            taken.append(call)
            size += len(call.data)
        return taken

    def start(self, call: Call, now: float) -> None:
        """Note that a call is sent."""
        call.start(now)
        if call.timeout_seconds != math.inf:
            self._due.add(call.id)

    def answer(self, response: Response) -> None:
        """End the call that a response answers, if any waits for it.

        :raises WireError: the guest cannot know the request yet.
        """
        self._due.discard(response.id)
        call = self._open.get(response.id)
        if call is None:
            return
        if not call.sent:
            raise WireError(f"{procedure_name(call.procedure)} was answered before it was sent")
        del self._open[call.id]
        call.end(response.body)

    def abandon(self, call: Call) -> None:
        """End a call whose caller wants the answer no more."""
        if call.sent:
            problem = f"{call.operation}: abandoned before the answer came"
            self._forget(call, UnknownOutcomeError(problem))
        else:
            self._forget(call, UVMError(f"{call.operation}: withdrawn before it was sent"))

    def expire(self, now: float) -> None:
        """End the calls that should have been answered by now."""
        for call in [each for each in self._open.values() if each.deadline <= now]:
            # One that ends may end others.
            if not call.done:
                problem = f"{call.operation}: no answer within {call.timeout_seconds:g} s"
                self._forget(call, UnknownOutcomeError(problem))

    def restart(self, now: float) -> list[Call]:
        """Begin with another stream; return the calls whose answers were lost with the last one."""
        self.host.restart()
        self._due.clear()
        sent = [call for call in self._open.values() if call.sent]
        for call in sent:
            # The answer may still come, and has all its time again.
            call.start(now)
        return [call for call in sent if not call.survives]

    def lose(self, calls: Iterable[Call], why: str) -> None:
        """End those of some calls that have not ended, because their stream has."""
        for call in list(calls):
            if not call.done:
                problem = f"{call.operation}: {why}"
                self._forget(call, UnknownOutcomeError(problem) if call.sent else BridgeClosedError(problem))

    def drop(self, why: str) -> None:
        """End the urgent calls: the stream has ended."""
        self.lose([call for call in self._open.values() if call.urgent], why)

    def close(self, error: Callable[[type[BridgeClosedError]], BridgeClosedError]) -> None:
        """End all calls, each with an error of its own."""
        for call in list(self._open.values()):
            if not call.done:
                call.starts = False
                self._forget(call, error(AnswerLostError if call.sent else BridgeClosedError))

    def _forget(self, call: Call, error: Exception) -> None:
        del self._open[call.id]
        if not call.sent:
            # It is not open if the guest has answered what it cannot know.
            if call.id in self.host.open:
                self.host.withdraw(call.id)
            del (self._urgent if call.urgent else self._queued)[call.id]
        elif call.starts:
            self._owe(call)
        call.end(None, error)

    def _owe(self, call: Call) -> None:
        """Have a call wait for the answer in place of one that ends."""
        late = Call(self, call.id, b"", call.procedure, call.operation, call.timeout_seconds, survives=True)
        late.sent = True
        # Over another stream than that of its request the answer may be lost, so that the wait has an end.
        late.deadline = math.inf if call.id in self._due else call.deadline
        self._open[call.id] = call.late = late
