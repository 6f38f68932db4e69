"""One container in a guest.

How it works
------------

The life of a container::

    create --+-- the guest refuses ---------> an error; the id is free again
             |
             |-- the caller is cancelled ---> ended and forgotten, as soon as the guest has answered
             v
          THERE ---- the guest's notification ----> EXITED -- delete_state --> forgotten by the guest
             |
             `------ the connection closes -------> LOST: wait() raises BridgeClosedError

In a Linux guest, a container is its first process: :meth:`Container.start` does nothing there, and
:meth:`Container.open_init` starts that process. The guest tells of the exit of the container only after it
has told of the exit of that process, and of that only once its output was read to the end, or closed.

Once the guest is gone, ending and forgetting what was in it succeeds at once (hcsshim's issue 2743).

Source: hcsshim internal/gcs/container.go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.lowlevel
from attrs import frozen

from uvm.backends.base import JSON
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    NotSupportedError,
    UndoFailedError,
    UVMError,
    VMStateError,
)
from uvm.gcs.bridge import Timeout
from uvm.gcs.link import GuestLink
from uvm.gcs.process import Process
from uvm.gcs.processes import start_process
from uvm.gcs.run import ConnectedHost
from uvm.gcs.specs import (
    Command,
    check_writable,
    container_init,
    container_process,
    host_process,
)
from uvm.gcs.wire import Procedure, parse
from uvm.schema.gcs import (
    ContainerModifySettingsRequest,
    GetPropertiesRequest,
    GetPropertiesResponse,
    RequestBase,
)
from uvm.schema.json import SchemaError, from_json, to_json
from uvm.schema.process import ProcessDetails, ProcessParameters
from uvm.schema.properties import PROPERTY_PROCESS_LIST, PROPERTY_STATISTICS, Properties, PropertyQuery
from uvm.structured import Flag, Opening

__all__ = ["Container", "ContainerExit"]

_log = logging.getLogger("uvm.gcs")

#: hcsshim's limit for the end of a container.
CLOSE_SECONDS: Final = 30.0
#: How long, once it was told to end, its output may still be read.
STREAM_GRACE_SECONDS: Final = 1.0

#: What a guest says of a container that it does not know, and of one that has exited.
_GONE: Final = frozenset({0xC037010E, 0xC0370110, 0x8037010E, 0x80370110})


@frozen
class ContainerExit:
    """How a container ended.

    :ivar type: ``GracefulExit`` and ``ForcedExit`` where it was asked to, ``UnexpectedExit`` where it ended
        by itself, whatever its exit code; text of the guest's.
    :ivar result: an HRESULT, unsigned; 0 for success.
    :ivar info: what the guest has to say of it: a document as JSON text, or nothing.
    """

    type: str
    result: int = 0
    info: str = ""


class Container(ConnectedHost):
    """A container in a guest. Made by :meth:`uvm.gcs.connection.GuestConnection.create_container`.

    As a context manager it is closed at the end; see :meth:`aclose`.

    :ivar id: its id.
    """

    def __init__(
        self,
        link: GuestLink,
        container_id: str,
        own_process: Mapping[str, Any],
        forget: Callable[[Container], None],
    ) -> None:
        super().__init__(link, container_id)
        self._forget = forget
        self._failure: Callable[[], Exception] | None = None
        self.id = container_id
        self._own_process = own_process
        self._ended = anyio.Event()
        self._exit: ContainerExit | None = None
        self._init: Process | None = None
        self._init_there = Flag()

    def __repr__(self) -> str:
        state = self._exit.type if self._exit else "lost" if self._ended.is_set() else "there"
        return f"<Container {self.id} ({state})>"

    @property
    def exit(self) -> ContainerExit | None:
        """How it ended; None while it has not, or where nobody was told."""
        return self._exit

    # Its life.

    async def start(self) -> None:
        """Start it. In a Linux guest it runs with its first process only: :meth:`open_init`."""
        seconds = self._link.timeouts.container_seconds
        await self._ask(Procedure.START, "start", timeout_seconds=seconds)

    def open_init(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> Opening[Process]:
        """Start the container's own, first process, which its specification describes. Await it, or enter it.

        :raises NotSupportedError: the guest runs Windows, whose containers have none.
        :raises GuestError: the guest refused.
        """
        return Opening(lambda: self._open_init(stdin, stdout, stderr))

    async def _open_init(self, stdin: bool, stdout: bool, stderr: bool) -> Process:
        if self._link.os == "windows":
            raise NotSupportedError(
                f"container {self.id}: a Windows container has no process of its own; run one in it"
            )
        terminal = self._own_process.get("terminal") is True
        return await start_process(
            self._link,
            self.id,
            (),
            container_init(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr and not terminal,
            terminal=terminal,
            on_start=self._started,
        )

    def _started(self, init: Process) -> None:
        self._init = init
        self._init_there.set()

    async def shutdown(self) -> None:
        """Ask it to end in order; where it has, or its guest has gone, nothing happens.

        When it has ended, :meth:`wait` tells; it may never.
        """
        await self._end(Procedure.SHUTDOWN_GRACEFUL, "shut down")

    async def terminate(self) -> None:
        """End it at once; where it has ended, or its guest has gone, nothing happens.

        When it has ended, :meth:`wait` tells.
        """
        await self._end(Procedure.SHUTDOWN_FORCED, "terminate")

    async def wait(self) -> ContainerExit:
        """Wait for its exit. Any number of tasks may wait.

        :raises BridgeClosedError: the connection to the guest closed before.
        :raises VMStateError: it was deleted before it ran.
        """
        if self._link.os == "windows" or self._ended.is_set():
            await self._ended.wait()
        else:
            async with anyio.create_task_group() as tasks:
                # Unread output would keep the guest from telling; this reads ahead of whoever reads it.
                tasks.start_soon(self._exit_of_init)
                await self._ended.wait()
                tasks.cancel_scope.cancel()
        if self._exit is None:
            assert self._failure is not None
            raise self._failure()
        return self._exit

    async def _exit_of_init(self) -> None:
        await self._init_there.wait()
        assert self._init is not None
        await self._exit_of(self._init)

    async def _exit_of(self, init: Process) -> None:
        with suppress(UVMError):
            await init.wait()

    async def delete_state(self) -> None:
        """Have the guest forget it, once it has exited; where it has already, nothing happens.

        :raises NotSupportedError: the guest cannot.
        :raises GuestError: the guest refused: it still runs, for instance.
        """
        supported = self._link.features.delete_container_state
        self._link.needs(supported, self._operation("delete the state of"), "DeleteContainerStateSupported")
        await self._release(Procedure.DELETE_CONTAINER_STATE, "delete the state of", abandonable=False)
        if not self._tells_of_its_exit and not self._ended.is_set():
            self.lost(lambda: VMStateError(f"container {self.id} was deleted before it ran"))
            self._forget(self)

    async def aclose(self) -> None:
        """End it, wait until it has ended, and have the guest forget it, where it can.

        :raises UVMError: part of that failed; the rest was done.
        """
        with anyio.CancelScope(shield=True):
            problems = [each for each in [await self._close_ending(), await self._close_state()] if each]
        if len(problems) > 1:
            said = "; and ".join(map(str, problems))
            raise UndoFailedError(f"closing container {self.id}: {said}", problems)
        if problems:
            raise problems[0]

    async def __aenter__(self) -> Container:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.aclose()
        except Exception as error:
            if exc is None:
                raise
            exc.add_note(f"and closing container {self.id} failed: {error}")

    async def _close_ending(self) -> Exception | None:
        if self._ended.is_set():
            return None
        problem: Exception | None = None
        try:
            await self.terminate()
        except UVMError as error:
            # It may be ending just now.
            problem = error
        if not self._tells_of_its_exit:
            return problem
        if self._init is not None:
            await self._see_off(self._init)
        if await self._ends_within(CLOSE_SECONDS if problem is None else STREAM_GRACE_SECONDS):
            return None
        return problem or UVMError(
            f"container {self.id}: it was told to end, and has not within {CLOSE_SECONDS:g} s"
        )

    async def _see_off(self, init: Process) -> None:
        """Let what it still writes be read, for a moment; unread, it would keep the guest from telling."""
        with anyio.move_on_after(STREAM_GRACE_SECONDS) as scope:
            await self._exit_of(init)
        if scope.cancelled_caught:
            await init.aclose()

    @property
    def _tells_of_its_exit(self) -> bool:
        """A Linux guest never tells of the exit of a container whose own process was not started."""
        return self._link.os == "windows" or self._init is not None

    async def _ends_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._ended.wait()
        return self._ended.is_set()

    async def _close_state(self) -> Exception | None:
        if not self._link.features.delete_container_state:
            return None
        try:
            await self.delete_state()
        except UVMError as error:
            return error
        return None

    # What it can be asked.

    def _parameters(self, wanted: Command) -> ProcessParameters:
        if self._link.os == "windows":
            return host_process(wanted, self._link.os)
        return container_process(wanted, self._own_process)

    async def properties(self, *types: str) -> JSON:
        """Query properties, by HCS's names (``Statistics``, ``ProcessList``, ...), as the guest gives them.

        :raises GuestError: the guest refused.
        :raises WireError: what it gave is no JSON object.
        """
        query = check_writable("the query", PropertyQuery(property_types=list(types)))
        answer = await self._link.bridge.call(
            Procedure.GET_PROPERTIES,
            GetPropertiesRequest(container_id=self.id, query=query),
            GetPropertiesResponse,
            operation=self._operation("query"),
            abandonable=True,
        )
        return parse(answer.properties.encode())

    async def statistics(self) -> JSON:
        """Ask for its statistics: HCS's of a Windows container, the cgroup metrics of a Linux one.

        Empty where the guest has none: the container has exited. Errors as of :meth:`properties`, and
        :class:`~uvm.schema.json.SchemaError` where they are no object.
        """
        properties = from_json(Properties, await self.properties(PROPERTY_STATISTICS))
        if self._link.os == "windows":
            return {} if properties.statistics is None else to_json(properties.statistics)
        metrics = properties.lcow_metrics or {}
        if not isinstance(metrics, dict):
            raise SchemaError("Properties.LCOWMetrics should be an object")
        return metrics

    async def processes(self) -> list[ProcessDetails]:
        """List its processes. Errors as of :meth:`statistics`."""
        return from_json(Properties, await self.properties(PROPERTY_PROCESS_LIST)).process_list

    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a ``ModificationRequest`` on it.

        :raises GuestError: the guest refused.
        :raises UnknownOutcomeError: the answer was lost.
        """
        await self._link.bridge.call(
            Procedure.MODIFY_SETTINGS,
            ContainerModifySettingsRequest(container_id=self.id, request=request),
            operation=self._operation("modify"),
        )

    # Requests without more.

    def _operation(self, verb: str) -> str:
        return f"{verb} container {self.id}"

    async def _end(self, procedure: Procedure, verb: str) -> None:
        if self._ended.is_set():
            await anyio.lowlevel.checkpoint()
            return
        await self._release(procedure, verb, abandonable=True)

    async def _release(self, procedure: Procedure, verb: str, *, abandonable: bool) -> None:
        """Ask for what has happened already where the container, or its guest, is gone."""
        try:
            await self._ask(procedure, verb, abandonable=abandonable)
        except BridgeClosedError as error:
            _log.debug("%s: %s", self._operation(verb), error)
        except GuestError as error:
            if error.result not in _GONE:
                raise

    async def _ask(
        self,
        procedure: Procedure,
        verb: str,
        *,
        timeout_seconds: Timeout = "default",
        abandonable: bool = False,
    ) -> None:
        await self._link.bridge.call(
            procedure,
            RequestBase(container_id=self.id),
            operation=self._operation(verb),
            timeout_seconds=timeout_seconds,
            abandonable=abandonable,
        )

    # What its table tells it.

    def exited(self, exit: ContainerExit) -> None:
        """It has exited."""
        self._exit = exit
        self._ended.set()

    def lost(self, failure: Callable[[], Exception]) -> None:
        """Nobody will be told of its exit any more; the function makes the error that says why."""
        self._failure = failure
        self._ended.set()
