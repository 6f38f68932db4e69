"""Starting QEMU, and what is known of its process.

How it works
------------

Linux kills a process whose parent's *thread* has ended (PR_SET_PDEATHSIG), so that QEMU is started from one
thread, which runs as long as the backend: nothing that this process starts outlives it, whatever kills it::

    Launcher --one thread--> setpriv --pdeathsig KILL --reuid ... qemu ...   one Child each
    Child    pidfd: readable when it has ended, never another process's
             stderr: read all the time, of which the end is kept

    note     what other processes are to know of it is written before its program runs, which waits for that:
             whenever this process is killed, there is no QEMU that the next one does not find

QEMU inherits the descriptors that it is given and no other, little of the environment, and no terminal. It
runs as the user that :mod:`.users` chooses.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Final

import anyio
from attrs import define, field

from uvm.backends.qemu.cgroups import Cgroup
from uvm.backends.qemu.guestimage.packages import install
from uvm.backends.qemu.users import Identity
from uvm.backends.workers import finished
from uvm.errors import NotSupportedError

#: How many of the last bytes that QEMU writes to its error output are kept.
STDERR_BYTES: Final = 1 << 14
#: Of setpriv, a program of util-linux: Linux kills the process when its parent ends.
_BOUND: Final = ("--pdeathsig", "KILL")
#: What QEMU has of this process's environment.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH")
#: Runs what follows in a cgroup, which the user that QEMU runs as may not enter.
_IN_CGROUP: Final = ("sh", "-c", 'echo 0 > "$0" && exec "$@"')
#: Runs what follows once the parent says so, unless it has ended: before that, or before setpriv bound it.
_ONCE_NOTED: Final = ("sh", "-c", 'read -r said && [ "$PPID" = "$0" ] && exec "$@" </dev/null')


@define(eq=False, repr=False)
class Process:
    """A process of QEMU that an earlier process has started, or a :class:`Child`.

    :ivar pid: the id of the process.
    :ivar exit_code: what it exited with, or minus the number of the signal that killed it; None before, and
        if it is no child of this process: it is its parent that gets that.
    :ivar last_words: the end of what it wrote to its error output, if that is read here.
    """

    pid: int
    _pidfd: int
    exit_code: int | None = field(default=None, init=False)
    last_words: str = field(default="", init=False)
    _ended: bool = field(default=False, init=False)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if not self._ended:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int | None:
        """Run what it needs here until it has ended; return its exit code. One task does."""
        try:
            await anyio.wait_readable(self._pidfd)
        finally:
            self._close()
        return self.exit_code

    def _close(self) -> None:
        self._ended = True
        os.close(self._pidfd)


@define(eq=False, repr=False)
class Child(Process):
    """A process of QEMU that this process has started, whose error output is read."""

    _process: subprocess.Popen[bytes]
    _last: bytearray = field(factory=bytearray, init=False)

    async def wait(self) -> int | None:
        """Read its error output until it has ended; return its exit code. One task does."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read_errors)
                await anyio.wait_readable(self._pidfd)
                tasks.cancel_scope.cancel()
        except BaseException:
            # It is left running, which is what Popen warns of.
            self._process.returncode = 0
            self._close()
            raise
        self._read_rest()
        return self._reap()

    def discard(self) -> None:
        """Kill it, and wait until it has ended, in place of :meth:`wait`; blocking."""
        self.kill()
        self._reap()

    def _reap(self) -> int:
        self.exit_code: int | None = self._process.wait()
        self._close()
        return self.exit_code

    def _close(self) -> None:
        super()._close()
        assert self._process.stderr is not None
        self._process.stderr.close()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while True:
            await anyio.wait_readable(self._process.stderr)
            if not self._read_some():
                return

    def _read_rest(self) -> None:
        with suppress(BlockingIOError):
            while self._read_some():
                pass

    def _read_some(self) -> bool:
        """Read what is there; return whether there may be more."""
        assert self._process.stderr is not None
        data = os.read(self._process.stderr.fileno(), STDERR_BYTES)
        self._last += data
        del self._last[:-STDERR_BYTES]
        self.last_words: str = self._last.decode("utf-8", "replace").strip()
        return bool(data)


#: Is called with the id of a process.
Note = Callable[[int], object]


class Launcher:
    """Starts QEMU from one thread, which ends with :meth:`close`, and all that was bound to it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "uvm-qemu")

    async def start(
        self,
        arguments: Sequence[str],
        fds: Sequence[int],
        *,
        survives: bool = False,
        user: Identity | None = None,
        cgroup: Cgroup | None = None,
        note: Note = lambda pid: None,
    ) -> Process:
        """Start a process; who is cancelled meanwhile leaves none, and nothing that uses `fds`.

        :param fds: the descriptors that it inherits, under their numbers.
        :param survives: it outlives this process.
        :param user: the user that it runs as; by default this process's.
        :param cgroup: the cgroup that it is in; by default this process's.
        :param note: called, in a thread, before the program runs; what it raises is raised, and nothing runs.
        :raises NotSupportedError: there is no setpriv.
        """
        options = (*(() if user is None else user.options), *(() if survives else _BOUND))
        command = [] if cgroup is None else [*_IN_CGROUP, cgroup.procs]
        command += ["setpriv", *options, "--"] if options else []
        command += [*_ONCE_NOTED, str(os.getpid()), *arguments]
        return await finished(self._thread.submit(_spawn, command, fds, note), Child.discard)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)


def _spawn(command: Sequence[str], fds: Sequence[int], note: Note) -> Child:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=fds,
            start_new_session=True,
            # What else is in the environment may be a secret, and QEMU another user's.
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
    except FileNotFoundError as error:
        missing = f"{error.filename} was not found; nothing was started; install it: {install('setpriv')}"
        raise NotSupportedError(f"start QEMU: {missing}") from error
    assert process.stdin is not None
    assert process.stderr is not None
    with ExitStack() as undo, process.stdin:
        undo.callback(process.wait)
        undo.callback(process.kill)
        undo.callback(process.stderr.close)
        note(process.pid)
        # What ended at once says why.
        with suppress(BrokenPipeError):
            process.stdin.write(b"\n")
        os.set_blocking(process.stderr.fileno(), False)
        found = Child(process.pid, os.pidfd_open(process.pid), process)
        undo.pop_all()
    return found
