"""A template: a VM that is saved on its host, and that others are made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen

from uvm._arguments import kind_of
from uvm._checks import check_fields
from uvm._repr import brief
from uvm._systems import end_if_there, state_on_host
from uvm.errors import OptionsError, VMStateError
from uvm.schema.json import from_json, to_json
from uvm.schema.template import TEMPLATE_VERSION, TemplateDocument

if TYPE_CHECKING:
    from uvm.backend import Backend

#: The options in which a clone may differ from its template: those of the copy, what is merged over its
#: document, how this library handles it, and a pipe, which one VM alone can have.
OF_A_CLONE: Final = frozenset(
    {
        "id",
        "template",
        "clone_of",
        "scratch_directory",
        "additional_json",
        "console_pipe",
        "revoke_released_files",
        "survive_process",
    }
)
#: The state of a template, as the host calls it.
SAVED_AS_TEMPLATE: Final = "SavedAsTemplate"


@frozen(repr=False)
class Template:
    """A VM that is saved on its host as a template, as :meth:`uvm.UtilityVM.save_template` returns it.

    It is a plain value, which compares by content, and can be copied, pickled, and written as JSON. Another
    process may make clones of it, on the same host and as long as the saved VM is there.

    :ivar document: what it was created with, and what is attached to it. Not to be changed.
    """

    document: TemplateDocument

    def __repr__(self) -> str:
        return brief(f"<Template {self.vm_id} ({self.document.os})>")

    def __hash__(self) -> int:
        return hash(self.vm_id)

    @property
    def vm_id(self) -> str:
        """The id of the saved VM."""
        return self.document.system_id

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object, for :meth:`from_json`."""
        return to_json(self.document)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Template:
        """Return the template that :meth:`as_json` wrote.

        :raises OptionsError: it is of another version, or is no template.
        :raises SchemaError: a part of it is of another kind than was written.
        """
        given: object = value
        version = given.get("Version") if isinstance(given, Mapping) else None
        if version != TEMPLATE_VERSION or not isinstance(given, Mapping):
            what = kind_of(value) if version is None else f"version {version!r}"
            raise OptionsError(f"a template is a JSON object of version {TEMPLATE_VERSION}, not {what}")
        return cls(from_json(TemplateDocument, copy.deepcopy(dict(given)), forbid_extra=True))

    async def delete(self, backend: Backend) -> None:
        """End the saved VM, and revoke its access to the disks of the host.

        If it has gone, nothing happens but that. A VM of another state, which has the same id, is refused,
        and so is a template whose disks are below those of clones (:attr:`uvm.HostInfo.overlays`).

        :param backend: that of the host of the saved VM.
        :raises VMStateError: the VM of that id is no template, or clones need its disks; nothing was changed.
        :raises HostError: the host refused.
        """
        state = await state_on_host(backend, self.vm_id)
        if state and state not in (SAVED_AS_TEMPLATE, "Stopped"):
            raise VMStateError(
                f"delete template {self.vm_id}: the VM of that id is {state}, no template; "
                "nothing was changed"
            )
        if clones := await self._clones_on(backend):
            raise VMStateError(
                f"delete template {self.vm_id}: its disks are below those of its clones {', '.join(clones)}; "
                "close them first; nothing was changed"
            )
        if state:
            await end_if_there(self.vm_id, backend)
        for disk in (*self.document.boot_disks, *self.document.disks):
            if not disk.extensible_virtual_disk_type:
                await backend.revoke_access(disk.path, self.vm_id)

    async def _clones_on(self, backend: Backend) -> list[str]:
        """Return the ids of the clones that need disks of the template."""
        writable = any(not disk.read_only for disk in (*self.document.boot_disks, *self.document.disks))
        if not writable or not (await backend.host()).overlays:
            return []
        found = [each for each in await backend.enumerate() if each.get("RuntimeTemplateId") == self.vm_id]
        return [str(each.get("Id", "")) for each in found if each.get("State") != "Stopped"]


def differences(options: attrs.AttrsInstance, template: Template) -> list[str]:
    """Return the names of the options in which a clone differs from its template and may not."""
    ours, theirs = given_options(options), template.document.options
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def given_options(options: attrs.AttrsInstance) -> dict[str, Any]:
    """Return the options that are not at their defaults, as JSON, without :data:`OF_A_CLONE`."""
    names = check_fields(options).keys() - OF_A_CLONE
    left_out = (each for each in attrs.fields(type(options)) if each.name in OF_A_CLONE)
    plain = attrs.asdict(options, filter=attrs.filters.exclude(*left_out))
    return {name: _listed(plain[name]) for name in sorted(names)}


def _listed(value: Any) -> Any:
    """Return a value with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, tuple | list) else value
