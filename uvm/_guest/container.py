"""A container in a guest: what can be asked of it, over our own connection or through HCS.

How it works
------------

In a Linux guest, a container is its first process: the guest does nothing at :meth:`Container.start`, and
:meth:`Container.open_init` starts that process. The guest reports the exit of the container only after it
has reported the exit of that process, and that only once its output was read to the end, or closed.

The report of the exit may be lost with a connection. So a container that is said to be gone, by a refusal or
by the deletion of its state, has ended ``GuestTimeouts.grace_seconds`` later, if no report comes::

    THERE -- reported ------------------------------------> ENDED   wait() returns how
      |
      |----- said to be gone --> DOUBTED --- a moment later --> ENDED   "Unknown"
      |
      |----- deleted before it ran -----------------------> LOST    wait() raises VMStateError
      `----- the guest goes ------------------------------> LOST    wait() raises BridgeClosedError

Closing it ends it and deletes its state, at once or when its layers were released: see
:mod:`uvm._guest.states`. The VM's tasks do that, and a caller only waits for it: see :mod:`uvm._errands`.
Once the guest is gone, ending and forgetting what was in it succeeds at once (hcsshim's issue 2743).

Source: hcsshim internal/cow and internal/gcs/container.go.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, final

import anyio
import anyio.lowlevel
from attrs import frozen

from uvm._arguments import kind_of
from uvm._async import Flag, end_after, errors_of, opens
from uvm._checks import checked, instance, text
from uvm._errands import Release
from uvm._guest.access import GuestAccess
from uvm._guest.exit import Exit
from uvm._guest.process import Launch, Process, exit_of
from uvm._guest.run import ProcessHost
from uvm._guest.signals import signal_options
from uvm._guest.specs import (
    Command,
    check_container_id,
    check_writable,
    container_process,
    host_process,
    paths_in,
    pipes_of,
    spec_of,
)
from uvm._guest.states import Closing
from uvm._log import Log
from uvm._repr import Value, brief
from uvm.backend import JSON
from uvm.errors import (
    AnswerLostError,
    BridgeClosedError,
    NotSupportedError,
    OptionsError,
    RefusedError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
    together,
)
from uvm.hresult import SYSTEM_ENDED, hresult_name
from uvm.schema.container import HostedSystem
from uvm.schema.gcs import LinuxHostedSystem, LinuxProcessParameters
from uvm.schema.json import SchemaError, from_json, to_json
from uvm.schema.process import ProcessDetails
from uvm.schema.properties import PROPERTY_PROCESS_LIST, PROPERTY_STATISTICS, Properties

if TYPE_CHECKING:
    from uvm._guest.updates import Change, Setting, Settings

T = TypeVar("T")

_log = Log("uvm.gcs")

#: How often it is asked again to end: a stream may break, and the next one over the questions that follow.
_REPEATS: Final = 2


_HOW: Final = {"GracefulExit": "as asked", "ForcedExit": "terminated", "UnexpectedExit": "by itself"}


@frozen(repr=False)
class ContainerExit(Value):
    """How a container ended.

    :ivar type: text of the guest's: ``GracefulExit`` if it was asked to end, ``ForcedExit`` if it was
        terminated, ``UnexpectedExit`` if it ended by itself, as most do, whatever its exit code. ``Unknown``
        if the guest's report was lost.
    :ivar result: an HRESULT, unsigned; 0 for success.
    :ivar info: what the guest has to say of it: a document as JSON text, or nothing.
    """

    type: str
    result: int = 0
    info: str = ""

    def __str__(self) -> str:
        how = _HOW.get(self.type, self.type)
        return f"{how} ({hresult_name(self.result)})" if self.result else how


class ContainerHandle(Protocol):
    """A container, by either connection. What is refused comes as GuestError or HostError.

    :ivar id: the container's id.
    :ivar exit: the container's exit, to be.
    """

    id: str
    exit: Exit[ContainerExit]

    async def start(self) -> None:
        """Start it."""

    async def run(self, launch: Launch) -> Process:
        """Start a process in it."""

    def init_started(self, exit: Exit[int]) -> None:
        """Note that the container's own process was started, with whose exit the container ends."""

    def start_lost(self) -> None:
        """Find out what became of the container's own process: the answer to its start was lost."""

    async def end(self, *, forced: bool) -> None:
        """Ask for its end."""

    async def delete_state(self, *, runs: bool) -> None:
        """Have it forgotten.

        :param runs: its exit is yet to be reported.
        :raises VMStateError: that would end it.
        """

    async def forget(self) -> bool:
        """Have it forgotten, at the end; False where the guest cannot."""

    async def properties(self, *types: str) -> JSON:
        """Query properties."""

    async def modify(self, request: JSON) -> None:
        """Have a ``ModificationRequest`` carried out."""


@final
class Container(ProcessHost):
    """A container in a guest, of ``create_container`` or ``open_container`` of a VM, or of a connection.

    As a context manager it is closed at the end; see :meth:`aclose`.

    :ivar id: its id.
    """

    def __init__(self, guest: GuestAccess, handle: ContainerHandle, config: JSON | None) -> None:
        self.id: str = handle.id
        self._guest = guest
        self._handle = handle
        # One that was opened by its id was created elsewhere, and may run.
        opened = config is None
        self._config: JSON = config or {}
        linux = guest.os == "linux"
        self._own_process: Mapping[str, Any] = (
            spec_of(self._config)["process"] if linux and not opened else {}
        )
        self._directories = _directories_of(self._config)
        self._init: Process | None = None
        # Those beside its own that were started by this object and run, the oldest first.
        self._others: dict[Process, None] = {}
        self._runs = opened
        self._init_there = Flag()
        # Its own process was started elsewhere, or the answer to its start was lost, so that it may run.
        self._may_run = opened and linux
        self._closing = self._ended_by(self._close)
        self._deletion = self._ended_by(self._delete_state)

    def _ended_by(self, work: Callable[[], Awaitable[None]]) -> Release:
        """Return an end of it that the VM's tasks carry out."""
        guest = self._guest
        return Release(guest.name, "end container", lambda: guest.call(work()), guest.start_soon)

    def __repr__(self) -> str:
        if self.exit is not None:
            state = f"exited: {self.exit.type}"
        elif self._handle.exit.settled:
            state = "lost"
        else:
            state = "running" if self._runs else "created"
        return brief(f"<Container {self.id} ({state})>")

    @property
    def exit(self) -> ContainerExit | None:
        """How it ended; None while it has not, and where that is unknown."""
        return self._handle.exit.how

    async def start(self) -> None:
        """Start it. In a Linux guest it runs with its first process only: :meth:`open_init`.

        Nothing runs in one that HCS hosts, nor in a Windows container, before it was started.

        :raises GuestError: the guest refused.
        :raises HostError: HCS, which hosts it, refused: it was started before, say; or the guest did.
        """
        await self._guest.call(self._handle.start())
        # A Linux container runs with its own process.
        self._runs = self._guest.os == "windows"

    @opens
    async def open_init(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> Process:
        """Start the container's own, first process, which its specification describes. Await it, or enter it.

        :raises NotSupportedError: a Windows container has none; or it was opened by its id.
        :raises GuestError: the guest refused.
        :raises UnknownOutcomeError: the answer was lost; it may run.
        """
        if self._guest.os == "windows":
            raise NotSupportedError(
                f"container {self.id}: a Windows container has no process of its own; run one in it"
            )
        if not self._own_process:
            raise NotSupportedError(
                f"container {self.id}: it was opened by its id, so that its specification is unknown; what "
                "created it starts its own process"
            )
        terminal = self._own_process.get("terminal") is True
        pipes = pipes_of(terminal, stdin=stdin, stdout=stdout, stderr=stderr)
        launch = Launch((), LinuxProcessParameters(), pipes, terminal, self._started)
        try:
            return await self._guest.call(self._handle.run(launch))
        except anyio.get_cancelled_exc_class():
            # What the guest may start all the same is killed then.
            self._may_run = True
            raise
        except UnknownOutcomeError:
            self._may_run = True
            self._handle.start_lost()
            raise

    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        if self._guest.os == "windows":
            parameters = host_process(wanted, self._guest.os)
        else:
            parameters = container_process(wanted, self._own_process)
        launch = Launch(wanted.args, parameters, pipes, wanted.terminal, self._other_started)
        return await self._guest.call(self._handle.run(launch))

    def _other_started(self, process: Process) -> None:
        self._others[process] = None
        exit_of(process).then(lambda: self._others.pop(process))

    def _started(self, init: Process) -> None:
        self._init, self._runs = init, True
        self._init_there.set()
        self._handle.init_started(exit_of(init))

    async def signal(self, signal: int | str) -> bool:
        """Send a signal to all of its processes that were started by this object; its own comes last.

        The guest cannot signal what these have started; a Linux container ends with its own process.

        :param signal: as for :meth:`uvm.Process.signal`, whose errors it raises. Where a process is refused,
            the others are signalled all the same.
        :return: False: none of them runs.
        """
        signal_options(signal, self._guest.os)
        sent: list[bool] = []

        async def send(process: Process) -> None:
            sent.append(await process.signal(signal))

        errors = await errors_of(partial(send, process) for process in [*self._others])
        if self._init is not None:
            errors += await errors_of([partial(send, self._init)])
        if errors:
            gone = (error for error in errors if isinstance(error, VMExitedError))
            raise next(gone, together(f"signalling container {self.id}", errors))
        return any(sent)

    async def shutdown(self) -> None:
        """Ask it to end in order; where it has, or its guest has gone, nothing happens.

        :meth:`wait` returns when it has ended, which may be never.
        """
        with suppress(VMExitedError):
            await self._guest.call(self._end(forced=False))

    async def terminate(self) -> None:
        """End it at once; where it has ended, or its guest has gone, nothing happens.

        :meth:`wait` returns when it has ended.
        """
        with suppress(VMExitedError):
            await self._guest.call(self._end(forced=True))

    async def wait(self) -> ContainerExit:
        """Wait for its exit. Any number of tasks may wait.

        :raises BridgeClosedError: the connection to the guest closed before.
        :raises VMExitedError: the VM exited before.
        :raises VMStateError: it was deleted before it ran.
        """
        return await self._guest.call(self._wait())

    async def _wait(self) -> ContainerExit:
        if self._guest.os != "windows" and not self._handle.exit.settled:
            async with anyio.create_task_group() as tasks:
                # Unread output would keep the guest from its report; this reads ahead of the reader.
                tasks.start_soon(self._exit_of_init)
                with suppress(UVMError):
                    await self._handle.exit.wait()
                tasks.cancel_scope.cancel()
        return await self._handle.exit.wait()

    async def _exit_of_init(self) -> None:
        await self._init_there.wait()
        assert self._init is not None
        with suppress(UVMError):
            await self._init.wait()

    async def delete_state(self) -> None:
        """Have it forgotten, once it has exited; where it has been already, nothing happens.

        :raises NotSupportedError: the guest cannot.
        :raises GuestError: the guest refused.
        :raises VMStateError: it still runs; or its layers are mounted, or something else in its bundle.
            Nothing was sent.
        """
        self._guest.states.check_unmounted(self.id, self._directories)
        await self._deletion.wait()

    async def _delete_state(self) -> None:
        runs = self._reports_its_exit and not self._handle.exit.settled
        await self._unless_gone(self._handle.delete_state(runs=runs))
        self._forgotten()

    async def _forget(self) -> None:
        """Have it forgotten, where the guest can, after it has ended."""
        seconds = self._guest.timeouts.close_seconds
        with self._guest.clock.move_on_after(seconds):
            if await self._repeated(lambda: self._unless_gone(self._handle.forget())) is not False:
                self._forgotten()
            return
        raise UnknownOutcomeError(
            f"delete the state of container {self.id}: no answer within {seconds:g} s; it may be deleted"
        )

    def _forgotten(self) -> None:
        if self._reports_its_exit:
            doubt(self._guest, self._handle.exit)
        else:
            self._handle.exit.lose(lambda: VMStateError(f"container {self.id} was deleted before it ran"))

    async def aclose(self) -> None:
        """End it, wait until it has ended, and have the guest delete its state, where it can.

        The VM's tasks do that; a caller that is cancelled stops only the waiting. While its layers are
        mounted, or something else in its bundle, its state is kept; it is deleted when the last of that was
        released. Closed again, it does nothing; one of which a part failed is closed anew.

        :raises UVMError: part of that failed; the rest was done.
        """
        self._begin_closing()
        await self._closing.wait()

    async def __aenter__(self) -> Container:
        return self

    async def __aexit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        await end_after(exc, self.aclose, f"closing container {self.id}")

    def _begin_closing(self) -> None:
        if self._closing.begin():
            named = partial(paths_in, self._config, self._guest.os)
            self._guest.states.begin_closing(self.id, Closing(named, self._directories))

    async def _close(self) -> None:
        problems: list[Exception] = []
        try:
            for part in (self._close_ending, self._close_state):
                try:
                    await part()
                except UVMError as error:
                    problems.append(error)
        finally:
            self._guest.states.end_closing(self.id)
        if problems:
            raise together(f"closing container {self.id}", problems)

    async def _close_ending(self) -> None:
        """End it and wait for its exit, as long as that may take."""
        seconds = self._guest.timeouts.close_seconds
        with self._guest.clock.move_on_after(seconds):
            await self._end_in_order()
            return
        if not self._handle.exit.settled:
            raise UVMError(
                f"close container {self.id}: it was terminated, and did not report its exit "
                f"within {seconds:g} s"
            )

    async def _end_in_order(self) -> None:
        if self._handle.exit.settled:
            return
        problem: UVMError | None = None
        try:
            await self._repeated(lambda: self._end(forced=True))
        except UVMError as error:
            # It may be ending just now.
            problem = error
        if self._reports_its_exit:
            if self._init is not None:
                await self._see_off(self._init)
            grace_seconds = self._guest.timeouts.grace_seconds
            # Said to be gone just now, it has ended a moment later.
            if await self._ends_within(2 * grace_seconds if problem else grace_seconds):
                return
            if problem is None:
                # The report of its exit may be lost: asked again, the guest says that it is gone.
                with suppress(UVMError):
                    await self._end(forced=True)
                with suppress(UVMError):
                    await self._handle.exit.wait()
        if problem is not None:
            raise problem

    async def _close_state(self) -> None:
        states, tasks = self._guest.states, self._guest.tasks
        if states.busy(self._directories) and tasks is not None:
            states.keep(self.id, self._directories, self._forget, tasks)
        else:
            await self._forget()

    async def _repeated(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request of which two do no more than one, again where its answer was lost."""
        for _ in range(_REPEATS):
            try:
                return await request()
            except UnknownOutcomeError as error:
                _log.debug(self._guest.name, "container %s: asked again: %s", self.id, error)
        return await request()

    async def _see_off(self, init: Process) -> None:
        """Let what it still writes be read, for a moment; unread, it would keep the guest from its report."""
        seconds = self._guest.timeouts.grace_seconds
        with self._guest.clock.move_on_after(seconds), suppress(UVMError):
            await init.wait()
            return
        await init.aclose()

    @property
    def _reports_its_exit(self) -> bool:
        """A Linux guest never reports the exit of a container whose own process was not started."""
        return self._guest.os == "windows" or self._init is not None or self._may_run

    async def _ends_within(self, seconds: float) -> bool:
        with self._guest.clock.move_on_after(seconds), suppress(UVMError):
            await self._handle.exit.wait()
        return self._handle.exit.settled

    async def properties(self, *types: str) -> JSON:
        """Query properties, by HCS's names (``Statistics``, ``ProcessList``, ...), as the guest returns them.

        :raises GuestError: the guest refused.
        :raises HostError: HCS, which hosts it, refused: it has exited, for instance; or the guest did.
        :raises WireError: what it returned is no JSON object.
        """
        for name in types:
            checked(name, text, "a type of properties")
        return await self._guest.call(self._handle.properties(*types))

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

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Update its resources in OCI terms: all that is asked for, or nothing. What is absent or null stays.

        Everything is checked first, and a step that fails has those before it changed back. A caller that is
        cancelled leaves at once, and the update goes on to its end.

        :param resources: ``LinuxResources`` of a Linux container, which its guest gets as they are. Of a
            Windows container, ``WindowsResources`` with ``memory.limit``, rounded up to an even number of
            MiB, and one of ``cpu.count``, at most the VM's processors, ``cpu.maximum`` and ``cpu.shares``.
        :raises OptionsError: a value is out of its range, or there is no such resource; nothing was sent.
        :raises NotSupportedError: processors of a Windows container are to be chosen (``cpu.affinity``), or
            to be changed by a host older than build 19042; nothing was sent.
        :raises VMStateError: it does not run; nothing was sent.
        :raises GuestError: the guest refused; what had been changed before was changed back.
        :raises HostError: HCS refused, which hosts it, or the guest that it asked.
        :raises UndoFailedError: changing back failed as well; it says what stays changed.
        :raises AnswerLostError: the connection to the guest closed in between; it says what was changed.

        Source: hcsshim cmd/containerd-shim-runhcs-v1/task_hcs.go, internal/controller/linuxcontainer.
        """
        from uvm._guest.containerupdate import constraints, settings_asked

        linux = self._guest.os == "linux"
        asked = constraints(resources) if linux else settings_asked(resources, self._guest)
        self._check_running("update")
        if isinstance(asked, list):
            await self._change_settings(asked)
        else:
            await self._change(lambda: self._handle.modify(asked))

    async def _change_settings(self, asked: list[Setting]) -> None:
        tried: list[Change] = []
        try:
            await self._change(lambda: self._settings.update(lambda: asked, tried))
        except AnswerLostError as error:
            left = self._settings.left_by(tried)
            raise AnswerLostError(f"update container {self.id}: {error}{left}") from error

    async def _change(self, call: Callable[[], Awaitable[None]]) -> None:
        await self._guest.call(self._guest.carry_out("change container", call))

    @cached_property
    def _settings(self) -> Settings:
        """The settings in force of a Windows container."""
        from uvm._guest.containerupdate import settings_of

        return settings_of(self._config, self._handle.modify)

    def _check_running(self, verb: str) -> None:
        """Refuse what needs processes of the container, unless it cannot be known whether it runs.

        :raises VMStateError: it has not been started, or has exited.
        """
        if self.exit is None and (self._runs or self._may_run):
            return
        state = "has not been started" if self.exit is None else f"has exited: {self.exit.type}"
        raise VMStateError(f"{verb} container {self.id}: it {state}; nothing was sent")

    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a ``ModificationRequest`` on it.

        :raises OptionsError: it is no JSON; nothing was sent.
        :raises GuestError: the guest refused.
        :raises HostError: HCS refused, which hosts it, or the guest that it asked.
        :raises UnknownOutcomeError: the answer was lost.
        """
        checked(request, instance(dict), "request")
        check_writable("the request, of which nothing was sent,", request)
        await self._guest.call(self._handle.modify(request))

    # Its end.

    async def _end(self, *, forced: bool) -> None:
        if self._handle.exit.settled:
            await anyio.lowlevel.checkpoint()
            return
        await self._unless_gone(self._handle.end(forced=forced))
        if forced and self._may_run:
            doubt(self._guest, self._handle.exit)

    async def _unless_gone(self, request: Awaitable[T]) -> T | None:
        """Await a request for what has happened already where the container, or its guest, is gone.

        :return: the answer; None where there is none for that reason.
        """
        try:
            return await request
        except BridgeClosedError as error:
            _log.debug(self._guest.name, "container %s: %s", self.id, error)
        except RefusedError as error:
            if error.hresult not in SYSTEM_ENDED:
                raise
            doubt(self._guest, self._handle.exit)
        return None


async def end_abandoned(container: Container) -> None:
    """End a container that no caller has, if it was created, and have its state deleted."""
    try:
        await container.aclose()
    except UVMError as error:
        _log.warning(container._guest.name, "a container whose caller has gone: %s", error)


def doubt(guest: GuestAccess, exit: Exit[ContainerExit]) -> None:
    """Settle the exit of a container soon, reported or not: the container is said to be gone."""
    if not exit.settled:
        guest.watch(_settle, guest, exit)


async def _settle(guest: GuestAccess, exit: Exit[ContainerExit]) -> None:
    await guest.clock.sleep(guest.timeouts.grace_seconds)
    exit.report(ContainerExit("Unknown"))


async def container_config(guest: GuestAccess, container_id: str, document: object) -> JSON:
    """Return a copy of the document of a container to be created, a model or a JSON object, as JSON.

    :raises OptionsError: it is none, or is no document of a Linux container; there is no such id, or the
        state of the last container of that id is kept.
    """
    check_container_id(container_id)
    if not isinstance(document, LinuxHostedSystem | HostedSystem | Mapping):
        raise OptionsError(f"the document of a container is a JSON object, not {kind_of(document)}")
    document = dict(document) if isinstance(document, Mapping) else document
    config: JSON = json.loads(check_writable("the document of the container", document))
    if guest.os == "linux":
        spec_of(config)
    await guest.states.check_free(container_id)
    return config


def _directories_of(config: JSON) -> tuple[str, ...]:
    """Return the bundle of a Linux container and its root file system, where that is another directory."""
    bundle, spec = config.get("OciBundlePath"), config.get("OciSpecification")
    root = spec.get("root") if isinstance(spec, Mapping) else None
    path = root.get("path") if isinstance(root, Mapping) else None
    # A relative one is in the bundle.
    return tuple(each for each in (bundle, path) if isinstance(each, str) and each.startswith("/"))
