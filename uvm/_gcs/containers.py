"""The containers over our own connection: which ids are taken, and which exits are yet to be reported.

How it works
------------

The id of a container is taken from before its creation is asked for until it has ended, or the guest has
deleted its state. A container whose caller has left is ended and its state deleted, as soon as the guest has
answered, however late. If that answer is lost, it is unknown whether there is one, and the same is done. The
id stays taken until then.

The report of an exit carries the activity id of the request that created the container. The first container
of an id has none (as in hcsshim); one that follows has a number, so that a report that comes late, or again,
ends no container but its own. A report for an id that no container ever had breaks the protocol and ends the
connection, as in hcsshim.

Source: hcsshim internal/gcs/container.go and guestconnection.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from uvm._gcs.container import ConnectedContainer
from uvm._gcs.link import GuestLink
from uvm._guest.container import Container, ContainerExit, container_config, end_abandoned
from uvm._guest.specs import check_container_id
from uvm._guest.starts import Start, start_in_task
from uvm._log import Log
from uvm._wire.frames import Procedure
from uvm.backend import JSON
from uvm.errors import OptionsError, UnknownOutcomeError, VMStateError, WireError
from uvm.schema import gcs
from uvm.schema.container import HostedSystem
from uvm.schema.json import dumps
from uvm.schema.secrets import printable

_log = Log("uvm.gcs")

#: Our activity ids; the first container of an id has 0.
_ACTIVITY: Final = "{:08x}-0000-0000-0000-000000000000"
_OURS: Final = re.compile("[0-9a-f]{8}-0000-0000-0000-000000000000", re.IGNORECASE)
#: How many ids are remembered after their containers have ended: reports may be late.
_MAX_ENDED: Final = 1024


class Containers:
    """The containers of one guest."""

    def __init__(self, link: GuestLink) -> None:
        self._link = link
        self._taken: dict[str, ConnectedContainer] = {}
        # By id and activity id.
        self._awaited: dict[tuple[str, str], ConnectedContainer] = {}
        # Ids that were taken, the oldest first.
        self._ended: dict[str, None] = {}
        self._numbers = 0
        # Ids whose states are being deleted without a container.
        self._deleting: set[str] = set()
        link.bridge.on_resume[self] = self._resumed

    async def create(
        self, container_id: str, document: gcs.LinuxHostedSystem | HostedSystem | Mapping[str, Any]
    ) -> Container:
        """Create a container; see :meth:`uvm._gcs.connection.GuestConnection.create_container`."""
        config = await container_config(self._link, container_id, document)
        operation = f"create container {container_id}"
        self._link.bridge.check_owed(Procedure.CREATE, operation)
        make = partial(self._create, container_id, config, operation)
        return await start_in_task(self._link, operation, make, end_abandoned)

    async def _create(
        self, container_id: str, config: JSON, operation: str, start: Start[Container]
    ) -> Container:
        handle = self._take(container_id)
        container = Container(self._link, handle, config)
        request = gcs.ContainerCreateRequest(
            container_id=container_id, activity_id=handle.activity_id, container_config=dumps(config)
        )
        try:
            call = self._link.bridge.submit(
                Procedure.CREATE,
                request,
                operation=operation,
                timeout_seconds=self._link.timeouts.container_seconds,
                starts=True,
            )
            answer = await self._link.answer(start, call, partial(end_abandoned, container))
            handle.created = True
            answer.result(gcs.ResponseBase)
        except UnknownOutcomeError as error:
            start.send_away(error)
            await end_abandoned(container)
            raise
        except BaseException:
            self._drop(handle)
            raise
        if answer is not call and self._taken.get(container_id) is not handle:
            # It was ended when its answer was lost, but may have been created only after that.
            return Container(self._link, self._take(container_id), config)
        return container

    async def delete_state(self, container_id: str) -> None:
        """Delete a state; see :meth:`uvm._gcs.connection.GuestConnection.delete_container_state`."""
        check_container_id(container_id)
        operation = f"delete the state of container {container_id}"
        self._link.needs(
            self._link.features.delete_container_state, operation, "DeleteContainerStateSupported"
        )
        if container_id in self._taken or container_id in self._deleting:
            raise VMStateError(
                f"{operation}: a container of that id is there, or being deleted; nothing was sent. "
                "Call the delete_state of the container"
            )
        self._deleting.add(container_id)
        try:
            request = gcs.RequestBase(container_id=container_id)
            delete = Procedure.DELETE_CONTAINER_STATE
            await self._link.bridge.call(delete, request, gcs.ResponseBase, operation=operation)
        finally:
            self._deleting.discard(container_id)

    def open(self, container_id: str) -> Container:
        """Open a container; see :meth:`uvm._gcs.connection.GuestConnection.open_container`."""
        check_container_id(container_id)
        if self._link.bridge.closed:
            raise self._link.closed_error()
        handle = self._take(container_id, "open")
        handle.created = handle.opened = True
        return Container(self._link, handle, None)

    def _take(self, container_id: str, verb: str = "create") -> ConnectedContainer:
        if container_id in self._taken or container_id in self._deleting:
            raise OptionsError(
                f"{verb} container {container_id}: one of that id is there, or being ended; nothing was sent"
            )
        number = 0
        if container_id in self._ended:
            number = self._numbers = self._numbers + 1
        handle = ConnectedContainer(self._link, container_id, _ACTIVITY.format(number), self._free)
        self._taken[container_id] = self._awaited[container_id, handle.activity_id] = handle
        return handle

    def notify(self, report: gcs.ContainerNotification) -> None:
        """Take the report of an exit.

        :raises WireError: no container ever had that id.
        """
        container_id, activity = report.container_id, report.activity_id.lower()
        handle = self._awaited.get((container_id, activity))
        taken = self._taken.get(container_id)
        if handle is None and taken is not None and (taken.opened or not _OURS.fullmatch(activity)):
            # A guest that does not say which of them, or a container that another connection created.
            handle = taken
        if handle is not None:
            exit = ContainerExit(printable(report.type), report.result & 0xFFFFFFFF, report.result_info)
            _log.info(self._link.name, "container %s has exited: %s", handle.id, exit)
            handle.exit.report(exit)
        elif container_id in self._taken:
            _log.debug(self._link.name, "the report of an exit came late, or again: %s", container_id)
            self._taken[container_id].check()
        elif container_id not in self._ended:
            raise WireError(
                "the guest reported the exit of a container that is not there: " + printable(container_id)
            )

    def lose(self) -> None:
        """Lose them all: the connection has closed, so that no exit is reported any more."""
        for handle in [*self._awaited.values()]:
            handle.exit.lose(self._link.closed_error, cut_off=True)
        self._awaited.clear()
        self._taken.clear()
        self._link.states.clear()

    def _resumed(self) -> None:
        for handle in list(self._awaited.values()):
            handle.check()

    def _free(self, handle: ConnectedContainer) -> None:
        """Free the id of a container that has ended, or whose state was deleted."""
        if handle.exit.settled:
            self._awaited.pop((handle.id, handle.activity_id), None)
        if self._taken.get(handle.id) is handle:
            del self._taken[handle.id]
            self._ended[handle.id] = None
            if len(self._ended) > _MAX_ENDED:
                del self._ended[next(iter(self._ended))]

    def _drop(self, handle: ConnectedContainer) -> None:
        """Drop a container that was never there."""
        if self._taken.get(handle.id) is handle:
            del self._taken[handle.id]
        self._awaited.pop((handle.id, handle.activity_id), None)
