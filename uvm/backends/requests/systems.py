"""Compute systems: those that an enumeration asks for, and the template that a document starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar

from uvm.backend import JSON
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.system import VirtualMachine

_FILTERS: Final = {"Ids": "Id", "Names": "Name", "Types": "SystemType", "Owners": "Owner"}


class Stated(Protocol):
    """A VM, and its state."""

    @property
    def id(self) -> str:
        """The id of the compute system."""

    @property
    def state(self) -> str:
        """The state, in HCS's terms."""


V = TypeVar("V", bound=Stated)


def chosen(systems: Iterable[JSON], query: JSON | None) -> list[JSON]:
    """Return those that fit ``Ids``, ``Names``, ``Types`` and ``Owners`` of a query."""
    wanted = {_FILTERS[k]: v for k, v in (query or {}).items() if k in _FILTERS and v}
    return [each for each in systems if all(each.get(field, "") in wanted[field] for field in wanted)]


def template_of(machine: VirtualMachine, vms: Mapping[str, V], operation: str) -> V | None:
    """Return the template that a document restores; None if it names none.

    :raises HostError: HCS_E_SYSTEM_NOT_FOUND; or HCS_E_INVALID_STATE, as it was not saved as a template.
    """
    state = machine.restore_state
    if state is None or not state.template_system_id:
        return None
    found = vms.get(state.template_system_id)
    if found is None:
        text = f"there is no VM {state.template_system_id} of this process to start from"
        raise HostError(operation, HResult.HCS_E_SYSTEM_NOT_FOUND, text)
    if found.state != "SavedAsTemplate":
        text = f"{found.id} is {found.state}, and was not saved as a template"
        raise HostError(operation, HResult.HCS_E_INVALID_STATE, text)
    return found
