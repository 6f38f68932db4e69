"""All that is attached to a VM, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from attrs import fields, frozen, has

from uvm._drawing.drawing import Drawing
from uvm._repr import brief, counted
from uvm._vm.drawing import draw_devices
from uvm._vm.rows import Rows
from uvm.backend import JSON
from uvm.schema.secrets import printable

#: What is counted of a VM's devices, in this order.
_COUNTED: Final = (
    *("disks", "layers", "vsmb_shares", "plan9_shares", "shared", "roots", "block_cims", "pipes"),
    *("pci_devices", "namespaces", "adapters", "orphans", "quarantined", "unrevoked_access"),
)


@frozen(kw_only=True)
class VMDevices(Rows):
    """All that is attached to a VM at one moment: what :meth:`uvm.UtilityVM.devices` returns.

    It is a plain value: it compares by content, the recent requests left out, and can be copied and pickled.
    ``print`` draws it as text, rich in colours, and notebooks as HTML; there all that is not printable in a
    name or path is escaped.

    :ivar scsi_controllers: how many SCSI controllers the VM has.
    :ivar reserved_scsi: the slots of the disks that the VM was created with; they are not in ``disks``.
    :ivar vpmem_count: how many VPMEM devices the VM may have.
    :ivar vpmem_size_bytes: the size of each.
    :ivar vpmem_multi_mapping: several layers share a VPMEM device.
    :ivar boot_vpmem_bytes: the size of the VM's own root file system on VPMEM device 0; None if that is free.
    :ivar shared: what ``vm.share`` shows; in a Linux guest, every Plan9 share.
    :ivar roots: the root file systems that the guest has combined.
    :ivar block_cims: the volumes of block CIMs in a Windows guest.
    :ivar namespaces: the ids of the network namespaces that the VM is in.
    :ivar orphans: what is attached and has no caller; ``vm.orphans`` has handles to release it.
    :ivar quarantined: the slots that are withheld, since what is in them is unknown.
    :ivar quarantined_scsi: those of the slots of disks.
    :ivar quarantined_vpmem: those of VPMEM devices: the device, the offset and the size in bytes.
    :ivar unrevoked_access: access to paths that could not be revoked with the last device on them.
    :ivar requests: the last requests that changed the VM while it ran, 16 at most, the oldest first.
    """

    def __repr__(self) -> str:
        return brief(f"<VMDevices of {printable(self.vm_id)}: {self._counts() or 'none'}>")

    def __str__(self) -> str:
        return str(self.__rich__())

    def __rich__(self) -> Drawing:
        return draw_devices(self)

    def _repr_html_(self) -> str:
        return self.__rich__()._repr_html_()

    def _counts(self) -> str:
        """Return how many of each kind are attached, without kinds of which there is none."""
        rows: dict[str, Sequence[object]] = {name: getattr(self, name) for name in _COUNTED}
        return ", ".join(counted(len(each), name.replace("_", " ")) for name, each in rows.items() if each)

    def as_json(self) -> JSON:
        """Return it as plain JSON values, times as in ISO 8601."""
        plain: JSON = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if has(type(value)):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(type(value))}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, str) else value
