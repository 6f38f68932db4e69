"""A container in a guest, whoever asks for it: what can be asked of it.

There are two kinds: ``uvm._gcs.container`` is one over our own connection to the guest, and
``uvm._hcsguest.container`` one that HCS hosts.

In a Linux guest, a container is its first process: the guest does nothing at :meth:`Container.start`, and
:meth:`Container.open_init` starts that process. The guest tells of the exit of the container only after it
has told of the exit of that process, and of that only once its output was read to the end, or closed.

Once the guest is gone, ending and forgetting what was in it succeeds at once (hcsshim's issue 2743).

Source: hcsshim internal/cow and internal/gcs/container.go.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.lowlevel
from attrs import frozen

from uvm._async import Flag, Opening
from uvm._guest.access import GuestAccess
from uvm._guest.process import Process
from uvm._guest.run import ProcessHost
from uvm._guest.specs import Command, container_init, container_process, host_process, spec_of
from uvm.backend import JSON
from uvm.errors import (
    BridgeClosedError,
    NotSupportedError,
    OptionsError,
    RefusedError,
    UndoFailedError,
    UVMError,
)
from uvm.hresult import SYSTEM_ENDED
from uvm.schema.container import HostedSystem
from uvm.schema.gcs import LinuxHostedSystem
from uvm.schema.json import SchemaError, from_json, to_json
from uvm.schema.process import ProcessDetails, ProcessParameters
from uvm.schema.properties import PROPERTY_PROCESS_LIST, PROPERTY_STATISTICS, Properties

_log = logging.getLogger("uvm.gcs")

#: hcsshim's limit for the end of a container.
CLOSE_SECONDS: Final = 30.0
#: How long, once it was told to end, its output may still be read.
STREAM_GRACE_SECONDS: Final = 1.0


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


class Container(ProcessHost):
    """A container in a guest. Made by ``create_container`` of a VM, or of a connection.

    As a context manager it is closed at the end; see :meth:`aclose`.

    :ivar id: its id.
    """

    def __init__(self, guest: GuestAccess, container_id: str, own_process: Mapping[str, Any]) -> None:
        self._guest = guest
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

    @abstractmethod
    async def start(self) -> None:
        """Start it. In a Linux guest it runs with its first process only: :meth:`open_init`.

        Nothing runs in one that HCS hosts, nor in a Windows container, before it was started.

        :raises GuestError: the guest refused.
        :raises HostError: HCS, which hosts it, refused: it was started before, say; or the guest did.
        """

    def open_init(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> Opening[Process]:
        """Start the container's own, first process, which its specification describes. Await it, or enter it.

        :raises NotSupportedError: the guest runs Windows, whose containers have none.
        :raises GuestError: the guest refused.
        """
        return Opening(self._open_init(stdin, stdout, stderr))

    async def _open_init(self, stdin: bool, stdout: bool, stderr: bool) -> Process:
        if self._guest.os == "windows":
            raise NotSupportedError(
                f"container {self.id}: a Windows container has no process of its own; run one in it"
            )
        terminal = self._own_process.get("terminal") is True
        pipes = {"stdin": stdin, "stdout": stdout, "stderr": stderr and not terminal}
        return await self._run((), container_init(), pipes, terminal, self._started)

    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        return await self._run(wanted.args, self._parameters(wanted), pipes, wanted.terminal)

    def _started(self, init: Process) -> None:
        self._init = init
        self._init_there.set()

    async def shutdown(self) -> None:
        """Ask it to end in order; where it has, or its guest has gone, nothing happens.

        When it has ended, :meth:`wait` tells; it may never.
        """
        await self._end(forced=False)

    async def terminate(self) -> None:
        """End it at once; where it has ended, or its guest has gone, nothing happens.

        When it has ended, :meth:`wait` tells.
        """
        await self._end(forced=True)

    async def wait(self) -> ContainerExit:
        """Wait for its exit. Any number of tasks may wait.

        :raises BridgeClosedError: the connection to the guest closed before.
        :raises VMStateError: it was deleted before it ran.
        """
        if self._guest.os == "windows" or self._ended.is_set():
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

    @abstractmethod
    async def delete_state(self) -> None:
        """Have it forgotten, once it has exited; where it has been already, nothing happens.

        :raises NotSupportedError: the guest cannot.
        :raises GuestError: the guest refused: it still runs, for instance.
        :raises VMStateError: it still runs, and HCS, which hosts it, would end it.
        """

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
        with self._guest.clock.move_on_after(STREAM_GRACE_SECONDS) as scope:
            await self._exit_of(init)
        if scope.cancelled_caught:
            await init.aclose()

    @property
    def _tells_of_its_exit(self) -> bool:
        """A Linux guest never tells of the exit of a container whose own process was not started."""
        return self._guest.os == "windows" or self._init is not None

    async def _ends_within(self, seconds: float) -> bool:
        with self._guest.clock.move_on_after(seconds):
            await self._ended.wait()
        return self._ended.is_set()

    # What it can be asked.

    def _parameters(self, wanted: Command) -> ProcessParameters:
        if self._guest.os == "windows":
            return host_process(wanted, self._guest.os)
        return container_process(wanted, self._own_process)

    @abstractmethod
    async def properties(self, *types: str) -> JSON:
        """Query properties, by HCS's names (``Statistics``, ``ProcessList``, ...), as the guest gives them.

        :raises GuestError: the guest refused.
        :raises HostError: HCS, which hosts it, refused: it has exited, for instance; or the guest did.
        :raises WireError: what it gave is no JSON object.
        """

    async def statistics(self) -> JSON:
        """Ask for its statistics: HCS's of a Windows container, the cgroup metrics of a Linux one.

        Empty where the guest has none: the container has exited. Errors as of :meth:`properties`, and
        :class:`~uvm.schema.json.SchemaError` where they are no object.
        """
        properties = from_json(Properties, await self.properties(PROPERTY_STATISTICS))
        if self._guest.os == "windows":
            return {} if properties.statistics is None else to_json(properties.statistics)
        metrics = properties.lcow_metrics or {}
        if not isinstance(metrics, dict):
            raise SchemaError("Properties.LCOWMetrics should be an object")
        return metrics

    async def processes(self) -> list[ProcessDetails]:
        """List its processes. Errors as of :meth:`statistics`."""
        return from_json(Properties, await self.properties(PROPERTY_PROCESS_LIST)).process_list

    @abstractmethod
    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a ``ModificationRequest`` on it.

        :raises GuestError: the guest refused.
        :raises HostError: HCS refused, which hosts it, or the guest that it asked.
        :raises UnknownOutcomeError: the answer was lost.
        """

    # What the kinds do each in their way.

    @abstractmethod
    async def _run(
        self,
        args: tuple[str, ...],
        parameters: ProcessParameters,
        pipes: Mapping[str, bool],
        terminal: bool,
        on_start: Callable[[Process], None] = lambda _: None,
    ) -> Process:
        """Start a process in it.

        :param on_start: called when it was started, also where the caller has been cancelled meanwhile.
        """

    @abstractmethod
    async def _ask_to_end(self, *, forced: bool) -> None:
        """Ask for its end."""

    @abstractmethod
    async def _close_state(self) -> Exception | None:
        """Have it forgotten, at the end; give what went wrong."""

    # Its end.

    def _operation(self, verb: str) -> str:
        return f"{verb} container {self.id}"

    async def _end(self, *, forced: bool) -> None:
        if self._ended.is_set():
            await anyio.lowlevel.checkpoint()
            return
        await self._release(self._ask_to_end(forced=forced))

    async def _release(self, request: Awaitable[None]) -> None:
        """Await a request for what has happened already where the container, or its guest, is gone."""
        try:
            await request
        except BridgeClosedError as error:
            _log.debug("container %s: %s", self.id, error)
        except RefusedError as error:
            if error.hresult not in SYSTEM_ENDED:
                raise

    def exited(self, exit: ContainerExit) -> None:
        """It has exited."""
        self._exit = exit
        self._ended.set()

    def lost(self, failure: Callable[[], Exception]) -> None:
        """Nobody will be told of its exit any more; the function makes the error that says why."""
        self._failure = failure
        self._ended.set()


def container_config(document: object) -> JSON:
    """Give the document of a container, a model or a JSON object, as JSON.

    :raises OptionsError: it is none.
    """
    if isinstance(document, LinuxHostedSystem | HostedSystem):
        try:
            return to_json(document)
        except RecursionError:
            raise OptionsError("the document of the container nests too deeply") from None
    if isinstance(document, Mapping):
        return dict(document)
    raise OptionsError(f"the document of a container is a JSON object, not a {type(document).__name__}")


def own_process(config: JSON, os: str) -> Mapping[str, Any]:
    """Give the first process that the document of a container describes; a Windows container has none.

    :raises OptionsError: the document of a Linux container holds no specification, or not the essential.
    """
    process: Mapping[str, Any] = spec_of(config)["process"] if os == "linux" else {}
    return process
