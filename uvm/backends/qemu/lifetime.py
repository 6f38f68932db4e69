"""From the start of QEMU's process to its end.

How it works
------------

One task serves a VM from the start of its process to the end of it. It belongs to the backend, and no
caller's cancellation reaches it::

    serve:  QMP       answers to commands; events
            mux       the guest's connections
            process   its error output, and its end, which ends the others
            the end   once the guest has shut down, reset or panicked, QEMU is stopped:
                      its console is read, then it quits
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Final

import anyio
import anyio.abc

from uvm._async import Flag
from uvm._repr import showing
from uvm.backends.qemu.exits import Exit
from uvm.backends.qemu.guestlink import GuestLink
from uvm.backends.qemu.hostprocess import HostConnection
from uvm.backends.qemu.launch import Launcher, Process
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.qemu.muxlink import MuxLink
from uvm.backends.qemu.qmp import QMPClosedError, QMPError
from uvm.backends.qemu.runtime import ProcessName, VMDirectory
from uvm.backends.qemu.sockets import Link, listening, pair, reach
from uvm.errors import HostError, HostPathError
from uvm.hresult import HResult

#: How long a guest that is asked to crash may take, and QEMU to quit; both are killed then.
CRASH_SECONDS: Final = 10.0
QUIT_SECONDS: Final = 5.0


@showing("exit")
class Lifetime:
    """The process of QEMU that is one VM, and what serves it.

    :param directory: the runtime directory of the VM.
    :param on_end: called at once when the process has ended, or is left running.
    :param survives: QEMU outlives this process.
    :ivar exit: how the VM exits.
    :ivar monitor: how QEMU is asked.
    :ivar guest: the connections with the guest, from :meth:`launch` on.
    :ivar connection: the host's own connection to the guest; None if there is none.
    :ivar process_ended: set once the process has ended.
    :ivar served: a task serves the VM, or has.
    :ivar left: the process was left running, for the next one that opens the VM.
    """

    def __init__(self, directory: VMDirectory, on_end: Callable[[], None], *, survives: bool) -> None:
        self._id = directory.record.id
        self._directory = directory
        self._on_end = on_end
        self._survives = survives
        self.exit: Exit = Exit(self._id)
        self.monitor: Monitor = Monitor(self._id, self.exit)
        self.guest: GuestLink
        self.connection: HostConnection | None = None
        self.process_ended: Flag = Flag()
        self.served: bool = False
        self.left: bool = False
        self._process: Process
        self._service = anyio.CancelScope(shield=True)

    @property
    def process(self) -> Process:
        """The process of QEMU."""
        return self._process

    async def launch(
        self,
        launcher: Launcher,
        arguments: Callable[[str, str], Sequence[str]],
        inherited: Sequence[int],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Start QEMU, paused, and wait until it takes commands.

        :param arguments: returns the command line for the sockets of QMP and of the mux.
        :param inherited: the descriptors that the command line names besides.
        :param tasks: runs the task that serves the VM.
        :raises HostError: QEMU ended at once; the message has its last words.
        :raises HostPathError: its runtime directory cannot be written to; QEMU was not started.
        """
        links = self._links()
        self._use(links[0].ours, MuxLink(self._id, links[1].ours, adopts=False))
        try:
            theirs = [link.theirs.fileno() for link in links]
            command = arguments(*(link.argument for link in links))
            self._process = await launcher.start(
                command,
                (*theirs, *self._directory.locks, *inherited),
                survives=self._survives,
                user=self._directory.record.user,
                cgroup=self._directory.cgroup,
                note=self._note_process,
            )
        except BaseException:
            self._close_channels()
            raise
        finally:
            for link in links:
                link.theirs.close()
        await self._begin(tasks)
        if self.monitor.qmp.closed:
            await self.exit.wait()
            raise HostError(f"create {self._id}", HResult.E_FAIL, self._never_came_up())

    async def adopt(self, process: Process, tasks: anyio.abc.TaskGroup) -> None:
        """Connect to a QEMU that an earlier process has left.

        :raises HostError: it cannot be reached; it is left as it is.
        """
        self._process = process
        with ExitStack() as undo:
            try:
                qmp, mux = (
                    undo.enter_context(reach(path)) for path in (self._directory.qmp, self._directory.mux)
                )
            except OSError as error:
                raise HostError(f"open {self._id}", HResult.HCS_E_CONNECT_FAILED, str(error)) from error
            self._use(qmp, MuxLink(self._id, mux))
            undo.pop_all()
        await self._begin(tasks)

    def leave(self) -> None:
        """Leave it running, for the next process that opens it."""
        self.left = True
        self._service.cancel()

    def abandon(self) -> None:
        """Serve it no more: it was killed, and Linux does not end it, as while it waits for a disk."""
        self._service.cancel()

    async def crash(self, *, paused: bool) -> None:
        """Have the guest panic; kill QEMU if it does not in time, or cannot as it is paused."""
        self.exit.crashing.set()
        if paused:
            self._process.kill()
        else:
            await self.monitor.ask("crash", "inject-nmi")

    def _note_process(self, pid: int) -> None:
        """Have other processes know of QEMU; HostPathError, and it does not start."""
        self._directory.note(qemu=ProcessName.of(pid))

    def _links(self) -> list[Link]:
        if not self._survives:
            return [pair(), pair()]
        try:
            return [listening(self._directory.qmp), listening(self._directory.mux)]
        except OSError as error:
            raise HostPathError(str(self._directory.path), f"no socket can be made there: {error}") from error

    def _use(self, qmp: socket.socket, connections: MuxLink) -> None:
        self.monitor.connect(qmp)
        self.guest = GuestLink(self._id, connections, self.exit)

    async def _begin(self, tasks: anyio.abc.TaskGroup) -> None:
        """Have a task serve the VM, and wait until QEMU takes commands, or has ended."""
        ready = Flag()
        self.served = True
        tasks.start_soon(self._serve, ready)
        await ready.wait()

    def _never_came_up(self) -> str:
        said = self._process.last_words or "it said nothing"
        return f"QEMU ended with exit code {self._process.exit_code} before it took commands: {said}"

    async def _serve(self, ready: Flag) -> None:
        """Serve the VM until its process has ended. Raises nothing; no cancellation reaches it."""
        with self._service:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._serve_qmp, ready)
                    tasks.start_soon(self.guest.connections.serve)
                    tasks.start_soon(self._finish)
                    tasks.start_soon(self._limit_crash)
                    if self.connection is not None:
                        tasks.start_soon(self.connection.serve)
                    await self._process.wait()
                    tasks.cancel_scope.cancel()
            finally:
                try:
                    self._close_channels()
                    self._on_end()
                finally:
                    self.process_ended.set()
                    ready.set()

    async def _serve_qmp(self, ready: Flag) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.monitor.qmp.serve)
            ready.set()
        # Without its monitor nothing is known of it any more; but one that quits closes it first.
        if not self.left and not self.exit.guest_ended.is_set():
            self._process.kill()

    async def _finish(self) -> None:
        """Have QEMU quit once the guest has ended, after its last words; kill it if it does not in time."""
        await self.exit.guest_ended.wait()
        with anyio.move_on_after(QUIT_SECONDS):
            self.exit.console = await self.monitor.console()
            with suppress(QMPError, QMPClosedError):
                await self.monitor.qmp.execute("set-action", {"shutdown": "poweroff"})
                await self.monitor.qmp.execute("quit")
            await anyio.sleep_forever()
        self._process.kill()

    async def _limit_crash(self) -> None:
        await self.exit.crashing.wait()
        with anyio.move_on_after(CRASH_SECONDS):
            await self.exit.guest_ended.wait()
            return
        self._process.kill()

    def _close_channels(self) -> None:
        self.monitor.close()
        self.guest.connections.close()
        if self.connection is not None:
            self.connection.close()
