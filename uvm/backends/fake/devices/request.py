"""One modify request to the host, and what a device kind is to the device tree."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from attrs import frozen

from uvm.backend import JSON
from uvm.backends.fake.host import Host
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json
from uvm.schema.requests import Resource
from uvm.schema.system import VirtualMachine

T = TypeVar("T")
R = TypeVar("R", bound=Resource)


@frozen
class Request(Generic[R]):
    """A ``ModifySettingRequest`` whose path is understood.

    :ivar action: ``Add``, ``Update`` or ``Remove``; ``Add`` if the request names none.
    """

    resource: R
    action: str
    settings: Any

    @property
    def operation(self) -> str:
        """The request for a message."""
        return f"{self.action} {self.resource.path}"

    def parse(self, cls: type[T]) -> T:
        """Read the settings, as strictly as HCS does: HCS_E_INVALID_JSON."""
        try:
            return from_json(cls, self.settings, forbid_extra=True)
        except SchemaError as e:
            raise self.refuse(HResult.HCS_E_INVALID_JSON, str(e)) from None

    def allow(self, *actions: str) -> None:
        """Refuse other request types: E_INVALIDARG."""
        if self.action not in actions:
            raise self.invalid(f"only {' and '.join(actions)} can be done to this")

    def refuse(self, code: int, text: str = "") -> HostError:
        """Make the exception that refuses the request."""
        return HostError(self.operation, code, text)

    def invalid(self, text: str) -> HostError:
        """Make the refusal of an argument: E_INVALIDARG."""
        return self.refuse(HResult.E_INVALIDARG, text)

    def missing(self, text: str) -> HostError:
        """Make the refusal for what is not there: ERROR_NOT_FOUND."""
        return self.refuse(HResult.ERROR_NOT_FOUND, text)

    def taken(self, text: str) -> HostError:
        """Make the refusal for what is there already: ERROR_ALREADY_EXISTS."""
        return self.refuse(HResult.ERROR_ALREADY_EXISTS, text)


class DeviceKind(Generic[R]):
    """One kind of device of one VM: what is there, and the requests that change it.

    A subclass names its resources, reads the VM's document in :meth:`load`, and changes nothing if it refuses
    a request. :meth:`close` undoes what ties it to the host.

    :cvar name: its name in the inventory.
    """

    __slots__ = ("host", "vm_id")

    resources: ClassVar[tuple[type[Resource], ...]]
    name: ClassVar[str]

    def __init__(self, vm_id: str, host: Host) -> None:
        self.vm_id: str = vm_id
        self.host: Host = host

    def load(self, vm: VirtualMachine) -> None:
        """Take over what the VM's document has of this kind."""

    def modify(self, request: Request[R]) -> None:
        """Carry out a request, or raise HostError and change nothing."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything: the VM has exited."""

    def inventory(self) -> JSON:
        """Return what is there, as a JSON object; empty where there is nothing."""
        raise NotImplementedError


def number_of(key: str, what: str) -> int:
    """Return the number that a key of a document is.

    :raises HostError: it is none: E_INVALIDARG.
    """
    if not (key.isascii() and key.isdecimal() and len(key) < 20):
        raise HostError(f"Add {what} {key}", HResult.E_INVALIDARG, f"{key!r} is not a number")
    return int(key)
