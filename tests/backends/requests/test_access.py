"""The table of the access of VMs to paths."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from uvm.backends.requests.access import AccessTable


class _Key(str):
    """A key that lets another thread run whenever it is looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0)
        return super().__hash__()


def test_vms_in_threads_have_access_to_one_path_from_their_grants_to_their_revocations() -> None:
    table = AccessTable(lambda path: _Key(path.lower()), bool)

    def keeps_access(vm_id: str) -> bool:
        for _ in range(100):
            table.grant("/Layer", vm_id, "read")
            if not table.allows("/layer", vm_id, writable=False) or "/Layer" not in table.paths(vm_id):
                return False
            table.revoke("/LAYER", vm_id)
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(keeps_access, ("vm1", "vm2", "vm3", "vm4")))
    assert table.entries() == []
