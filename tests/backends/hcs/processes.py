"""A process of the fake behind a process handle of HCS: its streams as pipes."""

from __future__ import annotations

from anyio.abc import TaskGroup

from tests.backends.hcs.double.control import Answer
from tests.backends.hcs.wires import HostStreams, copy_and_close
from uvm.backend import HostProcess

__all__ = ["HostedProcess"]


class HostedProcess:
    """A process, and the pipes of its streams, which are handed out once.

    :ivar process: its handle of the fake.
    """

    def __init__(self, process: HostProcess, task_group: TaskGroup, streams: HostStreams) -> None:
        self.process: HostProcess = process
        self._task_group = task_group
        self._streams = streams
        self._given = False

    def answer(self) -> Answer:
        """Answer with the id, and with the handles if they were not handed out before."""
        pid = self.process.pid
        if self._given:
            return Answer(pid=pid)
        self._given = True
        return Answer(pid=pid, handles=(self._input(), *self._outputs()))

    def _input(self) -> int:
        stream = self.process.stdin
        if stream is None:
            return 0
        handle, ours = self._streams.pipe()
        self._task_group.start_soon(copy_and_close, ours, stream)
        return handle

    def _outputs(self) -> tuple[int, int]:
        made = [0, 0]
        for i, stream in enumerate((self.process.stdout, self.process.stderr)):
            if stream is not None:
                made[i], ours = self._streams.pipe()
                self._task_group.start_soon(copy_and_close, stream, ours)
        return made[0], made[1]
