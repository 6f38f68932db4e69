"""Files in a guest: in both guests, in containers, and copied in and out."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import uvm
from uvm._guest.unpack import Unpacking
from uvm.backends.fake import FakeProcess

pytestmark = pytest.mark.anyio

MIB = 1 << 20
#: Links, pipes and modes, which Windows makes for few or not at all.
links = pytest.mark.skipif(sys.platform == "win32", reason="takes links, pipes and modes of POSIX")


@pytest.fixture
async def vm() -> AsyncIterator[uvm.UtilityVM]:
    async with uvm.start_vm(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
        yield vm


def windows_vm() -> Any:
    backend = uvm.FakeBackend()
    backend.files.add(r"C:\os\scratch.vhdx")
    boot = uvm.VmbFSBootFiles(
        os_files_path=r"C:\os", os_relative_boot_directory="boot", scratch_vhd_path=r"C:\os\scratch.vhdx"
    )
    return uvm.start_vm(uvm.WCOWOptions(boot_files=boot), backend=backend)


@pytest.fixture(params=["linux", "windows", "container"])
async def files(request: pytest.FixtureRequest) -> AsyncIterator[tuple[uvm.GuestFiles, Callable[[str], str]]]:
    """The files of a guest, and how it spells a path."""
    if request.param == "windows":
        async with windows_vm() as windows:
            yield windows.files, lambda path: "C:" + path.replace("/", "\\")
        return
    spec: dict[str, Any] = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}
    async with uvm.start_vm(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
        if request.param == "linux":
            yield vm.files, str
        else:
            async with vm.create_container("c", spec) as container, await container.open_init(stdin=True):
                yield container.files, str


def names_in(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


async def test_a_file_is_written_read_listed_and_removed(files: Any) -> None:
    there, at = files
    data = bytes(range(256)) * 2000
    assert await there.stat(at("/work")) is None
    await there.make_directory(at("/work/deep"), parents=True)
    await there.make_directory(at("/work/deep"), parents=True)
    with pytest.raises(uvm.GuestFileError):
        await there.make_directory(at("/work/deep"))
    await there.write(at("/work/a file"), data)
    await there.write(at("/work/a file"), data[:500], mode=0o600)
    assert await there.read(at("/work/a file")) == data[:500]
    listed = await there.list(at("/work"))
    assert [(file.name, file.type) for file in listed] == [("a file", "file"), ("deep", "directory")]
    found = await there.stat(at("/work/a file"))
    assert (found.name, found.type, found.size) == ("a file", "file", 500)
    assert found == listed[0]
    with pytest.raises(uvm.GuestFileError):
        await there.remove(at("/work"))
    await there.remove(at("/work/a file"))
    with pytest.raises(uvm.GuestFileError):
        await there.remove(at("/work/a file"))
    await there.remove(at("/work"), recursive=True)
    assert await there.stat(at("/work")) is None
    assert (await there.stat(at("/"))).type == "directory"


async def test_what_is_not_there_is_an_error_that_names_it(files: Any, tmp_path: Path) -> None:
    there, at = files
    for call in (
        there.read(at("/no")),
        there.list(at("/no")),
        there.write(at("/no/file"), b""),
        there.remove(at("/no")),
        there.copy_out(at("/no"), tmp_path / "copy"),
    ):
        with pytest.raises((uvm.GuestFileError, uvm.GuestError), match="no"):
            await call
    with pytest.raises(uvm.HostPathError):
        await there.copy_in(tmp_path / "no", at("/copy"))
    assert names_in(tmp_path) == []


async def test_what_cannot_be_asked_is_refused_before_anything_is_run(files: Any) -> None:
    there, at = files
    for call in (
        there.read("relative"),
        there.read(at("/")),
        there.write(at("/"), b""),
        there.write(at("/file"), "text"),
        there.write(at("/file"), b"", mode=0o10000),
        there.remove(at("/x"), recursive="yes"),
        there.read(at("/x"), max_bytes=-1),
    ):
        with pytest.raises((uvm.OptionsError, uvm.GuestFileError)):
            await call


async def test_a_file_that_is_larger_than_allowed_is_not_taken(files: Any) -> None:
    there, at = files
    await there.write(at("/large"), bytes(1000))
    assert len(await there.read(at("/large"), max_bytes=1000)) == 1000
    with pytest.raises(uvm.OutputLimitError):
        await there.read(at("/large"), max_bytes=999)


@links
async def test_a_directory_is_copied_in_and_out_as_it_is(files: Any, tmp_path: Path) -> None:
    there, at = files
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "deep" / "er" / "file").write_bytes(os.urandom(3 * MIB // 2))
    long = source / ("x" * 60) / ("ü" * 60) / ("z" * 60)
    long.mkdir(parents=True)
    (long / "file").write_text("a long name")
    (source / "script").write_text("#!/bin/sh\n")
    (source / "script").chmod(0o755)
    (source / "deep" / "link").symlink_to("../script")
    await there.copy_in(source, at("/copy"))
    await there.copy_in(source, at("/copy"))
    await there.copy_out(at("/copy"), tmp_path / "target")
    assert tree(tmp_path / "target") == tree(source)


def tree(root: Path) -> dict[str, object]:
    """Return what is in a directory, with contents and whether it may be run."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
    return found


async def test_a_single_file_is_copied_in_and_out(files: Any, tmp_path: Path) -> None:
    there, at = files
    (tmp_path / "source").write_bytes(b"content")
    await there.copy_in(str(tmp_path / "source"), at("/copied"))
    assert await there.read(at("/copied")) == b"content"
    await there.copy_out(at("/copied"), tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"content"
    with pytest.raises(uvm.HostPathError, match="something is there"):
        await there.copy_out(at("/copied"), tmp_path / "target")
    assert names_in(tmp_path) == ["source", "target"]


@links
async def test_what_is_no_file_of_the_host_is_not_copied_in(vm: uvm.UtilityVM, tmp_path: Path) -> None:
    assert sys.platform != "win32"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(uvm.HostPathError, match="no file"):
        await vm.files.copy_in(tmp_path, "/copy")


@links
async def test_names_are_data(vm: uvm.UtilityVM, tmp_path: Path) -> None:
    names = ["-rf", "a\nb", "$(reboot)", " ", "'\"", "%s //x"[:2] + "x", "ü€"]
    await vm.files.make_directory("/odd")
    for name in names:
        await vm.files.write(f"/odd/{name}", name.encode())
    assert [file.name for file in await vm.files.list("/odd")] == sorted(names)
    for name in names:
        assert await vm.files.read(f"/odd/{name}") == name.encode()
    await vm.files.copy_out("/odd", tmp_path / "odd")
    assert names_in(tmp_path / "odd") == sorted(names)
    for name in names:
        await vm.files.remove(f"/odd/{name}")


@links
async def test_a_link_is_not_followed_but_to_copy_it(vm: uvm.UtilityVM, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("file")
    (tmp_path / "in" / "file").write_text("content")
    await vm.files.copy_in(tmp_path / "in", "/d")
    found = await vm.files.stat("/d/link")
    assert found is not None
    assert found.type == "link"
    await vm.files.copy_out("/d/link", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "content"
    await vm.files.remove("/d/link")
    assert await vm.files.read("/d/file") == b"content"


async def test_a_copy_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    backend, scopes = uvm.FakeBackend(), [anyio.CancelScope(), anyio.CancelScope()]
    leaving = iter(scopes)

    @backend.programs.register("tar")
    async def tar(process: FakeProcess) -> None:
        await process.stdout.send(process.files.archive("/", "etc", follow=False)[:700])
        await anyio.wait_all_tasks_blocked()
        next(leaving).cancel()
        await anyio.sleep_forever()

    (tmp_path / "in").write_bytes(bytes(MIB))
    async with uvm.start_vm(uvm.LCOWOptions(), backend=backend) as vm:
        copies = (
            partial(vm.files.copy_out, "/etc", tmp_path / "out"),
            partial(vm.files.copy_in, tmp_path / "in", "/x"),
        )
        for scope, copy in zip(scopes, copies, strict=True):
            with scope:
                await copy()
            assert scope.cancelled_caught
        await vm.settled()
        assert names_in(tmp_path) == ["in"]
        assert backend.vms[vm.id].service.processes == {}


@pytest.mark.parametrize("call", ["begin", "feed", "finish"])
@pytest.mark.parametrize("source", ["/etc", "/etc/hostname"])
async def test_who_is_cancelled_by_asyncio_while_a_thread_unpacks_leaves_nothing(
    call: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    unpack, made, proceed = getattr(Unpacking, call), threading.Event(), threading.Event()

    def held_up(unpacking: Unpacking, *args: bytes) -> None:
        unpack(unpacking, *args)
        made.set()
        proceed.wait()

    monkeypatch.setattr(Unpacking, call, held_up)
    async with uvm.start_vm(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
        await vm.files.write("/etc/hostname", b"a guest")
        copy = asyncio.create_task(vm.files.copy_out(source, tmp_path / "out"))
        await anyio.to_thread.run_sync(made.wait)
        try:
            for _ in range(3):
                copy.cancel()
                await asyncio.wait([copy], timeout=0)
                assert not copy.done(), "a thread is still at it"
        finally:
            proceed.set()
        with pytest.raises(asyncio.CancelledError):
            await copy
        assert names_in(tmp_path) == []
