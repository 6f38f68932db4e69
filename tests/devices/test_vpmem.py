"""VPMEM: one layer per device, and packed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release, run
from tests.devices.scripts import steps_of_script
from uvm.devices.base import ADD, OK, REMOVE, Device, Operation, Refused, Unknown
from uvm.devices.ledger import Ledger
from uvm.devices.vpmem import (
    MAPPINGS_PER_DEVICE,
    Layer,
    Layers,
    Mapping,
    PackedLayers,
    _Packed,
    layer_path,
)
from uvm.errors import NoSpaceError, OptionsError, UnknownOutcomeError
from uvm.schema.common import MIB
from uvm.schema.requests import ModifySettingRequest

GIB = 1 << 30


def layer(path: str, size_bytes: int) -> tuple[str, Layer]:
    """The key and the member of a layer."""
    return path, Layer(path, size_bytes)


class LayersMachine(DeviceMachine):
    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Layers(4, GIB, boot=True)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        return layer(
            data.draw(st.sampled_from("abcde")), data.draw(st.sampled_from([0, 1, MIB, GIB, GIB + 1]))
        )


class PackedMachine(DeviceMachine):
    """Two devices of 6 MiB, so that space runs out and regions reach beyond the end."""

    def make_device(self) -> Device[Any, Any, Any, Any]:
        return PackedLayers(3, 6 * MIB, boot=True)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        return layer(
            data.draw(st.sampled_from("abcdefg")), data.draw(st.sampled_from([0, 1, MIB, 3 * MIB, 5 * MIB]))
        )

    def check_slots(self, slots: list[Any]) -> None:
        super().check_slots(slots)
        for one, next_one in pairwise(sorted(slots)):
            if one.device == next_one.device:
                assert one.offset_bytes + one.size_bytes <= next_one.offset_bytes, "two layers overlap"
        assert all(m.device in (1, 2) and m.offset_bytes + m.size_bytes <= 6 * MIB for m in slots)

    def begin_operation(self, operation: Operation[Any, Any, Any, Any]) -> bool:
        number = operation.slot.device
        here = [e.operation for e in self.ledger if e.slot.device == number and e.applied]
        stay = [o for o in here if o is None or o.kind != REMOVE]
        begun = [o for o, _, _ in self.begun]
        gate = self.ledger.device.gate(operation)
        if operation.kind != ADD or stay:
            assert gate is None
        elif all(o in begun and not o.void for o in here):
            assert gate == ("vpmem", number)
        else:  # what is to be removed may be wanted again, before that begins or when it did: either is right
            assert gate in (None, ("vpmem", number))
        return super().begin_operation(operation)


TestLayers = LayersMachine.TestCase
TestPacked = PackedMachine.TestCase


@pytest.mark.parametrize(
    ("script", "device"),
    [("lcow_vpmem_default", Layers(64, 4 * GIB)), ("lcow_vpmem_mapped", PackedLayers(2, 4 * GIB))],
)
def test_the_recorded_script(script: str, device: Layers | PackedLayers) -> None:
    ledger: Ledger[str, Layer, Any, Layer, object] = ledger_of(device)
    sizes: dict[str, int] = {}
    tickets: dict[str, Any] = {}
    for op, requests, step in steps_of_script(script):
        if op["op"] == "mkfile":
            sizes[op["path"]] = op["size"]
        elif op["op"] == "release":
            assert release(ledger, tickets[op["ref"]]) == requests
        elif op["path"] not in sizes:
            continue  # it is the facade that looks for the file
        elif "error" in step:
            with pytest.raises(NoSpaceError):
                ledger.acquire(op["path"], Layer(op["path"], sizes[op["path"]]))
        else:
            tickets[op["as"]], sent = add(ledger, *layer(op["path"], sizes[op["path"]]))
            assert sent == requests
            slot = tickets[op["as"]].entry.slot
            path = slot.guest_path if isinstance(slot, Mapping) else layer_path(slot)
            assert path == step["guest_path"]
    assert len(ledger) == 0


@pytest.mark.parametrize("device", [Layers(2, MIB), PackedLayers(2, MIB)])
def test_a_layer_larger_than_a_device_is_told_so(device: Layers | PackedLayers) -> None:
    with pytest.raises(NoSpaceError, match=rf"big\.vhd was not added.* a device {MIB}"):
        ledger_of(cast("Device[str, Layer, Any, Layer]", device)).acquire(*layer("big.vhd", MIB + 1))


@pytest.mark.parametrize("device", [Layers(2, MIB), PackedLayers(2, MIB)])
def test_an_empty_layer_is_refused(device: Layers | PackedLayers) -> None:
    with pytest.raises(OptionsError, match=r"empty\.vhd is empty"):
        ledger_of(cast("Device[str, Layer, Any, Layer]", device)).acquire(*layer("empty.vhd", 0))


def test_every_device_taken_is_told_so() -> None:
    ledger = ledger_of(Layers(1, MIB))
    add(ledger, *layer("a", 1))
    with pytest.raises(NoSpaceError, match="b was not added: no VPMEM device is free"):
        ledger.acquire(*layer("b", 1))
    packed = ledger_of(PackedLayers(1, MIB))
    add(packed, *layer("a", 1))
    with pytest.raises(NoSpaceError, match="b was not added: none of 1 VPMEM devices has a free region"):
        packed.acquire(*layer("b", 1))


def test_the_boot_device_holds_no_layer() -> None:
    assert add(ledger_of(Layers(2, MIB, boot=True)), *layer("a", 1))[0].entry.slot == 1
    assert add(ledger_of(PackedLayers(2, MIB, boot=True)), *layer("a", 1))[0].entry.slot == Mapping(
        1, 0, 4096
    )


def test_a_layer_goes_to_the_first_device_that_has_room() -> None:
    ledger = ledger_of(PackedLayers(3, 4 * MIB))
    mappings = [
        add(ledger, *layer(name, size * MIB))[0].entry.slot for name, size in [("a", 3), ("b", 3), ("c", 1)]
    ]
    assert [(m.device, m.offset_bytes) for m in mappings] == [(0, 0), (1, 0), (2, 0)]
    assert add(ledger, *layer("d", MIB))[0].entry.slot == Mapping(2, MIB, MIB)


def test_a_device_takes_1024_mappings() -> None:
    ledger = ledger_of(PackedLayers(2, 4 * GIB))
    mappings = [add(ledger, *layer(str(n), 1))[0].entry.slot for n in range(MAPPINGS_PER_DEVICE + 1)]
    assert [m.device for m in mappings] == [0] * 1024 + [1]


def test_a_layer_may_have_all_of_a_device_that_is_no_power_of_four() -> None:
    ledger = ledger_of(PackedLayers(1, 100 * MIB))
    assert add(ledger, *layer("a", 70 * MIB))[0].entry.slot == Mapping(0, 0, 70 * MIB)


def test_the_host_add_is_undone_by_the_host_remove() -> None:
    ledger = ledger_of(PackedLayers(1, GIB))
    _, change = ledger.acquire(*layer("a", MIB))
    assert change.operation is not None
    on_host, in_guest = ledger.begin(change.operation)
    assert on_host.undo is not None
    assert isinstance(on_host.request, ModifySettingRequest)
    assert isinstance(on_host.undo.request, ModifySettingRequest)
    assert on_host.undo.request.resource_path == on_host.request.resource_path
    assert (on_host.undo.request.request_type, in_guest.undo) == ("Remove", None)


def test_adds_to_a_device_go_one_at_a_time_until_something_is_mapped() -> None:
    device = PackedLayers(1, GIB)
    ledger = ledger_of(device)
    (_, first), (_, second) = ledger.acquire(*layer("a", MIB)), ledger.acquire(*layer("b", MIB))
    assert first.operation is not None
    assert second.operation is not None
    assert device.gate(first.operation) == device.gate(second.operation) == ("vpmem", 0)
    ledger.begin(first.operation)
    assert device.gate(second.operation) == ("vpmem", 0)
    ledger.done(first.operation, OK)
    assert device.gate(second.operation) is None
    (ticket,) = first.operation.serves
    ledger.drop(ticket)
    assert device.gate(second.operation) == ("vpmem", 0)


def test_a_mapping_of_unknown_outcome_does_not_open_the_gate() -> None:
    device = PackedLayers(1, GIB)
    ledger = ledger_of(device)
    _, change = ledger.acquire(*layer("a", MIB))
    assert change.operation is not None
    ledger.begin(change.operation)
    ledger.done(change.operation, Unknown(UnknownOutcomeError("lost")))
    _, change = ledger.acquire(*layer("a", MIB))
    assert change.operation is not None
    assert change.operation.slot == Mapping(0, MIB, MIB)
    assert device.gate(change.operation) == ("vpmem", 0)
    ledger.begin(change.operation)
    ledger.done(change.operation, OK)
    _, change = ledger.acquire(*layer("b", MIB))
    assert change.operation is not None
    assert device.gate(change.operation) is None


def test_a_layer_that_went_on_to_another_device_does_not_open_the_gate_of_the_first() -> None:
    device = PackedLayers(2, 5 * MIB)
    ledger = ledger_of(device)
    ticket, _ = add(ledger, *layer("a", 3 * MIB))
    removal = ledger.drop(ticket).operation
    assert removal is not None
    ledger.begin(removal)
    again, _ = ledger.acquire(*layer("a", 3 * MIB))
    change = ledger.done(removal, Unknown(UnknownOutcomeError("lost")))
    run(change.operation, ledger)
    assert again.entry.slot == Mapping(1, 0, 3 * MIB)
    _, change = ledger.acquire(*layer("b", MIB))
    assert change.operation is not None
    assert device.gate(change.operation) == ("vpmem", 0)


def test_a_restored_device_knows_what_is_mapped_on_it() -> None:
    ledger = ledger_of(PackedLayers(1, GIB))
    add(ledger, *layer("a", MIB))
    device = PackedLayers(1, GIB)
    restored = ledger_of(device)
    (ticket,) = restored.restore(ledger.dump())
    _, change = restored.acquire(*layer("b", MIB))
    assert change.operation is not None
    assert device.gate(change.operation) is None
    assert [r["to"] for r in release(restored, ticket)] == ["guest", "host"]


def test_adds_go_one_at_a_time_beside_what_is_removed_of_a_device_that_was_restored() -> None:
    ledger: Ledger[str, Layer, Any, Layer, object] = Ledger(PackedLayers(1, 6 * MIB))
    _, change = ledger.acquire("b", Layer("b", MIB))
    assert change.operation is not None
    steps = ledger.begin(change.operation)
    ledger.done(change.operation, Refused(OptionsError("refused"), steps[:1]))
    restored: Ledger[str, Layer, Any, Layer, object] = Ledger(PackedLayers(1, 6 * MIB))
    [owner] = restored.restore(ledger.dump())
    removal = restored.drop(owner).operation
    assert removal is not None
    assert restored.begin(removal) == steps[:1]
    _, change = restored.acquire("a", Layer("a", MIB))
    assert change.operation is not None
    assert restored.device.gate(change.operation) == ("vpmem", 0)


def test_the_gates_of_adds_at_once_look_at_few_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Mapping] = []
    stays = _Packed.stays

    def noted(self: _Packed, mapping: Mapping) -> bool:
        looked.append(mapping)
        return stays(self, mapping)

    monkeypatch.setattr(_Packed, "stays", noted)
    device, count = PackedLayers(1, 4 * GIB), 200
    ledger = ledger_of(device)
    adds = [ledger.acquire(*layer(str(n), MIB)) for n in range(count)]
    for number, (_, change) in enumerate(adds):
        assert change.operation is not None
        assert device.gate(change.operation) == (None if number else ("vpmem", 0))
        run(change.operation, ledger)
    removals = [ledger.drop(ticket).operation for ticket, _ in adds]
    for number, removal in enumerate(removals):
        _, change = ledger.acquire(*layer(f"again {number}", MIB))
        assert change.operation is not None
        assert device.gate(change.operation) == ("vpmem", 0)
        run(removal, ledger)
    assert len(looked) <= 3 * count
