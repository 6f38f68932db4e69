"""Handles of systems and of processes: their calls, waiting, and closing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.lowlevel
from attrs import define, field

from uvm.backend import HostInfo
from uvm.backends.fake.calls import To, copy_document
from uvm.backends.fake.computesystem import Opened
from uvm.backends.fake.exchange import Exchange
from uvm.backends.fake.request_log import Entry
from uvm.backends.fake.vm import FakeVM
from uvm.backends.handles import Handle
from uvm.errors import GuestError, HostError

T = TypeVar("T")


@define(eq=False, repr=False)
class HostSide:
    """What the handles of a backend share.

    :ivar processes: the open handles of processes, in the order in which they were opened.
    """

    exchange: Exchange
    info: HostInfo
    processes: dict[FakeHandle, None] = field(factory=dict, init=False)


class FakeHandle(Handle):
    """A handle of the fake, whose calls are in the request log.

    :ivar vm: the VM that it concerns, for tests to look at.
    """

    #: What follows the name of an operation in the request log.
    _suffix: ClassVar[str] = ""

    def __init__(self, host: HostSide, vm: FakeVM, target: Opened, name: str, resource: str = "") -> None:
        """Open a handle.

        :param name: the name of the target in errors.
        :param resource: the resource of its calls in the request log; by default what a request names.
        """
        super().__init__(name)
        self._host = host
        self._target = target
        self._resource = resource
        self.vm: FakeVM = vm
        target.opened()

    async def close(self) -> None:
        """Close the handle at once, even in a cancelled scope. Closing it again is refused."""
        operation = f"close{self._suffix}"

        def close() -> None:
            self._close(operation)
            self._release()

        self._host.exchange.carry_out_at_once(self._begin("lifecycle", operation, None), close)
        await anyio.lowlevel.checkpoint()

    def _release(self) -> None:
        """Release what the handle holds."""
        self._target.closed()

    def _begin(self, to: To, operation: str, document: Any) -> Entry:
        fields = document if operation == "modify" and isinstance(document, dict) else {}
        resource = self._resource or str(fields.get("ResourcePath") or fields.get("ResourceType") or "")
        request_type = str(fields.get("RequestType") or "")
        log = self._host.exchange.request_log
        return log._begin(to, self.vm.id, operation, document, resource, request_type)

    async def _call(self, to: To, operation: str, document: Any, change: Callable[[], T]) -> T:
        def checked() -> T:
            self._require_open(operation)
            return change()

        return await self._host.exchange.carry_out(self._begin(to, operation, document), checked, self.vm)

    async def _guest_call(self, operation: str, document: Any, change: Callable[[], T]) -> T:
        """Make a call that HCS relays to the guest, whose refusal becomes a HostError."""
        try:
            return await self._call("guest", operation, document, change)
        except GuestError as e:
            raise HostError(f"{operation} {self._name}: {e.operation}", e.hresult, e.text) from None

    def _copied(self, operation: str, document: Any) -> Any:
        return copy_document(document, f"{operation} {self._name}")
