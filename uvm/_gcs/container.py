"""One container in a guest, over our own connection to it.

How it works
------------

After the guest has dialled again it is asked about each container that has not ended, since the report of an
exit may have been lost with the connection: whether it knows the container, and where it is a Linux guest,
whether the container's own process has exited, with which the container ends.

Source: hcsshim internal/gcs/container.go.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from attrs import define, field

from uvm._gcs.calls import Call
from uvm._gcs.exits import ExitWatch
from uvm._gcs.link import GuestLink
from uvm._gcs.process import start_process
from uvm._guest.container import ContainerExit, doubt
from uvm._guest.exit import Exit
from uvm._guest.process import Launch, Process
from uvm._guest.specs import check_writable
from uvm._wire.frames import Procedure, parse
from uvm.backend import JSON
from uvm.errors import GuestError, UnknownOutcomeError, UVMError, VMStateError
from uvm.hresult import SYSTEM_ENDED
from uvm.schema import gcs
from uvm.schema.json import from_json
from uvm.schema.process import ProcessDetails
from uvm.schema.properties import PROPERTY_PROCESS_LIST, Properties, PropertyQuery

#: How often a guest is asked for a container's processes: each connection may break before the answer.
_MAX_ASKED: Final = 3


@define(eq=False, repr=False)
class ConnectedContainer:
    """A container over our own connection (:class:`~uvm._guest.container.ContainerHandle`).

    :ivar activity_id: of the request that creates it; the guest reports its exit under it.
    :ivar created: the guest has answered that request, or never will.
    :ivar opened: another connection created it, so that its activity id is unknown.
    :ivar exit: its exit, to be.
    """

    _link: GuestLink
    id: str
    activity_id: str
    #: Called when the guest has deleted its state, and when its exit is settled.
    _free: Callable[[ConnectedContainer], None]
    created: bool = field(default=False, init=False)
    opened: bool = field(default=False, init=False)
    exit: Exit[ContainerExit] = field(init=False)
    _init: Exit[int] | None = field(default=None, init=False)
    # A task ends the container with its own process.
    _followed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.exit = Exit()
        self.exit.then(lambda: self._free(self))

    async def start(self) -> None:
        """Start it."""
        seconds = self._link.timeouts.container_seconds
        await self._ask(Procedure.START, "start", timeout_seconds=seconds)

    async def run(self, launch: Launch) -> Process:
        """Start a process in it."""
        return await start_process(self._link, self.id, launch)

    def init_started(self, exit: Exit[int]) -> None:
        """Note that the container's own process was started, with whose exit the container ends."""
        self._init = exit

    def start_lost(self) -> None:
        """Find out what became of the container's own process: the answer to its start was lost."""
        self._link.watch(self._find_init)

    async def _find_init(self) -> None:
        with suppress(UVMError):
            if found := await self._list_processes():
                await ExitWatch(self._link, self.id, found[0].process_id).exit.wait()
            doubt(self._link, self.exit)

    async def _list_processes(self) -> list[ProcessDetails]:
        for _ in range(_MAX_ASKED - 1):
            with suppress(UnknownOutcomeError):
                return from_json(Properties, await self.properties(PROPERTY_PROCESS_LIST)).process_list
        return from_json(Properties, await self.properties(PROPERTY_PROCESS_LIST)).process_list

    async def end(self, *, forced: bool) -> None:
        """Ask for its end."""
        procedure = Procedure.SHUTDOWN_FORCED if forced else Procedure.SHUTDOWN_GRACEFUL
        await self._ask(procedure, "terminate" if forced else "shut down")

    async def delete_state(self, *, runs: bool) -> None:
        """Have the guest delete its state; VMStateError where it runs: the guest refuses, and forgets it."""
        if runs and self._init is not None and not self._init.settled:
            raise VMStateError(
                f"{self._operation('delete the state of')}: its own process runs; nothing was sent. "
                "Terminate it, or wait for it, before"
            )
        supported = self._link.features.delete_container_state
        self._link.needs(supported, self._operation("delete the state of"), "DeleteContainerStateSupported")
        try:
            await self._ask(Procedure.DELETE_CONTAINER_STATE, "delete the state of")
        except GuestError as error:
            if error.hresult in SYSTEM_ENDED:
                self._free(self)
            raise
        self._free(self)

    async def forget(self) -> bool:
        """Have the guest delete its state; False where it cannot."""
        if not self._link.features.delete_container_state:
            return False
        await self.delete_state(runs=False)
        return True

    async def properties(self, *types: str) -> JSON:
        """Query properties."""
        query = check_writable("the query", PropertyQuery(property_types=list(types)))
        answer = await self._link.bridge.call(
            Procedure.GET_PROPERTIES,
            gcs.GetPropertiesRequest(container_id=self.id, query=query),
            gcs.GetPropertiesResponse,
            operation=self._operation("query"),
        )
        return parse(answer.properties.removeprefix("\ufeff").encode())

    async def modify(self, request: JSON) -> None:
        """Have a ``ModificationRequest`` carried out."""
        body = gcs.ContainerModifySettingsRequest(container_id=self.id, request=request)
        await self._ask(Procedure.MODIFY_SETTINGS, "modify", body)

    def check(self) -> None:
        """Ask the guest whether it has ended: the report of that may have been lost."""
        # The guest may be at its creation still.
        if self.exit.settled or self._link.bridge.closed or not self.created:
            return
        self._link.bridge.submit(
            Procedure.GET_PROPERTIES,
            gcs.GetPropertiesRequest(container_id=self.id),
            operation=self._operation("ask about"),
            then=self._checked,
        )
        if self._init is not None and not self._followed:
            self._followed = self._link.watch(self._end_with, self._init)

    def _checked(self, call: Call) -> None:
        # What else is refused, or lost, says nothing of its end.
        with suppress(UVMError):
            try:
                call.result(gcs.ResponseBase)
            except GuestError as error:
                if error.hresult in SYSTEM_ENDED:
                    doubt(self._link, self.exit)

    async def _end_with(self, init: Exit[int]) -> None:
        with suppress(UVMError):
            await init.wait()
        if init.gone():
            doubt(self._link, self.exit)

    def _operation(self, verb: str) -> str:
        return f"{verb} container {self.id}"

    async def _ask(
        self,
        procedure: Procedure,
        verb: str,
        request: gcs.RequestBase | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        await self._link.bridge.call(
            procedure,
            request or gcs.RequestBase(container_id=self.id),
            gcs.ResponseBase,
            operation=self._operation(verb),
            timeout_seconds=timeout_seconds,
        )
