"""Directories shared over SMB and 9p."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backends.fake.support import (
    DISK,
    JSON,
    SHARED,
    add,
    backend_of,
    expect_refusal,
    lcow,
    remove,
    running,
    update,
    vm_of,
    wcow,
)
from uvm.hresult import HResult
from uvm.schema.requests import Plan9Shares, VSMBShares

pytestmark = pytest.mark.anyio


def smb(name: str = "s1", path: str = SHARED, files: list[str] | None = None, **options: bool) -> JSON:
    share: dict[str, Any] = {"Name": name, "Path": path, "Options": options}
    return share if files is None else {**share, "AllowedFiles": files}


def p9(name: str = "0", path: str = SHARED, files: list[str] | None = None, flags: int = 4) -> JSON:
    share: dict[str, Any] = {"Name": name, "AccessName": name, "Path": path, "Port": 564, "Flags": flags}
    return share if files is None else {**share, "AllowedFiles": files}


async def test_smb_shares_are_there_by_name_until_they_are_removed() -> None:
    async with running(wcow()) as system:
        await system.modify(add(VSMBShares.PATH, smb("s1")))
        await system.modify(add(VSMBShares.PATH, smb("s2")))
        assert list(system.vm.tree.vsmb.shares) == ["s1", "s2"]
        await system.modify(remove(VSMBShares.PATH, {"Name": "s1"}))
        assert system.vm.tree.inventory()["VirtualSmb"]["Shares"] == [
            {"Name": "s2", "Path": SHARED, "Options": {}}
        ]


async def test_9p_shares_are_there_by_name_until_they_are_removed() -> None:
    async with running() as system:
        await system.modify(add(Plan9Shares.PATH, p9("0")))
        await system.modify(remove(Plan9Shares.PATH, {"Name": "0", "AccessName": "0", "Port": 564}))
        assert system.vm.tree.plan9.shares == {}


@pytest.mark.parametrize(
    ("path", "share", "document"), [(VSMBShares.PATH, smb(), wcow()), (Plan9Shares.PATH, p9(), lcow())]
)
class TestEveryShare:
    async def test_a_name_is_taken_once(self, path: str, share: JSON, document: JSON) -> None:
        async with running(document) as system:
            await system.modify(add(path, share))
            with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
                await system.modify(add(path, share))

    async def test_an_unknown_name_can_be_neither_removed_nor_updated(
        self, path: str, share: JSON, document: JSON
    ) -> None:
        async with running(document) as system:
            with expect_refusal(HResult.ERROR_NOT_FOUND):
                await system.modify(remove(path, {"Name": share["Name"]}))
            with expect_refusal(HResult.ERROR_NOT_FOUND):
                await system.modify(update(path, share))

    async def test_the_directory_must_exist(self, path: str, share: JSON, document: JSON) -> None:
        async with running(document) as system:
            with expect_refusal(HResult.ERROR_PATH_NOT_FOUND):
                await system.modify(add(path, share | {"Path": r"C:\none"}))
            with expect_refusal(HResult.ERROR_DIRECTORY):
                await system.modify(add(path, share | {"Path": DISK}))

    async def test_a_share_needs_a_name_and_a_path(self, path: str, share: JSON, document: JSON) -> None:
        async with running(document) as system:
            for field in ("Name", "Path"):
                with expect_refusal(HResult.E_INVALIDARG):
                    await system.modify(add(path, {k: v for k, v in share.items() if k != field}))
            with expect_refusal(HResult.HCS_E_INVALID_JSON):
                await system.modify(add(path, share | {"Nme": "x"}))

    async def test_an_unrestricted_share_cannot_be_updated(
        self, path: str, share: JSON, document: JSON
    ) -> None:
        async with running(document) as system:
            await system.modify(add(path, share))
            with expect_refusal(HResult.E_INVALIDARG):
                await system.modify(update(path, share | {"AllowedFiles": ["a"]}))

    async def test_the_exit_ends_the_share(self, path: str, share: JSON, document: JSON) -> None:
        async with running(document) as system:
            await system.modify(add(path, share))
            await system.terminate()
            assert system.vm.tree.vsmb.shares == {}
            assert system.vm.tree.plan9.shares == {}

    async def test_a_vm_without_the_device_has_no_shares(
        self, path: str, share: JSON, document: JSON
    ) -> None:
        other = lcow() if path == VSMBShares.PATH else wcow()
        async with running(other) as system:
            with expect_refusal(HResult.ERROR_NOT_FOUND):
                await system.modify(add(path, share))


async def test_the_allowed_files_of_a_restricted_share_can_change_and_nothing_else() -> None:
    async with running(wcow()) as system:
        await system.modify(add(VSMBShares.PATH, smb(files=["a"], RestrictFileAccess=True)))
        await system.modify(update(VSMBShares.PATH, smb(files=["a", "b"], RestrictFileAccess=True)))
        assert system.vm.tree.vsmb.shares["s1"].allowed_files == ["a", "b"]
        for other in (
            smb(files=["a"], RestrictFileAccess=True, ReadOnly=True),
            smb(files=["a"]),
            smb(path=r"C:\disks", files=["a"], RestrictFileAccess=True),
            smb(files=[], RestrictFileAccess=True),
        ):
            with expect_refusal(HResult.E_INVALIDARG):
                await system.modify(update(VSMBShares.PATH, other))


async def test_a_restricted_9p_share_can_change_its_allowed_files() -> None:
    async with running() as system:
        await system.modify(add(Plan9Shares.PATH, p9(files=["a"], flags=0x84)))
        await system.modify(update(Plan9Shares.PATH, p9(files=["b"], flags=0x84)))
        assert system.vm.tree.plan9.shares["0"].allowed_files == ["b"]


async def test_the_shares_of_the_document_are_there_from_the_start() -> None:
    async with running(wcow(VirtualSmb={"Shares": [smb("os")]})) as system:
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(VSMBShares.PATH, smb("os")))


async def test_a_permissive_file_system_shares_anything() -> None:
    async with running() as system:
        backend_of(system).files.permissive = True
        await system.modify(add(Plan9Shares.PATH, p9(path=r"C:\anything")))
        assert len(vm_of(system).tree.plan9.shares) == 1
