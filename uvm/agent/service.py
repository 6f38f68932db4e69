"""The compute service: which part of the agent carries out which request.

Each part adds what it serves to a table::

    service.add(Procedure.CREATE, create, CONTAINER, blocking=True)
    service.add(Procedure.WAIT_FOR_PROCESS, wait, EVERY)
    service.resources["Network", "Add"] = add_adapter

A handler gets the :class:`~uvm.agent.requests.Request`, and returns the fields of its answer; or None, and
the request is answered later, in the loop, by :meth:`Request.answer` or :meth:`Request.refuse`; or it raises
:class:`~uvm.agent.refused.Refused`. It runs in the loop; a blocking one in a worker, at the same time as
others, and it may not answer later.

A function for a kind of resource gets the settings of the request, as the host's JSON has them, in a worker.
It carries the request out, or raises Refused and has changed nothing.

Any other exception is a bug: it is logged with its stack, and the request refused with E_FAIL and its text.

Source: hcsshim internal/guest/bridge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from uvm._wire.frames import GO_NAMES, Kind, Procedure
from uvm.agent.loop import Loop
from uvm.agent.refused import Refused, coded, reason
from uvm.agent.requests import GUEST, JSON, Request
from uvm.agent.settings import Settings
from uvm.hresult import HResult

Handler: TypeAlias = Callable[[Request], JSON | None]
Modify: TypeAlias = Callable[[Any], None]

#: For whom a handler is: for requests to the guest itself, to containers, or both.
ITSELF: Final = frozenset({True})
CONTAINER: Final = frozenset({False})
EVERY: Final = ITSELF | CONTAINER


class Service:
    """The table of what the agent serves.

    :param on_error: reports a bug.
    :ivar resources: what modifies the guest, by the type of the resource and that of the request.
    """

    def __init__(self, loop: Loop, on_error: Callable[[BaseException], object]) -> None:
        self.loop = loop
        self._on_error = on_error
        self._handlers: dict[tuple[int, bool], tuple[Handler, bool]] = {}
        self.resources: dict[tuple[str, str], Modify] = {}
        self.add(Procedure.MODIFY_SETTINGS, self._modify, ITSELF, blocking=True)

    def add(
        self, procedure: Procedure, handler: Handler, to: frozenset[bool], *, blocking: bool = False
    ) -> None:
        """Have a handler carry out a procedure.

        :param to: :data:`ITSELF`, :data:`CONTAINER` or :data:`EVERY`.
        :param blocking: it may block, and runs in a worker.
        """
        for itself in to:
            self._handlers[procedure, itself] = handler, blocking

    def handle(self, request: Request) -> None:
        """Carry out a request, and answer it now or later."""
        itself = request.container_id == GUEST
        handler, blocking = self._handlers.get((request.procedure, itself), (_unserved, False))
        if blocking:
            self.loop.work(lambda: handler(request), lambda fields, error: self._end(request, fields, error))
            return
        try:
            fields = handler(request)
        except Exception as error:
            self._end(request, None, error)
        else:
            self._end(request, fields, None)

    def _end(self, request: Request, fields: JSON | None, error: BaseException | None) -> None:
        if error is not None:
            request.refuse(self.refusal(error))
        elif fields is not None:
            request.answer(fields)

    def refusal(self, error: BaseException) -> Refused:
        """Return how a request is refused because of an exception; one that is not expected is reported."""
        if isinstance(error, Refused):
            return error
        self._on_error(error)
        return Refused(reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")

    def resource_types(self) -> set[str]:
        """Return the types of resources that there is something for."""
        return {resource for resource, _ in self.resources}

    def _modify(self, request: Request) -> JSON:
        change = request.read().part("Request") or Settings({})
        resource, action = change.text("ResourceType"), change.text("RequestType") or "Add"
        modify = self.resources.get((resource, action))
        if modify is None and resource in self.resource_types():
            raise Refused(f'the RequestType "{action}" is not supported')
        if modify is None:
            raise Refused(f"invalid ResourceType '{resource}'")
        modify(change.value("Settings"))
        return {}


def _unserved(request: Request) -> None:
    """Refuse what no part of the agent serves: of containers, since there are none, or at all."""
    if request.procedure in GO_NAMES and request.container_id != GUEST:
        request.read()
        raise coded(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
    raise unknown_message(request.procedure)


def unknown_message(procedure: int) -> Refused:
    """Return the refusal of what the guest does not do, or not now."""
    name = GO_NAMES.get(procedure) or str(Kind.REQUEST | procedure)
    return coded(HResult.E_NOTIMPL, f"bridge: function not supported, header type: {name}")
