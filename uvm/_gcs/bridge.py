"""The bridge: requests to the guest and their answers, over any number of streams, one after the other.

How it works
------------

A bridge is in one of four states::

             | down               | greeting              | connected             | closed
    ---------+--------------------+-----------------------+-----------------------+-----------------
    run      | -> greeting        | refused               | refused               | ends at once
    greeted  |                    | -> connected; lost    |                       |
             |                    |   calls end, queued   |                       |
             |                    |   ones go out         |                       |
    submit   | queued             | queued; sent only if  | sent                  | BridgeClosedError
             |                    |   it is urgent        |                       |
    drop     |                    | -> down               | -> down               |
    close    | -> closed          | -> closed             | -> closed             | nothing

A *drop* is an end of the stream that a guest may recover from by dialling again: it ended, even in the
middle of a message, or it broke. The owner then serves the next stream with :meth:`Bridge.run`, or closes the
bridge. The bridge closes itself, for good, when going on makes no sense: the guest broke the protocol,
answers nothing, or failed the greeting; or the one to be notified failed, or ``run`` was cancelled. What
all this means for each call, :mod:`uvm._gcs.calls` says.

While a stream is served, the caller of ``run`` reads and watches the deadlines, and a task does the greeting.
Another writes, as long as there is something to write: no cancelled caller leaves half a message behind, and
what many ask at once goes out together. Where few answers are due and the stream is an
:class:`~uvm.backend.EagerByteStream`, a request goes out as it is submitted, and the writer begins with what
the stream did not take. An idle bridge has no task but its owner's. A call costs no cancel scope, and its
time counts from when it is sent: the limit is on the guest, not on our queue.
The reader stops reading for a moment at the earliest deadline that was known, and looks whether its call was
answered; answers in time need not move that alarm.

A guest that does not answer one request costs no other caller the connection: that call ends, or its caller
leaves. The bridge is closed only if the guest is *silent*: if it sends nothing for the limit of a call
although answers are due::

    heard, or the first answer is due -- half the limit --> asked for its properties -- the rest --> closed

Linux guests refuse that question, which is as good: the time begins anew with any message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from uvm._gcs.calls import Call, Calls
from uvm._guest.clock import GuestClock
from uvm._guest.quotes import without_quotes
from uvm._guest.stdio import close_quietly
from uvm._home import Home
from uvm._log import Log
from uvm._wire.frames import HEADER_SIZE, Notification, Procedure, Response, procedure_name
from uvm.backend import BROKEN_STREAM, ByteStream, EagerByteStream
from uvm.errors import BridgeClosedError, VMStateError, WireError
from uvm.schema.gcs import HOST_CONTAINER_ID, ContainerNotification, GetPropertiesRequest, ResponseBase
from uvm.schema.json import SchemaError, dumps, from_json
from uvm.schema.secrets import printable, scrub

R = TypeVar("R", bound=ResponseBase)

_log = Log("uvm.gcs")

_CHUNK_BYTES: Final = 65536
#: While fewer answers are due, a request is sent by itself, which costs less than a task.
_FEW: Final = 8
#: How many answers a guest may owe to calls that have ended.
_MAX_UNWANTED: Final = 65536
#: What is asked also of a guest that owes more.
_ENDS: Final = frozenset(
    {
        Procedure.SHUTDOWN_GRACEFUL,
        Procedure.SHUTDOWN_FORCED,
        Procedure.SIGNAL_PROCESS,
        Procedure.DELETE_CONTAINER_STATE,
    }
)


class Bridge:
    """One connection to a guest, over any number of streams, one after the other.

    It belongs to one event loop. See the module for what it promises.

    :param name: whose guest it is, for messages.
    :param notify: called with each notification of the guest, in order, between the answers. What it raises
        closes the bridge.
    :param rpc_timeout_seconds: how long a call may take unless it says something else.
    :param clock: what the limits are measured by.
    :ivar closed: it is closed, for good.
    :ivar connected: a stream is served, and the greeting on it is done.
    :ivar calls: the calls that have not ended.
    :ivar on_resume: called, in order, each time that another stream is connected after the first that was,
        before anything that was queued goes out; what waits for something in the guest puts itself in, as
        the key, and takes itself out.
    """

    def __init__(
        self,
        name: str,
        *,
        notify: Callable[[ContainerNotification], None],
        rpc_timeout_seconds: float = 300.0,
        clock: GuestClock | None = None,
    ) -> None:
        self.on_resume: dict[object, Callable[[], None]] = {}
        self._name = name
        self._notify = notify
        self._rpc_timeout_seconds = rpc_timeout_seconds
        self.calls = Calls(name)
        self._clock = clock or GuestClock()
        self.closed = False
        self._cause: BaseException | None = None
        self.connected = False
        self._greeted = False
        # Of the stream that is served.
        self._stream: ByteStream | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._send_nowait: Callable[[bytes], int] | None = None
        self._home: Home | None = None
        self._ended = True
        self._end_cause: Exception | None = None
        self._writing = False
        # By when the guest has to take what is being sent: what waits behind it has no deadline yet.
        self._send_by = math.inf
        # When the guest was last heard, or the first answer was due; it was asked for a sign since then.
        self._heard_at = -math.inf
        self._asked = False
        # What ends the reading at the earliest deadline.
        self._alarm = math.inf
        self._reading = self._clock.limit(math.inf)

    @property
    def error(self) -> BridgeClosedError | None:
        """Why nothing can be asked any more, as a fresh exception; None while the bridge is open."""
        return self._new_error(BridgeClosedError) if self.closed else None

    async def run(self, stream: ByteStream, greeting: Callable[[], Awaitable[None]]) -> Exception | None:
        """Serve a stream until it ends or the bridge closes, and close the stream.

        :param greeting: what comes before everything else on a new stream; its calls have to be urgent.
            One that raises closes the bridge. It is cancelled where the stream ends before.
        :return: what ended it; None where the guest closed the stream in order, or the bridge was
            closed without a cause. Whether the bridge is closed now, :attr:`closed` says.
        :raises RuntimeError: another stream is being served.
        """
        if self._tasks is not None:
            raise RuntimeError(f"{self._name}: the bridge serves a stream already")
        try:
            if self.closed:
                return self.error
            self._home = Home.here()
            await self._serve(stream, greeting)
        finally:
            self._stream = self._tasks = None
            await close_quietly(stream, self._name)
        return self._end_cause

    def submit(
        self,
        procedure: int,
        request: object,
        *,
        operation: str,
        timeout_seconds: float | None = None,
        urgent: bool = False,
        survives: bool = False,
        starts: bool = False,
        then: Callable[[Call], None] | None = None,
    ) -> Call:
        """Queue a request.

        :param request: a model of :mod:`uvm.schema.gcs`, or a JSON object; it is written down at once.
        :param operation: what is asked, for messages.
        :param timeout_seconds: how long the guest may take, from when the request is sent; None is the
            bridge's own limit, infinity any time.
        :param urgent: it is a part of the greeting: it goes out before it is done, and ends with the stream.
        :param survives: it stays over the end of a stream, for an answer on the next one. Whether that comes
            is unknown: request or answer may have been lost with the stream.
        :param starts: it starts something. The answer that it did not wait for ends its ``late`` call.
        :param then: called once, when the call has ended, however it did. It must not raise.
        :raises BridgeClosedError: the bridge is closed.
        :raises VMStateError: the bridge is served in another event loop.
        :raises OptionsError: JSON has no form for the request.
        """
        if self.closed:
            raise self._new_error(BridgeClosedError)
        if self._home is not None:
            self._home.check(f"the guest of {self._name}")
        request_id, data = self.calls.encode(procedure, request, operation)
        timeout = self._rpc_timeout_seconds if timeout_seconds is None else timeout_seconds
        call = Call(
            self.calls,
            request_id,
            data,
            procedure,
            operation,
            timeout,
            urgent,
            survives=survives,
            starts=starts,
            then=then,
        )
        self.calls.queue(call)
        if survives:
            # No caller waits for it to be sent; what is still queued is not lost with the stream.
            self._start_writer()
        else:
            self._send()
        return call

    async def call(
        self,
        procedure: int,
        request: object,
        response_type: type[R],
        *,
        operation: str,
        timeout_seconds: float | None = None,
        urgent: bool = False,
    ) -> R:
        """Send a request and return the guest's response; parameters and errors as of :meth:`submit`, and:

        A cancelled caller leaves at once. A call that is not sent yet is withdrawn then; the answer to
        another one is dropped.

        :param response_type: the model of the response.
        :raises GuestError: the guest refused.
        :raises UnknownOutcomeError: the request was sent, and its answer was lost, cannot be read, or did not
            come in time.
        :raises VMStateError: the guest owes too many answers.
        """
        # What is submitted may be sent at once.
        await anyio.lowlevel.checkpoint_if_cancelled()
        self.check_owed(procedure, operation)
        call = self.submit(
            procedure, request, operation=operation, timeout_seconds=timeout_seconds, urgent=urgent
        )
        try:
            await call.wait()
        finally:
            call.abandon()
        return call.result(response_type)

    def check_owed(self, procedure: int, operation: str) -> None:
        """Refuse what is asked of a guest that owes too many answers, unless it ends something.

        :raises VMStateError: it does.
        """
        if self.calls.unwanted >= _MAX_UNWANTED and procedure not in _ENDS:
            raise VMStateError(
                f"{operation}: the guest of {self._name} owes {self.calls.unwanted:,} answers to calls that "
                "have ended; nothing was sent, and what runs in it goes on. Wait for the guest, or terminate "
                "the VM"
            )

    def close(self, cause: BaseException | None = None) -> None:
        """Close the bridge for good: end all calls and the service of the stream. Again, it does nothing."""
        if self.closed:
            return
        self.closed = True
        self._cause = cause
        _log.debug(self._name, "the bridge closes: %r", cause)
        self._end_stream(cause if isinstance(cause, Exception) else None)
        self.calls.close(self._new_error)

    def _new_error(self, error_type: type[BridgeClosedError]) -> BridgeClosedError:
        reason = "" if self._cause is None else f": {printable(str(self._cause) or repr(self._cause))}"
        error = error_type(f"{self._name}: the connection to the guest is closed{reason}")
        error.__cause__ = self._cause
        return error

    # One stream.

    async def _serve(self, stream: ByteStream, greeting: Callable[[], Awaitable[None]]) -> None:
        self._heard_at, self._asked = self._clock.now(), False
        lost = self.calls.restart(self._heard_at)
        self._alarm = self.calls.next_deadline
        self._ended = False
        self._end_cause = None
        async with anyio.create_task_group() as tasks:
            self._stream, self._tasks = stream, tasks
            self._send_nowait = stream.send_nowait if isinstance(stream, EagerByteStream) else None
            tasks.start_soon(self._greet, greeting, lost)
            await self._read(stream)

    async def _greet(self, greeting: Callable[[], Awaitable[None]], lost: Sequence[Call]) -> None:
        try:
            await greeting()
            if self._ended:
                return
            self.connected = True
            if self._greeted or self.calls.queued:
                # By a task: first the callbacks below are called.
                self._start_writer()
            self.calls.lose(lost, "the connection to the guest broke before the answer came")
            resumed = list(self.on_resume.values()) if self._greeted else []
            self._greeted = True
            for each in resumed:
                each()
        except Exception as e:
            # One that fails because its stream has ended is no failed greeting.
            if not self._ended:
                self.close(e)

    def _drop(self, cause: Exception | None) -> None:
        if not self._ended:
            _log.debug(self._name, "the stream has ended: %r", cause)
            self._end_stream(cause)
            self.calls.drop("the connection to the guest broke during the greeting")

    def _end_stream(self, cause: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self.connected = False
        self._end_cause = cause
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    async def _read(self, stream: ByteStream) -> None:
        try:
            while True:
                with self._clock.limit(self._alarm) as self._reading:
                    while True:
                        self._take(await stream.receive(_CHUNK_BYTES))
                self._check_deadlines()
        except anyio.EndOfStream:
            self._drop(self._truncation())
        except BROKEN_STREAM as e:
            self._drop(e)
        except Exception as e:
            # A stream of another backend may raise anything; the owner's tasks are not to end by it.
            self.close(e)
        finally:
            # Neither dropped nor closed: run is cancelled.
            if not self._ended:
                self.close()

    def _truncation(self) -> WireError | None:
        try:
            self.calls.host.end()
        except WireError as e:
            return e
        return None

    def _take(self, data: bytes) -> None:
        try:
            for message in self.calls.host.receive(data):
                if self.closed:
                    return
                if _log.traces:
                    self._trace_received(message)
                self._heard_at, self._asked = self._clock.now(), False
                if isinstance(message, Response):
                    self.calls.answer(message)
                else:
                    self._notify(_notification(message))
        except Exception as e:
            # Not what the stream raises: another stream would not mend it.
            self.close(e)

    async def _write(self, stream: ByteStream, unsent: bytes) -> None:
        try:
            # Nothing is sent any more once the stream has ended: its calls have ended.
            while not self._ended and (data := unsent or self._next_data()):
                unsent = b""
                await stream.send(data)
        except BROKEN_STREAM as e:
            self._drop(e)
        except Exception as e:
            self.close(e)
        finally:
            self._writing = False
            self._send_by = math.inf

    def _next_data(self) -> bytes:
        """Take what is to be sent next; its calls count as sent from now on."""
        calls = self.calls.take(only_urgent=not self.connected)
        if _log.traces:
            self._trace_sent(calls)
        data = b"".join([call.data for call in calls])
        self._start(calls)
        return data

    def _send(self) -> None:
        """Have what is queued sent: at once where that can be, else by the writer."""
        if self._writing or self._ended:
            return
        # What many ask at once goes out together.
        if self._send_nowait is None or self.calls.due >= _FEW:
            self._start_writer()
        elif unsent := self._send_at_once(self._send_nowait):
            self._start_writer(unsent)

    def _send_at_once(self, send_nowait: Callable[[bytes], int]) -> bytes:
        """Send what is queued, as far as the stream takes it; return what counts as sent and is not."""
        while data := self._next_data():
            try:
                taken = send_nowait(data)
            except Exception:
                # The writer finds it out too.
                taken = 0
            if taken < len(data):
                return data[taken:]
        self._send_by = math.inf
        return b""

    def _start_writer(self, unsent: bytes = b"") -> None:
        tasks, stream = self._tasks, self._stream
        if tasks is not None and stream is not None and not self._writing and not self._ended:
            self._writing = True
            tasks.start_soon(self._write, stream, unsent)

    def _start(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        now = self._clock.now()
        if not self.calls.due:
            self._heard_at, self._asked = now, False
        self._send_by = now + self._rpc_timeout_seconds
        for call in calls:
            self.calls.start(call, now)
        earliest = min(self._next_check(), *(call.deadline for call in calls))
        if earliest < self._alarm:
            self._alarm = earliest
            self._reading.move(earliest)

    def _next_check(self) -> float:
        """When to look whether the guest is silent, or takes no bytes."""
        if not self.calls.due:
            return self._send_by
        share = 1.0 if self._asked else 0.5
        return min(self._send_by, self._heard_at + share * self._rpc_timeout_seconds)

    def _check_deadlines(self) -> None:
        now, limit = self._clock.now(), self._rpc_timeout_seconds
        if self._send_by <= now:
            self.close(TimeoutError(f"the guest has taken no bytes for {limit:g} s"))
        elif self.calls.due and self._heard_at + limit <= now:
            self.close(TimeoutError(f"the guest has answered nothing for {limit:g} s"))
        else:
            self.calls.expire(now)
            if self._next_check() <= now:
                self._ask_for_sign()
            self._alarm = min(self.calls.next_deadline, self._next_check())

    def _ask_for_sign(self) -> None:
        """Ask what any guest answers, or refuses, at once."""
        self._asked = True
        request = GetPropertiesRequest(container_id=HOST_CONTAINER_ID)
        self.submit(Procedure.GET_PROPERTIES, request, operation="ask for a sign of the guest")

    # Tracing. Bodies hold secrets, and text that the guest chose.

    def _trace_sent(self, calls: Sequence[Call]) -> None:
        for call in calls:
            what, body = procedure_name(call.procedure), json.loads(call.data[HEADER_SIZE:])
            _log.debug(self._name, "-> %d %s, %d bytes: %s", call.id, what, len(call.data), _shown(body))

    def _trace_received(self, message: Response | Notification) -> None:
        if isinstance(message, Response):
            what = f"{message.id} {procedure_name(message.procedure)}"
        else:
            what = "notification"
        _log.debug(self._name, "<- %s: %s", what, _shown(without_quotes(message.body)))


def _shown(body: dict[str, Any]) -> str:
    return printable(dumps(scrub(body)))


def _notification(message: Notification) -> ContainerNotification:
    try:
        return from_json(ContainerNotification, message.body)
    except SchemaError as e:
        raise WireError(f"a notification cannot be read: {printable(str(e))}") from None
