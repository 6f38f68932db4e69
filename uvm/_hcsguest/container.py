"""One container in a guest that is reached through HCS, which hosts it as a compute system of its own.

How it works
------------

Each container has one task, in the task group of its VM. It waits for the exit, and holds the handle until
the container is forgotten::

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

from functools import partial

from attrs import evolve

from uvm._guest.access import has_gone, has_stopped
from uvm._guest.container import Container, ContainerExit, container_config, end_abandoned
from uvm._guest.exit import Exit
from uvm._guest.process import Launch, Process
from uvm._hcsguest.access import RelayAccess, Relayed, start_served
from uvm._hcsguest.process import start_relayed
from uvm._log import Log
from uvm.backend import JSON, System
from uvm.errors import VMStateError
from uvm.schema.common import Version
from uvm.schema.json import dumps, to_json
from uvm.schema.secrets import printable
from uvm.schema.system import ComputeSystem

_log = Log("uvm.gcs")


class RelayedContainer(Relayed[ContainerExit]):
    """A container that HCS hosts (:class:`~uvm._guest.container.ContainerHandle`)."""

    def __init__(self, access: RelayAccess, container_id: str, system: System) -> None:
        super().__init__(evolve(access, container=system), system, f"container {container_id}")
        self.id = container_id
        self._system = system

    async def start(self) -> None:
        """Start it."""
        await self._ask(self._system.start)

    async def run(self, launch: Launch) -> Process:
        """Start a process in it."""
        return await self._ask(partial(start_relayed, self._access, launch))

    def init_started(self, exit: Exit[int]) -> None:
        """Do nothing: HCS reports the exit of the container."""

    def start_lost(self) -> None:
        """Do nothing: HCS reports the exit of the container."""

    async def end(self, *, forced: bool) -> None:
        """Ask for its end."""
        await self._ask(self._system.terminate if forced else self._system.shutdown)

    async def delete_state(self, *, runs: bool) -> None:
        """Have HCS forget it; VMStateError where it runs, since HCS would end it."""
        if runs and not has_stopped(await self._ask(self._system.properties)):
            raise VMStateError(
                f"delete the state of container {self.id}: it has not exited, and HCS would end it; "
                "nothing was sent. Terminate it, or wait for it, before"
            )
        await self.forget()

    async def forget(self) -> bool:
        """Have the handle closed, and wait until it is."""
        self._unused.set()
        self._waiting.cancel()
        await self._closed.wait()
        return True

    async def properties(self, *types: str) -> JSON:
        """Query properties."""
        answer = await self._ask(partial(self._system.properties, *types))
        if has_stopped(answer) and await has_gone(self._access.system):
            raise self._access.closed_error()
        return answer

    async def modify(self, request: JSON) -> None:
        """Have a ``ModificationRequest`` carried out."""
        await self._ask(partial(self._system.modify, request))

    async def _report_exit(self) -> None:
        status = await self._system.wait()
        # What went with its VM has not exited, as over our own connection.
        if await has_gone(self._access.system):
            self._cut()
        elif not self.exit.settled:
            info = dumps(status.detail) if status.detail else ""
            exit = ContainerExit(printable(status.exit_type), status.code, info)
            _log.info(self._access.name, "container %s has exited: %s", self.id, exit)
            self.exit.report(exit)


async def create_relayed(access: RelayAccess, container_id: str, document: object) -> Container:
    """Have HCS create a container in the guest, which it hosts.

    A cancelled caller leaves at once; the container is ended as soon as HCS has answered.

    :param document: as for :meth:`uvm._gcs.connection.GuestConnection.create_container`.
    :raises OptionsError: the document is none, or the state of the last container of that id is kept.
    :raises HostError: HCS refused: there is a compute system of that id, for instance; or the guest that it
        asked; or the VM has exited.
    :raises UnknownOutcomeError: the answer was lost; the container may be there.
    :raises AnswerLostError: the VM went before the answer.
    :raises VMStateError: HCS, or the guest, owes too many answers.
    """
    config = await container_config(access, container_id, document)
    hosted = ComputeSystem(
        owner=access.owner,
        schema_version=Version(major=2, minor=1),
        hosting_system_id=access.system.id,
        hosted_system=config,
        should_terminate_on_last_handle_closed=True,
    )

    async def make() -> Container:
        handle = RelayedContainer(access, container_id, await access.create(container_id, to_json(hosted)))
        return Container(access, handle, config)

    return await start_served(access, f"create container {container_id}", make, end_abandoned)
