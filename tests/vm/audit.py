"""The invariant at quiet: what the ledgers say is applied = the host's device tree = the guest's mounts.

:mod:`uvm.testing.backends.audit` compares them; here is what else has to hold of the machinery in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.vm.support import Running, idle
from uvm.devices.base import LedgerState
from uvm.testing.backends import audit
from uvm.testing.backends.audit import Audit, place


def compare(run: Running) -> Audit:
    """Compare the VM with its host and its guest."""
    return audit.audit(run.vm, run.backend.vms[run.vm.id])


def check_at_rest(run: Running) -> None:
    """Nothing is in flight, and ledgers, host and guest agree."""
    for name, driver in run.vm._drivers():
        assert idle(driver), f"{name} is not at rest: {driver.ledger.dump()}"
        holds = set(driver._holds)
        tickets = {t for e in driver.ledger for t in (*e.holders, *e.owed)}
        assert holds == tickets, f"{name}: a hold without its ticket, or a ticket without its hold"
    reported = [(q.key, q.slot, q.operation) for q in run.vm.quarantined]
    withheld = [(q.key, q.slot, q.operation) for s in run.vm.ledgers().values() for q in s.quarantined]
    assert sorted(map(str, reported)) == sorted(map(str, withheld))
    found = compare(run)
    assert found.expected == found.actual
    _check_guest(run)
    _check_allocators(run)


def _check_guest(run: Running) -> None:
    """Nothing hangs in the air in the guest, but a root file system that is withheld itself."""
    if audit.guest_is_gone(run.vm):
        return
    withheld = {place(q.slot) for q in run.vm.quarantined}
    for problem in run.guest.inconsistencies():
        assert any(str(slot) in problem for slot in withheld), problem


def _check_allocators(run: Running) -> None:
    """Every slot that is taken is an entry's, or withheld, or was reserved at creation; and none is twice."""
    for name, snapshot in run.vm.ledgers().items():
        slots = [*(e.slot for e in snapshot.entries), *(q.slot for q in snapshot.quarantined)]
        assert len(slots) == len(set(slots)), name
        check = _ALLOCATED.get(name)
        if check is not None:
            check(run, snapshot, slots)


def _scsi_slots(run: Running, snapshot: LedgerState[Any, Any, Any, Any], slots: list[Any]) -> None:
    taken = {64 * controller + lun for controller, lun in (*slots, *run.vm.plan.reserved_scsi)}
    assert snapshot.allocator == sum(1 << slot for slot in taken)


def _mount_numbers(run: Running, snapshot: LedgerState[Any, Any, Any, Any], slots: list[Any]) -> None:
    numbers, paths = snapshot.allocator
    assert numbers == sum(1 << slot.number for slot in slots)
    assert len(paths) == len(slots)


def _vpmem_slots(run: Running, snapshot: LedgerState[Any, Any, Any, Any], slots: list[Any]) -> None:
    if not run.vm.plan.vpmem_multi_mapping:
        assert snapshot.allocator == sum(1 << slot for slot in slots)
        return
    assert {m for _, _, mappings in snapshot.allocator for m, _ in mappings} == set(slots)


def _names(run: Running, snapshot: LedgerState[Any, Any, Any, Any], slots: list[Any]) -> None:
    assert snapshot.allocator == tuple(sorted(slots))


_ALLOCATED: dict[str, Callable[[Running, LedgerState[Any, Any, Any, Any], list[Any]], None]] = {
    "scsi.disks": _scsi_slots,
    "scsi.mounts": _mount_numbers,
    "vpmem.layers": _vpmem_slots,
    "vpci.devices": _names,
    "pipes.pipes": _names,
    "network.adapters": _names,
}
