"""One container in a guest that is reached through HCS, which hosts it as a compute system of its own.

How it works
------------

Each container has one task, in the task group of its VM. It asks HCS for the container, waits for its exit,
and holds the handle until the container is forgotten::

    create_relayed --+-- HCS, or the guest, refuses ----> an error
                     |
                     |-- the caller is cancelled -------> ended and forgotten, as soon as HCS has answered
                     v
                   THERE ---- its exit -----------------> EXITED -- delete_state --> the handle is closed
                     |
                     `------- the VM's exit -------------> LOST: wait() raises BridgeClosedError;
                                                          the handle is closed

HCS ends what still runs when its last handle is closed, and forgets what has exited.

Source: hcsshim internal/uvm/create.go and internal/hcs/v2/system.go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import anyio
from attrs import evolve

from uvm._async import Flag
from uvm._guest.container import Container, ContainerExit, container_config, directories_of, own_process
from uvm._guest.exit import Exit
from uvm._guest.process import Process
from uvm._guest.specs import check_container_id, check_writable
from uvm._hcsguest.access import RelayAccess, start_served
from uvm._hcsguest.process import start_relayed
from uvm.backend import JSON, System
from uvm.errors import ExitStatus, HostError, UVMError, VMStateError
from uvm.schema.common import Version
from uvm.schema.json import dumps, to_json
from uvm.schema.process import ProcessParameters
from uvm.schema.secrets import printable
from uvm.schema.system import ComputeSystem

T = TypeVar("T")

_log = logging.getLogger("uvm.gcs")


class RelayedContainer:
    """A container that HCS hosts (:class:`~uvm._guest.container.ContainerHandle`)."""

    def __init__(
        self, access: RelayAccess, container_id: str, directories: tuple[str, ...], system: System
    ) -> None:
        self.id = container_id
        self.directories = directories
        self.exit: Exit[ContainerExit] = Exit()
        self._access = evolve(access, container=system)
        self._system = system
        # Its VM went.
        self._cut_off = False
        # It is to be closed.
        self._given_up = Flag()
        self._closed = Flag()
        self._waiting = anyio.CancelScope()

    async def start(self) -> None:
        """Start it."""
        await self._ask(self._system.start)

    async def run(
        self,
        args: tuple[str, ...],
        parameters: ProcessParameters,
        pipes: Mapping[str, bool],
        terminal: bool,
        on_start: Callable[[Process], None],
    ) -> Process:
        """Start a process in it."""
        start = partial(start_relayed, self._access, args, parameters, pipes, terminal, on_start)
        return await self._ask(start)

    def init_started(self, exit: Exit[int]) -> None:
        """Do nothing: HCS reports the exit of the container."""

    def start_lost(self) -> None:
        """Do nothing: HCS reports the exit of the container."""

    async def end(self, *, forced: bool) -> None:
        """Ask for its end."""
        await self._ask(self._system.terminate if forced else self._system.shutdown)

    async def delete_state(self, *, runs: bool) -> None:
        """Have HCS forget it; VMStateError where it runs, since HCS would end it."""
        if runs and not await self._has_stopped():
            raise VMStateError(
                f"delete the state of container {self.id}: it has not exited, and HCS would end it; "
                "nothing was done"
            )
        await self.forget()

    async def _has_stopped(self) -> bool:
        properties = await self._ask(self._system.properties)
        return properties.get("Stopped") is True or properties.get("State") == "Stopped"

    async def forget(self) -> bool:
        """Have the handle closed, and wait until it is."""
        self._given_up.set()
        self._waiting.cancel()
        await self._closed.wait()
        return True

    async def properties(self, *types: str) -> JSON:
        """Query properties."""
        return await self._ask(partial(self._system.properties, *types))

    async def modify(self, request: JSON) -> None:
        """Have a ``ModificationRequest`` carried out."""
        await self._ask(partial(self._system.modify, request))

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call to HCS; BridgeClosedError where the VM has gone, or goes meanwhile."""
        self._require_vm()
        try:
            return await self._access.ask(call())
        except HostError as error:
            if self._cut_off:
                raise self._access.closed_error() from error
            raise

    def _require_vm(self) -> None:
        if self._cut_off:
            raise self._access.closed_error()

    # Its task.

    async def serve(self) -> None:
        """Wait for its exit, and close the handle once it is to be closed: the container's own task."""
        try:
            await self._await_exit()
            await self._given_up.wait()
        finally:
            if not self._given_up.is_set():
                self._cut()
            with anyio.CancelScope(shield=True):
                await self._close()
            self._closed.set()

    def abandon(self) -> None:
        """Have it ended in the background, and its handle closed: its caller was cancelled."""
        if not self._closed.is_set() and not self._cut_off:
            self._access.tasks.start_soon(self._abandon)

    async def _abandon(self) -> None:
        # Its VM may end it at any time, and does not wait for this.
        try:
            await self.end(forced=True)
        except UVMError as error:
            _log.warning("a container whose caller was cancelled: %s", error)
        await self.forget()

    async def _close(self) -> None:
        try:
            await self._system.close()
        except Exception as error:
            # Nothing depends on it any more; what does go on is not to be ended by it.
            _log.warning("closing the handle of container %s: %r", self.id, error)

    async def _await_exit(self) -> None:
        try:
            with self._waiting:
                await self._report(await self._system.wait())
        except HostError as error:
            if await self._access.lost_with_vm(error):
                self._cut()
            else:
                parts = (error.operation, error.hresult, error.text, error.records)
                self.exit.lose(lambda: HostError(*parts))
        except Exception as error:
            # Whatever it is, the VM goes on.
            _log.warning("waiting for container %s: %r", self.id, error)
            self._cut()

    async def _report(self, status: ExitStatus) -> None:
        # What went with its VM has not exited, as over our own connection.
        if await self._access.vm_has_gone():
            self._cut()
        elif not self.exit.settled:
            info = dumps(status.detail) if status.detail else ""
            self.exit.report(ContainerExit(printable(status.exit_type), status.code, info))
            _log.info("%s: container %s has exited: %s", self._access.name, self.id, status.exit_type)

    def _cut(self) -> None:
        """Note that its VM has gone."""
        self._cut_off = True
        self.exit.lose(self._access.closed_error, cut_off=True)


async def create_relayed(access: RelayAccess, container_id: str, document: object) -> Container:
    """Have HCS create a container in the guest, which it hosts.

    A caller may be cancelled at any time; the container is ended as soon as HCS has answered.

    :param document: as for :meth:`uvm._gcs.connection.GuestConnection.create_container`.
    :raises OptionsError: the document is none, or the state of the last container of that id is kept.
    :raises HostError: HCS refused: there is a compute system of that id, for instance; or the guest that it
        asked; or the VM has exited.
    :raises UnknownOutcomeError: the answer was lost; the container may be there.
    :raises AnswerLostError: the VM went before the answer.
    """
    check_container_id(container_id)
    config = container_config(document)
    process = own_process(config, access.os)
    check_writable("the document of the container", config)
    await access.states.check_free(container_id)
    hosted = ComputeSystem(
        owner=access.owner,
        schema_version=Version(major=2, minor=1),
        hosting_system_id=access.system.id,
        hosted_system=config,
        should_terminate_on_last_handle_closed=True,
    )

    async def make() -> RelayedContainer:
        system = await access.create(container_id, to_json(hosted))
        return RelayedContainer(access, container_id, directories_of(config), system)

    return Container(access, await start_served(access, make), process)
