"""From a request to a running process: its command, its streams, its program; and waiting for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import anyio
from attrs import Factory, frozen

from uvm.backend import JSON
from uvm.backends.fake.guestservice.messages import Incoming, hresult
from uvm.backends.fake.guestservice.processes import GuestProcess
from uvm.backends.fake.guestservice.programs import FakeProcess
from uvm.backends.fake.guestservice.stdio import ProcessInput, ProcessOutput, Terminal
from uvm.backends.fake.streams import FakeStream
from uvm.hresult import HResult
from uvm.schema.gcs import WAIT_FOREVER_MS

if TYPE_CHECKING:
    from uvm.backends.fake.guestservice.service import GuestService


@frozen
class Command:
    """What to run."""

    args: tuple[str, ...]
    env: Mapping[str, str] = Factory(dict)
    cwd: str = "/"
    user: str = ""
    terminal: Terminal | None = None


def make_process(
    service: GuestService,
    command: Command,
    *,
    external: bool,
    on_exit: Callable[[GuestProcess], None] | None = None,
    on_release: Callable[[GuestProcess], None],
) -> GuestProcess:
    """Make a process that does not run yet, and has no streams.

    :param on_exit: called when it has exited, before anybody is told.
    :param on_release: called when somebody has been told.
    """
    vm = service.vm
    view = FakeProcess(
        args=command.args,
        env=command.env,
        cwd=command.cwd,
        user=command.user,
        pid=service.new_pid(),
        vm=vm,
        stdin=ProcessInput(vm, None),
        stdout=ProcessOutput(vm, None),
        stderr=ProcessOutput(vm, None),
        terminal=command.terminal,
    )

    def exited(process: GuestProcess) -> None:
        service.processes.pop(process.pid, None)
        if on_exit is not None:
            on_exit(process)

    return GuestProcess(view, external, exited, on_release)


def connect_streams(
    service: GuestService, wanted: Mapping[str, str], refuse: Callable[[str], Exception]
) -> dict[str, FakeStream]:
    """Connect standard streams to services of the host: all of them, or none.

    :param wanted: services by the name of the stream.
    :param refuse: makes the exception for a stream at whose service nobody listens.
    """
    streams: dict[str, FakeStream] = {}
    for name, service_id in wanted.items():
        try:
            streams[name] = service.vm.dial(service_id)
        except ConnectionRefusedError:
            close_streams(streams)
            raise refuse(name) from None
    return streams


def close_streams(streams: Mapping[str, FakeStream]) -> None:
    """Close the streams of a process that does not start."""
    for stream in streams.values():
        stream.close()


def attach_streams(process: GuestProcess, streams: Mapping[str, FakeStream]) -> None:
    """Give a process its streams; on a terminal, both outputs are one."""
    view, vm = process.view, process.view.vm
    view.stdin = ProcessInput(vm, streams.get("stdin"))
    terminal = view.terminal is not None
    view.stdout = ProcessOutput(vm, streams.get("stdout"), terminal)
    view.stderr = view.stdout if terminal else ProcessOutput(vm, streams.get("stderr"))


def wait_for(service: GuestService, request: Incoming, process: GuestProcess, timeout_ms: int) -> JSON | None:
    """Answer with the exit code, now or when it is known."""
    if process.exit_code is not None:
        request.after = process.release
        return {"ExitCode": process.exit_code}
    if timeout_ms == WAIT_FOREVER_MS:
        process.when_exited(lambda code: service.answer(request, {"ExitCode": code}))
        return None
    limit = anyio.CancelScope()

    def tell(code: int) -> None:
        limit.cancel()
        service.answer(request, {"ExitCode": code})

    async def expire() -> None:
        with limit:
            await anyio.sleep(timeout_ms / 1000)
            process.forget(tell)
            service.refuse(request, hresult(request.operation, HResult.ERROR_VMCOMPUTE_TIMEOUT))

    process.when_exited(tell)
    service.spawn(expire)
    return None
