"""Documents and modify requests of callers, read and refused as HCS does it."""

from __future__ import annotations

import re
from typing import Any, Final, Generic, TypeVar

from attrs import define

from uvm._repr import showing
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json
from uvm.schema.requests import Resource, parse_resource_path

T = TypeVar("T")
R = TypeVar("R", bound=Resource)

_TYPES: Final = ("Add", "Update", "Remove")
#: Paths that HCS knows and that nothing of uvm uses.
_UNUSED: Final = re.compile(
    r"VirtualMachine/ComputeTopology/(Gpu|Processor/(IdledProcessors|CpuFrequencyPowerCap))"
    r"|VirtualMachine/Devices/(FlexibleIov/[^/]+|Licensing|SharedMemory/Regions)"
)


def copy_json(value: Any) -> Any:
    """Return a copy of a JSON value, which does not change with the caller's.

    :raises ValueError: it is not a JSON value; the message names the part that is not.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"a key is {key!r}, not a string")
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copy_json(item) for item in value]
    raise ValueError(f"{type(value).__name__} is no JSON type")


def read_document(cls: type[T], document: Any, operation: str) -> T:
    """Return a document as a model.

    :raises HostError: HCS_E_INVALID_JSON if it is none.
    """
    try:
        return from_json(cls, document, forbid_extra=True)
    except SchemaError as error:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(error)) from None


@showing("operation")
@define(eq=False, repr=False)
class Request(Generic[R]):
    """A ``ModifySettingRequest`` with its resource path parsed.

    :ivar action: ``Add``, ``Update`` or ``Remove``; ``Add`` if the request names none.
    """

    resource: R
    action: str
    settings: Any

    @property
    def operation(self) -> str:
        """The request in an error message."""
        return f"{self.action} {self.resource.path}"

    def parse(self, cls: type[T]) -> T:
        """Parse the settings, as strictly as HCS does: HCS_E_INVALID_JSON."""
        return read_document(cls, self.settings, self.operation)

    def allow(self, *actions: str) -> None:
        """Refuse other request types: E_INVALIDARG."""
        if self.action not in actions:
            raise self.invalid(f"its RequestType is {' or '.join(actions)}")

    def refuse(self, code: int, text: str = "") -> HostError:
        """Return the error that refuses the request."""
        return HostError(self.operation, code, text)

    def invalid(self, text: str) -> HostError:
        """Return the error for an invalid argument: E_INVALIDARG."""
        return self.refuse(HResult.E_INVALIDARG, text)

    def missing(self, text: str) -> HostError:
        """Return the error for what does not exist: ERROR_NOT_FOUND."""
        return self.refuse(HResult.ERROR_NOT_FOUND, text)

    def taken(self, text: str) -> HostError:
        """Return the error for what exists already: ERROR_ALREADY_EXISTS."""
        return self.refuse(HResult.ERROR_ALREADY_EXISTS, text)

    def lacking(self, text: str) -> HostError:
        """Return the error for what this hypervisor does not have: ERROR_NOT_SUPPORTED."""
        return self.refuse(HResult.ERROR_NOT_SUPPORTED, text)


def read_request(path: str, request_type: str, settings: Any, lacking: str) -> Request[Any]:
    """Return a request to change a VM, with its path parsed; one without a type adds.

    :param lacking: why what HCS knows, and nothing of uvm uses, is refused.
    :raises HostError: its type is none: HCS_E_INVALID_JSON; ERROR_NOT_SUPPORTED; or its path is unknown:
        E_INVALIDARG.
    """
    action = request_type or "Add"
    if action not in _TYPES:
        raise HostError(f"modify {path}", HResult.HCS_E_INVALID_JSON, f"RequestType is {action!r}")
    resource = parse_resource_path(path)
    if resource is not None:
        return Request(resource, action, settings)
    if _UNUSED.fullmatch(path):
        raise HostError(f"{action} {path}", HResult.ERROR_NOT_SUPPORTED, lacking)
    raise HostError(f"{action} {path}", HResult.E_INVALIDARG, "unknown resource path")


def number_of(key: str, what: str) -> int:
    """Return the number that a key of a document is.

    :raises HostError: the key is no number: E_INVALIDARG.
    """
    if not (key.isascii() and key.isdecimal() and len(key) < 20):
        raise HostError(f"Add {what} {key}", HResult.E_INVALIDARG, f"{key!r} is not a number")
    return int(key)
