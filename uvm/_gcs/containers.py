"""The containers over our own connection: one is made, the guest tells of its exit, it is known no more.

How it works
------------

Each container is known by its id from before its creation is asked for until the guest's notification of its
exit. A notification for any other id, so also a second one for the same container, breaks the protocol and
ends the connection, as in hcsshim. Where nobody can tell whether the guest has made a container, since the
answer was lost, its id stays taken.

Source: hcsshim internal/gcs/container.go and guestconnection.go.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anyio

from uvm._gcs.calls import Call
from uvm._gcs.container import ConnectedContainer
from uvm._gcs.link import GuestLink
from uvm._guest.container import ContainerExit, container_config, own_process
from uvm._guest.specs import check_container_id, check_writable
from uvm._wire.frames import Procedure, WireError
from uvm.errors import BridgeClosedError, GuestError, OptionsError, UVMError
from uvm.schema.container import HostedSystem
from uvm.schema.gcs import ContainerCreateRequest, ContainerNotification, LinuxHostedSystem, ResponseBase
from uvm.schema.secrets import printable

_log = logging.getLogger("uvm.gcs")


class Containers:
    """The containers of one guest that have not exited, by id."""

    def __init__(self, link: GuestLink) -> None:
        self._link = link
        self._known: dict[str, ConnectedContainer] = {}

    async def create(
        self, container_id: str, document: LinuxHostedSystem | HostedSystem | Mapping[str, Any]
    ) -> ConnectedContainer:
        """Create a container; see :meth:`uvm._gcs.connection.GuestConnection.create_container`."""
        check_container_id(container_id)
        config = container_config(document)
        process = own_process(config, self._link.os)
        if container_id in self._known:
            raise OptionsError(f"create container {container_id}: there is one of that id")
        container = ConnectedContainer(self._link, container_id, process, self._forget)
        self._known[container_id] = container
        try:
            await self._create(container, check_writable("the document of the container", config))
        except (GuestError, OptionsError, BridgeClosedError):
            self._forget(container)
            raise
        return container

    async def _create(self, container: ConnectedContainer, config: str) -> None:
        request = ContainerCreateRequest(container_id=container.id, container_config=config)
        call = self._link.bridge.submit(
            Procedure.CREATE,
            request,
            operation=f"create container {container.id}",
            timeout_seconds=self._link.timeouts.container_seconds,
        )
        try:
            await call.wait()
        except anyio.get_cancelled_exc_class():
            if not call.sent:
                call.abandon()
                self._forget(container)
                raise
            with anyio.CancelScope(shield=True):
                await call.wait()
                await self._discard(container, call)
            raise
        call.result(ResponseBase)

    async def _discard(self, container: ConnectedContainer, call: Call) -> None:
        """End a container, if it was created, whose caller has gone."""
        try:
            call.result(ResponseBase)
        except UVMError as error:
            _log.debug("a container whose caller was cancelled: %s", error)
            if isinstance(error, GuestError):
                self._forget(container)
            return
        try:
            await container.aclose()
        except UVMError as error:
            _log.warning("a container whose caller was cancelled: %s", error)

    def notify(self, notification: ContainerNotification) -> None:
        """Take a notification of the guest.

        :raises WireError: it is of a container that is not known, or no longer.
        """
        container = self._known.pop(notification.container_id, None)
        if container is None:
            raise WireError(
                f"the guest told of the exit of a container that is not there: "
                f"{printable(notification.container_id)}"
            )
        exit = ContainerExit(
            printable(notification.type), notification.result & 0xFFFFFFFF, notification.result_info
        )
        _log.info("%s: container %s has exited: %s", self._link.name, container.id, exit.type)
        container.exited(exit)

    def lose(self) -> None:
        """The connection has closed: nobody will be told of an exit any more."""
        for container in self._known.values():
            container.lost(self._link.closed_error)
        self._known.clear()

    def _forget(self, container: ConnectedContainer) -> None:
        if self._known.get(container.id) is container:
            del self._known[container.id]
