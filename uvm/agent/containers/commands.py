"""Running a runtime: its files, its console, its end. All of it blocks, and is called in workers.

Each command has a directory of its own, with its log, the id of the process that it starts, and what it
reads; the directory is removed when the command has ended. A process that it starts outlives it, and becomes
a child of the agent, which may hear of its exit before the command has ended: see :mod:`uvm.agent.children`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

from uvm.agent.children import Children
from uvm.agent.containers.bundle import write_secret
from uvm.agent.containers.console import ConsoleSocket
from uvm.agent.containers.runtime import NAMES, Files, Runtime, failure
from uvm.agent.refused import Refused
from uvm.agent.spawning import PATH, Command, spawn

#: How long one command may take: emulated processors are slow, and many commands may run at once.
_SECONDS: Final = 120.0
_MAX_LOG: Final = 1 << 16
_ENVIRONMENT: Final = {"PATH": PATH}


class Commands:
    """Runs the commands of a runtime.

    :param runtime: None if the guest has none, so that there are no containers.
    :param directory: where the files of commands are; a short path, since sockets are among them.
    :param start: starts each process, by calling a function that returns its id.
    """

    def __init__(
        self,
        runtime: Runtime | None,
        children: Children,
        directory: str,
        start: Callable[[Callable[[], int]], int] = lambda start: start(),
    ) -> None:
        self._there, self._children, self._start = runtime, children, start
        self._directory = directory

    @property
    def _runtime(self) -> Runtime:
        if self._there is None:
            names = " nor ".join(NAMES)
            raise Refused(
                f"this guest has no runtime for containers: neither {names} is in its image; "
                "install one where the image is built"
            )
        return self._there

    @property
    def name(self) -> str:
        """The name of the runtime."""
        return self._runtime.name

    def create(self, container_id: str, bundle: str, streams: tuple[int, int, int]) -> int:
        """Make a container, and return the id of its first process."""
        with self._files() as files:
            command = self._runtime.create(container_id, bundle, files)
            self._run("create", command, files, streams)
            return _pid(files)

    def create_with_terminal(self, container_id: str, bundle: str) -> tuple[int, int]:
        """Make a container, and return the id of its first process, and the master end of its terminal."""
        with self._files(terminal=True) as files, closing(ConsoleSocket(files.console)) as console:
            self._run_alone("create", self._runtime.create(container_id, bundle, files), files)
            return _pid(files), _terminal(console)

    def start(self, container_id: str) -> None:
        """Have the first process of a container go on."""
        with self._files() as files:
            self._run_alone("start", self._runtime.start(container_id, files), files)

    def execute(self, container_id: str, process: object, streams: tuple[int, int, int]) -> int:
        """Start a process in a container, and return its id."""
        with self._files() as files:
            command = self._execution(container_id, process, files)
            self._run("exec", command, files, streams)
            return _pid(files)

    def execute_with_terminal(self, container_id: str, process: object) -> tuple[int, int]:
        """Start a process in a container, and return its id, and the master end of its terminal."""
        with self._files(terminal=True) as files, closing(ConsoleSocket(files.console)) as console:
            self._run_alone("exec", self._execution(container_id, process, files), files)
            return _pid(files), _terminal(console)

    def _execution(self, container_id: str, process: object, files: Files) -> list[str]:
        write_secret(files.document, process)
        return self._runtime.execute(container_id, files)

    def update(self, container_id: str, resources: object) -> None:
        """Change the resources of a container."""
        with self._files() as files:
            write_secret(files.document, resources)
            self._run_alone("update", self._runtime.update(container_id, files), files)

    def delete(self, container_id: str) -> None:
        """Delete a container, with all that runs in it."""
        with self._files() as files:
            self._run_alone("delete", self._runtime.delete(container_id, files), files)

    @contextmanager
    def _files(self, *, terminal: bool = False) -> Iterator[Files]:
        # They take long to load, and no boot needs them.
        from shutil import rmtree
        from tempfile import mkdtemp

        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        directory = mkdtemp(prefix="", dir=self._directory)
        try:
            yield Files(directory, terminal=terminal)
        finally:
            rmtree(directory, ignore_errors=True)

    def _run_alone(self, what: str, command: list[str], files: Files) -> None:
        """Run a command whose streams no container gets."""
        with open(os.devnull, "rb") as null, open(files.output, "wb") as output:
            self._run(what, command, files, (null.fileno(), output.fileno(), output.fileno()))

    def _run(self, what: str, command: list[str], files: Files, streams: tuple[int, int, int]) -> None:
        """Run a command.

        :raises Refused: it failed, or took too long.
        """
        to_run = Command(command, _ENVIRONMENT)
        problem = f"{self._runtime.name} {what} failed"
        try:
            code = self._children.run(lambda: self._start(lambda: spawn(to_run, streams)), _SECONDS)
        except TimeoutError:
            raise Refused(f"{problem}: it took more than {_SECONDS:.0f} seconds, and was killed") from None
        if code:
            raise Refused(f"{problem}: {failure(_text(files.log), _text(files.output))}")


def _pid(files: Files) -> int:
    return int(_text(files.pid))


def _terminal(console: ConsoleSocket) -> int:
    try:
        return console.receive()
    except OSError as error:
        raise Refused(f"failed to get the terminal of a process: {error}") from None


def _text(path: str) -> str:
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_LOG)
    return ""
