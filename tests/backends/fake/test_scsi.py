"""Disks on SCSI controllers."""

from __future__ import annotations

import pytest

from tests.backends.fake.support import (
    DISK,
    JSON,
    LAYER,
    OTHER_DISK,
    SHARED,
    add,
    backend_of,
    disk,
    expect_refusal,
    host_files,
    lcow,
    remove,
    running,
    slot,
    update,
    vm_of,
)
from uvm.backend import VM_GROUP
from uvm.backends.fake import Checks, FakeBackend
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


async def test_an_attached_disk_is_in_the_inventory_until_it_is_removed() -> None:
    async with running() as system:
        await system.modify(add(slot(5), disk()))
        assert {k: str(d) for k, d in system.vm.tree.scsi.disks.items()} == {(0, 5): rf"disk 0:5 ({DISK})"}
        controllers = system.vm.tree.inventory()["Scsi"]
        assert [c["Attachments"] for c in controllers.values()] == [{"5": disk()}]
        await system.modify(remove(slot(5)))
        assert system.vm.tree.scsi.disks == {}


async def test_the_disks_of_the_document_are_attached_from_the_start() -> None:
    guid = slot(0).split("/")[3]
    async with running(lcow(Scsi={guid: {"Attachments": {"3": disk(LAYER, ReadOnly=True)}}})) as system:
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(slot(3), disk()))


async def test_a_slot_holds_one_disk() -> None:
    async with running() as system:
        await system.modify(add(slot(0), disk()))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(slot(0), disk(OTHER_DISK)))


async def test_an_empty_slot_has_nothing_to_remove_or_update() -> None:
    async with running() as system:
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(slot(0)))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(update(slot(0), disk()))


async def test_a_controller_must_be_in_the_document() -> None:
    async with running() as system:
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(add(slot(0, controller=1), disk()))


@pytest.mark.parametrize("lun", [64, 1000])
async def test_luns_end_at_63(lun: int) -> None:
    async with running() as system:
        await system.modify(add(slot(63), disk()))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(slot(lun), disk(OTHER_DISK)))


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (None, HResult.HCS_E_INVALID_JSON),
        ("text", HResult.HCS_E_INVALID_JSON),
        (disk(Colour="red"), HResult.HCS_E_INVALID_JSON),
        (disk(ReadOnly="yes"), HResult.HCS_E_INVALID_JSON),
        ({"Path": DISK}, HResult.HCS_E_INVALID_JSON),
        ({"Type": "Floppy", "Path": DISK}, HResult.HCS_E_INVALID_JSON),
        ({"Type": "VirtualDisk"}, HResult.E_INVALIDARG),
        ({"Type": "ExtensibleVirtualDisk", "Path": "x"}, HResult.E_INVALIDARG),
        (disk(ExtensibleVirtualDiskType="space"), HResult.E_INVALIDARG),
    ],
)
async def test_malformed_settings_are_refused(settings: JSON | None, code: int) -> None:
    async with running() as system:
        with expect_refusal(code):
            await system.modify(add(slot(0), settings))
        assert system.vm.tree.scsi.disks == {}


async def test_a_disk_must_exist_and_be_a_file() -> None:
    async with running() as system:
        with expect_refusal(HResult.ERROR_FILE_NOT_FOUND):
            await system.modify(add(slot(0), disk(r"C:\none.vhdx")))
        with expect_refusal(HResult.E_ACCESSDENIED):
            await system.modify(add(slot(0), disk(SHARED)))


async def test_a_physical_disk_exists_where_it_was_added_to_the_files() -> None:
    path = r"\\.\PHYSICALDRIVE2"
    async with running() as system:
        with expect_refusal(HResult.ERROR_FILE_NOT_FOUND):
            await system.modify(add(slot(0), {"Type": "PassThru", "Path": path}))
        backend_of(system).files.add(path, size=1 << 30)
        await backend_of(system).grant_access(path, "vm1")
        await system.modify(add(slot(0), {"Type": "PassThru", "Path": path}))


async def test_an_extensible_virtual_disk_names_no_file_of_the_host() -> None:
    settings = {"Type": "ExtensibleVirtualDisk", "Path": "some/mount", "ExtensibleVirtualDiskType": "space"}
    async with running() as system:
        await system.modify(add(slot(0), settings))
        await system.modify(add(slot(1), settings))
        await system.modify(remove(slot(0)))
        assert len(vm_of(system).tree.scsi.disks) == 1


async def test_a_disk_is_written_by_one_vm_or_read_by_many() -> None:
    backend = FakeBackend(files=host_files())
    async with running(backend=backend) as one, running(backend=backend, system_id="vm2") as two:
        await one.modify(add(slot(0), disk()))
        for vm in (one, two):
            for read_only in (False, True):
                with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
                    await vm.modify(add(slot(1), disk(ReadOnly=read_only)))
        await one.modify(remove(slot(0)))
        await one.modify(add(slot(0), disk(ReadOnly=True)))
        await two.modify(add(slot(0), disk(ReadOnly=True)))
        with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
            await two.modify(add(slot(1), disk()))


async def test_the_exit_lets_go_of_every_disk() -> None:
    backend = FakeBackend(files=host_files())
    async with running(backend=backend) as one, running(backend=backend, system_id="vm2") as two:
        await one.modify(add(slot(0), disk()))
        attached = one.vm.tree.scsi.disks[0, 0]
        await one.terminate()
        assert not attached.attached
        await two.modify(add(slot(0), disk()))


async def test_a_writable_disk_needs_access_of_the_vm() -> None:
    async with running() as system:
        backend = backend_of(system)
        with expect_refusal(HResult.E_ACCESSDENIED) as caught:
            await system.modify(add(slot(0), disk(LAYER)))
        assert "VM vm1 has no access" in str(caught.value)
        await backend.grant_access(LAYER.upper(), "vm1")
        await system.modify(add(slot(0), disk(LAYER)))
        await system.modify(remove(slot(0)))
        await backend.revoke_access(LAYER, "vm1")
        with expect_refusal(HResult.E_ACCESSDENIED):
            await system.modify(add(slot(0), disk(LAYER)))


async def test_access_of_the_vm_group_counts_as_far_as_its_mask_goes() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks(access="all"))
    async with running(backend=backend) as system:
        with expect_refusal(HResult.E_ACCESSDENIED):
            await system.modify(add(slot(0), disk(LAYER, ReadOnly=True)))
        await backend.grant_access(LAYER, VM_GROUP)
        await system.modify(add(slot(0), disk(LAYER, ReadOnly=True)))
        await system.modify(remove(slot(0)))
        with expect_refusal(HResult.E_ACCESSDENIED):
            await system.modify(add(slot(0), disk(LAYER)))
        await backend.grant_access(LAYER, VM_GROUP, "all")
        await system.modify(add(slot(0), disk(LAYER)))


async def test_read_only_disks_need_no_access_unless_told() -> None:
    async with running() as system:
        await system.modify(add(slot(0), disk(LAYER, ReadOnly=True)))
        assert len(vm_of(system).tree.scsi.disks) == 1


async def test_lenient_checks_take_any_disk() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks.lenient())
    async with running(backend=backend) as system:
        await system.modify(add(slot(0), disk(r"C:\none.vhdx")))
        assert await backend.files.stat(r"C:\none.vhdx") is None
        await system.modify(remove(slot(0)))


async def test_only_what_can_change_of_an_attached_disk_is_updated() -> None:
    async with running() as system:
        await system.modify(add(slot(0), disk()))
        await system.modify(update(slot(0), disk(IgnoreFlushes=True)))
        assert system.vm.tree.scsi.disks[0, 0].settings.ignore_flushes
        for other in (disk(OTHER_DISK), disk(ReadOnly=True), {"Type": "PassThru", "Path": DISK}):
            with expect_refusal(HResult.E_INVALIDARG):
                await system.modify(update(slot(0), other))


async def test_access_is_given_only_to_what_exists() -> None:
    backend = FakeBackend(files=host_files())
    with expect_refusal(HResult.ERROR_FILE_NOT_FOUND):
        await backend.grant_access(r"C:\none", "vm1")


async def test_access_that_was_never_given_can_be_taken_away() -> None:
    backend = FakeBackend(files=host_files())
    await backend.revoke_access(DISK, "vm1")
    await backend.grant_access(DISK, "vm1")
    await backend.grant_access(DISK, "vm1")
    assert backend.access.granted(DISK.upper()) == {"vm1": "all"}
    assert backend.leftovers() == [rf"access of vm1 to {DISK}"]
    await backend.revoke_access(DISK, "vm1")
    assert backend.leftovers() == []
