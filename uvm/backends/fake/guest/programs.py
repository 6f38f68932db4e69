"""Programs of the fake guest: the process that one runs as, and the names under which they are found."""

from __future__ import annotations

import ntpath
import posixpath
from collections import UserDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

from attrs import define, field

from uvm._names import GuestOS
from uvm._repr import brief
from uvm.backends.fake.guest.filesystem import GuestFileSystem
from uvm.backends.fake.guest.machine import GuestMachine
from uvm.backends.fake.guest.stdio import ProcessInput, ProcessOutput, Terminal

#: Called with the number of a signal of a Linux guest, or the name of one of a Windows guest.
SignalHandler: TypeAlias = Callable[[int | str], None]


class Peer(Protocol):
    """Another process of the guest, as a program sees it."""

    @property
    def view(self) -> FakeProcess:
        """The process as its own program sees it."""

    def signal(self, signal: int | str) -> bool:
        """Signal it; False if it has exited."""

    def resize(self, height: int, width: int) -> None:
        """Change the size of its terminal."""


@define(eq=False)
class FakeProcess:
    """A process as its program sees it.

    :ivar args: its arguments, from its own name on.
    :ivar env: its environment.
    :ivar cwd: its working directory; any path will do.
    :ivar user: the user that was asked for.
    :ivar pid: its id in the guest.
    :ivar terminal: its terminal, whose size changes with the host's; None if it has none.
    :ivar vm: the VM that it runs in.
    :ivar peers: what runs in the guest, by process id.
    :ivar files: the files of the guest.
    """

    args: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: str
    pid: int
    vm: GuestMachine
    peers: Mapping[int, Peer]
    files: GuestFileSystem
    stdin: ProcessInput = field(init=False)
    stdout: ProcessOutput = field(init=False)
    stderr: ProcessOutput = field(init=False)
    terminal: Terminal | None = None
    handlers: dict[int | str, SignalHandler] = field(factory=dict, init=False)

    def __repr__(self) -> str:
        return brief(f"<FakeProcess {self.pid} {list(self.args)}>")

    def on_signal(self, signal: int | str, handler: SignalHandler | None) -> None:
        """Call a function for a signal, in place of its default action; None restores that.

        Most signals kill a process. 9 (SIGKILL) cannot be handled.

        :param signal: the number; for a Windows guest the name (``CtrlC``, ``CtrlBreak``, ...).
        """
        if signal == 9:
            raise ValueError("SIGKILL cannot be handled")
        if handler is None:
            self.handlers.pop(signal, None)
        else:
            self.handlers[signal] = handler


#: A program returns its exit code; None is 0. An exception ends it with 1 and the traceback on stderr.
Program: TypeAlias = Callable[[FakeProcess], Awaitable[int | None]]


class Programs(UserDict[str, Program]):
    r"""The programs of a backend's guests, by name: the built-in ones, and those that are added.

    A command is found by the last part of its path: ``/bin/cat`` is ``cat``, and in a Windows guest
    ``C:\tools\Cat.EXE`` is, too. ::

        @backend.programs.register("greet")
        async def greet(process: FakeProcess) -> int:
            await process.stdout.send(b"hello\n")
            return 0
    """

    def __repr__(self) -> str:
        return brief(f"<Programs {', '.join(self)}>")

    def register(self, name: str) -> Callable[[Program], Program]:
        """Register the decorated function under a name, in place of one that has it."""

        def registered(program: Program) -> Program:
            self[name] = program
            return program

        return registered

    def find(self, command: str, os: GuestOS) -> Program | None:
        """Return the program of a command, as a guest of that operating system finds it."""
        if os == "linux":
            name = posixpath.basename(command)
            return None if name in WINDOWS_ONLY else self.get(name)
        name = ntpath.basename(command).lower().removesuffix(".exe")
        return None if name in LINUX_ONLY else self.get(name)

    def __setitem__(self, name: str, program: Program) -> None:
        if not name or posixpath.basename(name) != name or ntpath.basename(name) != name:
            raise ValueError(f"{name!r} is not the name of a program")
        super().__setitem__(name, program)


#: Built-in programs that a Windows guest lacks.
LINUX_ONLY = frozenset({"find", "kill", "mkdir", "rm", "stat", "stty", "uname"})
#: And those that a Linux guest lacks.
WINDOWS_ONLY = frozenset({"cmd"})
