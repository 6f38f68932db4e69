"""The processes of the fake guest: how they run, exit, and are signalled and waited for."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Final

import anyio
from attrs import define, field

from uvm._names import GuestOS
from uvm._repr import showing
from uvm.backends.fake.guest.programs import FakeProcess, Program

SIGKILL: Final = 9
SIGPIPE: Final = 13
SIGTERM: Final = 15
_SIGWINCH: Final = 28

#: Signals that do nothing unless they are handled: those that are ignored by default, and those that stop and
#: continue a process, which the fake does not model.
_HARMLESS: Final = frozenset({17, 18, 19, 20, 21, 22, 23, _SIGWINCH})

#: Exit codes of Windows processes: after a console signal (STATUS_CONTROL_C_EXIT), and when terminated.
_CONTROL_C_EXIT: Final = 0xC000013A
_TERMINATED: Final = 1

#: The exit code that a guest reports of an external process killed by a signal (Go's -1).
_UNKNOWN_EXIT: Final = 0xFFFFFFFF


def died_of(signal: int | str, *, os: GuestOS, external: bool) -> int:
    """Return the exit code of a process that was killed by a signal."""
    if os == "windows":
        return _CONTROL_C_EXIT if isinstance(signal, str) else _TERMINATED
    return _UNKNOWN_EXIT if external or isinstance(signal, str) else 128 + signal


@showing("view", "started", "alive", "exit_code")
@define(eq=False, repr=False)
class GuestProcess:
    """A process of the guest, or of a container.

    :ivar view: what its program sees.
    :ivar external: it runs in no container.
    :ivar started: it has a task, or had one.
    :ivar alive: its program runs. Its exit is reported after that, once its streams are done.
    :ivar exit_code: None until its exit is reported.
    :ivar on_exit: called when it has exited, before those that wait for it.
    :ivar on_release: called once, when its exit was reported to a waiter: then its guest forgets it.
    """

    view: FakeProcess
    external: bool
    on_exit: Callable[[GuestProcess], None]
    on_release: Callable[[GuestProcess], object]
    started: bool = field(default=False, init=False)
    alive: bool = field(default=True, init=False)
    exit_code: int | None = field(default=None, init=False)
    _killed_by: int | str | None = field(default=None, init=False)
    _handler_error: Exception | None = field(default=None, init=False)
    _released: bool = field(default=False, init=False)
    _scope: anyio.CancelScope = field(factory=anyio.CancelScope, init=False)
    _waiting: dict[Callable[[int], None], None] = field(factory=dict, init=False)

    @property
    def pid(self) -> int:
        """The process id, unique in the guest."""
        return self.view.pid

    def restored(self, process: GuestProcess) -> None:
        """Be a process of the guest that this one starts from the memory of."""
        self.started, self.alive, self.exit_code = True, process.alive, process.exit_code

    async def run(self, program: Program) -> None:
        """Run the program to its end, or until it is killed; this is the process's task."""
        code: int | None = None
        try:
            with self._scope:
                if not self._scope.cancel_called:
                    code = await self._result(program)
            if self._killed_by is not None:
                code = self._death(self._killed_by)
            elif self._handler_error is not None:
                code = await self._failed(self._handler_error)
            self.alive = False
            await self._finish_streams()
        finally:
            # Without a code if the guest does not run any more: then no process of it continues.
            self.alive = False
            self._close_streams()
            self.exited(self._death(SIGKILL) if code is None else code)

    def exited(self, code: int) -> None:
        """Report the exit to all waiters."""
        self.alive = False
        self.exit_code = code
        self.on_exit(self)
        waiting, self._waiting = self._waiting, {}
        for report in waiting:
            report(code)
        if waiting:
            self.release()

    def when_exited(self, report: Callable[[int], None]) -> None:
        """Call a function with the exit code, once it is known."""
        self._waiting[report] = None

    def forget(self, report: Callable[[int], None]) -> None:
        """Remove a function that waits for the exit code."""
        self._waiting.pop(report, None)

    def release(self) -> None:
        """Release the process: its exit was reported."""
        if not self._released:
            self._released = True
            self.on_release(self)

    def signal(self, signal: int | str) -> bool:
        """Signal the process; False if it has exited."""
        if not self.alive:
            return False
        handler = self.view.handlers.get(signal)
        if handler is not None:
            try:
                handler(signal)
            except Exception as e:
                self._handler_error = e
                self._scope.cancel()
        elif signal not in _HARMLESS:
            self._killed_by = signal
            self._scope.cancel()
            if not self.started:
                self.exited(self._death(signal))
        return True

    def resize(self, height: int, width: int) -> None:
        """Change the size of the terminal, and signal that (SIGWINCH)."""
        terminal = self.view.terminal
        assert terminal is not None
        terminal.height, terminal.width = height, width
        if self.view.vm.os == "linux":
            self.signal(_SIGWINCH)

    async def _result(self, program: Program) -> int:
        try:
            code: object = await program(self.view)
        except SystemExit as e:
            code = e.code
        except Exception as e:
            if _is_broken_pipe(e):
                return self._death(SIGPIPE)
            return await self._failed(e)
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFFFFFFFF
        await self._complain(f"{self.view.args[0]}: {code}\n")
        return 1

    async def _failed(self, error: Exception) -> int:
        await self._complain("".join(traceback.format_exception(error)))
        return 1

    async def _complain(self, text: str) -> None:
        try:
            await self.view.stderr.send(text.encode(errors="backslashreplace"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # it has no reader

    def _death(self, signal: int | str) -> int:
        return died_of(signal, os=self.view.vm.os, external=self.external)

    async def _finish_streams(self) -> None:
        """End the streams; the runtime of a container waits until what it relays was read."""
        self.view.stdin.close()
        if self.external or self.view.vm.os == "windows":
            return
        await self.view.stdout.finish()
        await self.view.stderr.finish()

    def _close_streams(self) -> None:
        for stream in (self.view.stdin, self.view.stdout, self.view.stderr):
            stream.close()


def _is_broken_pipe(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_broken_pipe(each) for each in error.exceptions)
    return isinstance(error, anyio.BrokenResourceError)
