"""One container in a guest, over our own connection to it.

How it works
------------

The life of a container::

    create --+-- the guest refuses ---------> an error; the id is free again
             |
             |-- the caller is cancelled ---> ended and forgotten, as soon as the guest has answered
             v
          THERE ---- the guest's notification ----> EXITED -- delete_state --> forgotten by the guest
             |
             `------ the connection closes -------> LOST: wait() raises BridgeClosedError

Source: hcsshim internal/gcs/container.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from uvm._gcs.bridge import Timeout
from uvm._gcs.link import GuestLink
from uvm._gcs.process import start_process
from uvm._guest.container import Container
from uvm._guest.process import Process
from uvm._guest.specs import check_writable
from uvm._wire.frames import Procedure, parse
from uvm.backend import JSON
from uvm.errors import UVMError, VMStateError
from uvm.schema.gcs import (
    ContainerModifySettingsRequest,
    GetPropertiesRequest,
    GetPropertiesResponse,
    RequestBase,
)
from uvm.schema.process import ProcessParameters
from uvm.schema.properties import PropertyQuery


class ConnectedContainer(Container):
    """A container over our own connection; see :class:`~uvm._guest.container.Container`."""

    def __init__(
        self,
        link: GuestLink,
        container_id: str,
        own_process: Mapping[str, Any],
        forget: Callable[[ConnectedContainer], None],
    ) -> None:
        super().__init__(link, container_id, own_process)
        self._link = link
        self._forget = forget

    async def start(self) -> None:
        """Start it; see :meth:`uvm._guest.container.Container.start`."""
        seconds = self._link.timeouts.container_seconds
        await self._ask(Procedure.START, "start", timeout_seconds=seconds)

    async def delete_state(self) -> None:
        """Have the guest forget it; see :meth:`uvm._guest.container.Container.delete_state`."""
        supported = self._link.features.delete_container_state
        self._link.needs(supported, self._operation("delete the state of"), "DeleteContainerStateSupported")
        await self._release(self._ask(Procedure.DELETE_CONTAINER_STATE, "delete the state of"))
        if not self._tells_of_its_exit and not self._ended.is_set():
            self.lost(lambda: VMStateError(f"container {self.id} was deleted before it ran"))
            self._forget(self)

    async def properties(self, *types: str) -> JSON:
        """Query properties; see :meth:`uvm._guest.container.Container.properties`."""
        query = check_writable("the query", PropertyQuery(property_types=list(types)))
        answer = await self._link.bridge.call(
            Procedure.GET_PROPERTIES,
            GetPropertiesRequest(container_id=self.id, query=query),
            GetPropertiesResponse,
            operation=self._operation("query"),
            abandonable=True,
        )
        return parse(answer.properties.encode())

    async def modify(self, request: JSON) -> None:
        """Change it; see :meth:`uvm._guest.container.Container.modify`."""
        await self._link.bridge.call(
            Procedure.MODIFY_SETTINGS,
            ContainerModifySettingsRequest(container_id=self.id, request=request),
            operation=self._operation("modify"),
        )

    async def _run(
        self,
        args: tuple[str, ...],
        parameters: ProcessParameters,
        pipes: Mapping[str, bool],
        terminal: bool,
        on_start: Callable[[Process], None] = lambda _: None,
    ) -> Process:
        return await start_process(
            self._link, self.id, args, parameters, terminal=terminal, on_start=on_start, **pipes
        )

    async def _ask_to_end(self, *, forced: bool) -> None:
        procedure = Procedure.SHUTDOWN_FORCED if forced else Procedure.SHUTDOWN_GRACEFUL
        await self._ask(procedure, "terminate" if forced else "shut down", abandonable=True)

    async def _close_state(self) -> Exception | None:
        if not self._link.features.delete_container_state:
            return None
        try:
            await self.delete_state()
        except UVMError as error:
            return error
        return None

    async def _ask(
        self,
        procedure: Procedure,
        verb: str,
        *,
        timeout_seconds: Timeout = "default",
        abandonable: bool = False,
    ) -> None:
        await self._link.bridge.call(
            procedure,
            RequestBase(container_id=self.id),
            operation=self._operation(verb),
            timeout_seconds=timeout_seconds,
            abandonable=abandonable,
        )
