"""A host for the fake guest's compute service: it speaks the protocol through the codec, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from tests.backends.fake.support import JSON, host_files, lcow, running
from tests.guestsuite.host import ACTIVITY, GCS, STREAMS, GuestHost
from tests.guestsuite.host import HostedProcess as Process
from uvm._wire.frames import Procedure
from uvm._wire.ports import WINDOWS_GCS_SERVICE
from uvm.backend import ByteStream
from uvm.backends.fake import FakeBackend, FakeListener, FakeSystem, FakeVM, GuestService

__all__ = ["ACTIVITY", "GCS", "Host", "STREAMS", "Process", "booted"]


class Host(GuestHost):
    """The host's end, and what it knows of a fake VM."""

    system: FakeSystem

    def __init__(self, system: FakeSystem, listener: FakeListener, stream: ByteStream) -> None:
        super().__init__(system, listener, stream, os=system.vm.os)

    @property
    def vm(self) -> FakeVM:
        return self.system.vm

    @property
    def service(self) -> GuestService:
        return self.system.vm.service


@asynccontextmanager
async def booted(
    document: JSON | None = None, backend: FakeBackend | None = None, *, negotiate: bool = True
) -> AsyncIterator[Host]:
    """A running VM whose guest has connected to the host."""
    backend = backend or FakeBackend(files=host_files())
    async with running(document or lcow(), backend) as system:
        service = WINDOWS_GCS_SERVICE if system.vm.os == "windows" else GCS
        listener = await system.listen(service)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.wait)
            with anyio.fail_after(10):
                host = Host(system, listener, await listener.accept())
            if negotiate:
                await host.negotiate()
                if host.os == "windows":
                    await host.ask(Procedure.CREATE, ContainerConfig='{"SystemType":"Container"}')
                    await host.ask(Procedure.START)
            yield host
            tasks.cancel_scope.cancel()
