"""Access of VMs to host paths: the access-control entries that ``HcsGrantVmAccess`` adds.

A backend that opens the files of VMs with its own rights holds each VM to what its caller granted, as HCS
does, so that a caller who forgets a grant finds out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from uvm._repr import showing
from uvm.backend import VM_GROUP, AccessMask
from uvm.errors import HostError
from uvm.hresult import HResult


@showing("entries")
class AccessTable:
    """Entries by path. Granting the same access to the same VM again is one entry, not a count.

    Entries are added, removed and looked up in any thread.

    :param key: returns the key of a path, which all its spellings have.
    :param find: returns what is at a path; something false if nothing is.
    """

    def __init__(self, key: Callable[[str], str], find: Callable[[str], object]) -> None:
        self._key = key
        self._find = find
        self._masks: dict[str, dict[str, AccessMask]] = {}
        self._paths: dict[str, str] = {}
        self._lock = threading.Lock()

    def grant(self, path: str, to: str, mask: AccessMask) -> None:
        """Add an entry; a VM's own entry includes writing, as that of ``HcsGrantVmAccess`` does.

        :raises HostError: ERROR_FILE_NOT_FOUND.
        """
        if not self._find(path):
            raise HostError(f"grant access to {path}", HResult.ERROR_FILE_NOT_FOUND, "it does not exist")
        key = self._key(path)
        with self._lock:
            self._paths.setdefault(key, path)
            self._masks.setdefault(key, {})[to] = mask if to == VM_GROUP else "all"

    def revoke(self, path: str, to: str) -> None:
        """Remove an entry; does nothing if there is none, or nothing at the path."""
        key = self._key(path)
        with self._lock:
            masks = self._masks.get(key, {})
            masks.pop(to, None)
            if not masks and key in self._masks:
                del self._masks[key], self._paths[key]

    def allows(self, path: str, vm_id: str, *, writable: bool) -> bool:
        """Return whether a VM may open a path."""
        masks = self.granted(path)
        granted = (masks.get(vm_id), masks.get(VM_GROUP))
        return "all" in granted or ("read" in granted and not writable)

    def granted(self, path: str) -> dict[str, AccessMask]:
        """Return the entries of a path: VM ids, and the VM group, to masks."""
        key = self._key(path)
        with self._lock:
            return dict(self._masks.get(key, {}))

    def paths(self, to: str) -> list[str]:
        """Return the paths, as they were first granted, that a VM or the VM group has entries on."""
        return [path for path, holder in self.entries() if holder == to]

    def entries(self) -> list[tuple[str, str]]:
        """Return every entry: the path, as it was first granted, and the VM, or the VM group."""
        with self._lock:
            return [(self._paths[key], to) for key, masks in self._masks.items() for to in masks]
