"""Requests to the guest that HCS relays over its own connection."""

from __future__ import annotations

import pytest

from tests.backends.fake.support import (
    JSON,
    add,
    backend_of,
    disk,
    expect_refusal,
    lcow,
    remove,
    running,
    slot,
    to_guest,
    vm_of,
)
from uvm.errors import UnknownOutcomeError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

MOUNT = to_guest("MappedVirtualDisk", "Add", MountPath="/m")
UNMOUNT = to_guest("MappedVirtualDisk", "Remove", MountPath="/m")


def relaying() -> JSON:
    document = lcow()
    document["VirtualMachine"]["GuestConnection"] = {"UseVsock": True}
    return document


async def test_host_then_guest_add_and_guest_then_host_remove() -> None:
    async with running(relaying()) as system:
        await system.modify(add(slot(0), disk()) | {"GuestRequest": MOUNT})
        assert list(system.vm.guest.mounts) == ["/m"]
        await system.modify(remove(slot(0)) | {"GuestRequest": UNMOUNT})
        assert system.vm.guest.mounts == {}
        assert system.vm.tree.scsi.disks == {}
        entries = backend_of(system).request_log.entries(to=("host", "guest"))
        assert [(e.to, e.call.request_type) for e in entries] == [
            ("host", "Add"),
            ("guest", "Add"),
            ("guest", "Remove"),
            ("host", "Remove"),
        ]


async def test_a_request_to_the_guest_alone_is_relayed() -> None:
    async with running(relaying()) as system:
        await system.modify(add(slot(0), disk()))
        await system.modify({"GuestRequest": MOUNT})
        assert list(system.vm.guest.mounts) == ["/m"]


async def test_where_the_guest_refuses_an_add_the_host_takes_it_back() -> None:
    async with running(relaying()) as system:
        with expect_refusal(HResult.E_FAIL) as caught:
            wrong = to_guest("MappedVirtualDisk", "Add", MountPath="/m", Lun=9)
            await system.modify(add(slot(0), disk()) | {"GuestRequest": wrong})
        assert "there is no disk 0:9" in str(caught.value)
        assert system.vm.tree.scsi.disks == {}


async def test_where_the_guest_refuses_a_remove_the_host_keeps_it() -> None:
    async with running(relaying()) as system:
        await system.modify(add(slot(0), disk()))
        with expect_refusal(HResult.E_FAIL):
            await system.modify(remove(slot(0)) | {"GuestRequest": UNMOUNT})
        assert list(system.vm.tree.scsi.disks) == [(0, 0)]


async def test_where_the_host_refuses_an_add_the_guest_is_not_asked() -> None:
    async with running(relaying()) as system:
        await system.modify(add(slot(0), disk()))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(slot(0), disk()) | {"GuestRequest": MOUNT})
        assert backend_of(system).request_log.entries(to="guest") == []


async def test_malformed_guest_requests_are_refused() -> None:
    async with running(relaying()) as system:
        with expect_refusal(HResult.ERROR_VMCOMPUTE_INVALID_JSON):
            await system.modify({"GuestRequest": {"Resource": "x"}})


@pytest.mark.parametrize(
    "request_", [{"GuestRequest": MOUNT}, add(slot(0), disk()) | {"GuestRequest": MOUNT}]
)
async def test_nothing_is_relayed_without_a_connection_of_hcs(request_: JSON) -> None:
    async with running() as system:
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION):
            await system.modify(request_)
        assert vm_of(system).tree.scsi.disks == {}
        assert vm_of(system).guest.mounts == {}


async def test_an_answer_of_the_guest_that_is_lost_leaves_both_sides_as_they_are() -> None:
    async with running(relaying()) as system:
        backend_of(system).faults.lose(to="guest")
        with pytest.raises(UnknownOutcomeError):
            await system.modify(add(slot(0), disk()) | {"GuestRequest": MOUNT})
        assert list(system.vm.tree.scsi.disks) == [(0, 0)]
        assert list(system.vm.guest.mounts) == ["/m"]
