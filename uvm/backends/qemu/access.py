"""Access of VMs to host paths: what :meth:`~uvm.backend.Backend.grant_access` was asked for.

This process opens what QEMU uses, with the rights of its own user, whatever QEMU's is. The table holds a VM
to what its caller granted, as HCS does, so that a caller who forgets a grant finds out here.
"""

from __future__ import annotations

import os

from uvm._repr import shown
from uvm.backend import VM_GROUP, AccessMask
from uvm.errors import HostError
from uvm.hresult import HResult


class AccessTable:
    """Entries by path. Granting the same access to the same VM again is one entry, not a count."""

    def __init__(self) -> None:
        self._masks: dict[str, dict[str, AccessMask]] = {}

    def __repr__(self) -> str:
        return shown(self, "entries")

    def grant(self, path: str, to: str, mask: AccessMask) -> None:
        """Add an entry; a VM's own entry includes writing, as that of ``HcsGrantVmAccess`` does.

        :raises HostError: ERROR_FILE_NOT_FOUND.
        """
        if not os.path.exists(path):
            raise HostError(f"grant access to {path}", HResult.ERROR_FILE_NOT_FOUND, "it does not exist")
        self._masks.setdefault(os.path.realpath(path), {})[to] = mask if to == VM_GROUP else "all"

    def revoke(self, path: str, to: str) -> None:
        """Remove an entry; does nothing if there is none, or nothing at the path."""
        key = os.path.realpath(path)
        masks = self._masks.get(key, {})
        masks.pop(to, None)
        if not masks:
            self._masks.pop(key, None)

    def allows(self, path: str, vm_id: str, *, writable: bool) -> bool:
        """Return whether a VM may open a path."""
        masks = self._masks.get(os.path.realpath(path), {})
        granted = (masks.get(vm_id), masks.get(VM_GROUP))
        return "all" in granted or ("read" in granted and not writable)

    def entries(self) -> list[tuple[str, str]]:
        """Return every entry: the path, resolved, and the VM, or the VM group."""
        return [(path, to) for path, masks in self._masks.items() for to in masks]
