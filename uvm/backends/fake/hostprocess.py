"""A handle on a process that HCS started in a fake VM."""

from __future__ import annotations

from typing import ClassVar

from uvm.backend import JSON
from uvm.backends.fake.handle import FakeHandle, HostSide
from uvm.backends.fake.hosted import HostedProcess
from uvm.backends.fake.streams import FakeStream


class FakeHostProcess(FakeHandle):
    """A handle on a process (:class:`~uvm.backend.HostProcess`).

    Every call but :attr:`pid` and the streams is refused with E_HANDLE once the handle is closed. As over any
    connection, a Linux guest finds no process outside of its containers when it is asked to signal one, or to
    resize its terminal: 0xC037010E.

    :param opened: the process was opened by its id, and has no streams.
    """

    _suffix: ClassVar[str] = " process"

    def __init__(self, host: HostSide, hosted: HostedProcess, *, opened: bool = False) -> None:
        super().__init__(host, hosted.vm, hosted, f"{hosted.pid} of {hosted.vm.id}", str(hosted.pid))
        self._hosted = hosted
        self._streams = {} if opened else hosted.streams
        host.processes[self] = None

    def __str__(self) -> str:
        return str(self._hosted)

    @property
    def pid(self) -> int:
        """The process's id in the guest."""
        return self._hosted.pid

    @property
    def stdin(self) -> FakeStream | None:
        """The stream of the process's input."""
        return self._streams.get("stdin")

    @property
    def stdout(self) -> FakeStream | None:
        """The stream of the process's output."""
        return self._streams.get("stdout")

    @property
    def stderr(self) -> FakeStream | None:
        """The stream of the process's error output; None with a console, which has all in :attr:`stdout`."""
        return self._streams.get("stderr")

    async def wait(self) -> int:
        """Wait for the process to exit, and return the exit code.

        :raises HostError: E_HANDLE if this handle is closed meanwhile; HCS_E_SYSTEM_ALREADY_STOPPED if the VM
            exits before the exit of the process is known.
        """
        return await self._unless_closed(f"wait for{self._suffix}", self._hosted.wait)

    async def signal(self, options: JSON) -> None:
        """Have the guest signal the process; HCS_E_PROCESS_ALREADY_STOPPED if it has exited."""
        document = self._copied("signal process", options)
        await self._guest_call("signal process", document, lambda: self._hosted.signal(document))

    async def terminate(self) -> None:
        """Have the guest kill the process; HCS_E_PROCESS_ALREADY_STOPPED if it has exited."""
        await self._guest_call("terminate process", None, lambda: self._hosted.signal(None))

    async def modify(self, request: JSON) -> None:
        """Have the guest resize the console, or close host ends of the streams.

        :raises HostError: HCS_E_PROCESS_ALREADY_STOPPED if it has exited; ERROR_NOT_FOUND for a stream
            that it does not have; HCS_E_INVALID_JSON.
        """
        document = self._copied("modify process", request)
        await self._guest_call("modify process", document, lambda: self._hosted.modify(document))

    async def properties(self) -> JSON:
        """Return the ``ProcessStatus``."""
        return await self._call("query", "process properties", None, self._hosted.status)

    def _release(self) -> None:
        for stream in self._streams.values():
            stream.close()
        super()._release()
        del self._host.processes[self]
