"""The real file system, in real directories; on Windows, through its own DLLs too."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.backends.hcs.windows_dlls import REQUEST_ABORTED, Kernel, Windows
from uvm.backend import FileInfo
from uvm.backends.files import RealFiles
from uvm.backends.hcs.windows.disks import WindowsFileCalls
from uvm.backends.hcs.windows.dlls import SystemLibrary
from uvm.backends.waker import Signal, Waker
from uvm.backends.workers import Workers
from uvm.errors import HostError, HostPathError, OptionsError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

ON_WINDOWS = sys.platform == "win32"
only_on_windows = pytest.mark.skipif(not ON_WINDOWS, reason="calls Windows itself")
DISK_ID = "5c3a1f10-2b7e-4b4e-9a77-0d3b6c0e8f21"


@pytest.fixture
def files() -> RealFiles:
    """Return the files of this machine; elsewhere than on Windows, its DLLs are stand-ins."""
    if not ON_WINDOWS:
        return files_on(Windows())
    from uvm.backends.hcs.windows.dlls import kernel32, virtdisk

    return RealFiles(Workers(), WindowsFileCalls(kernel32(), virtdisk()))


def files_on(windows: Windows, virtdisk: Any = None) -> RealFiles:
    return RealFiles(Workers(), WindowsFileCalls(windows.kernel, virtdisk))


async def test_a_file_has_a_size_and_a_directory_is_one(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert await files.stat(str(tmp_path / "file")) == FileInfo(5)
    assert await files.stat(str(tmp_path)) == FileInfo(0, is_dir=True)


async def test_stat_of_a_missing_path_returns_none(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert await files.stat(str(tmp_path / "none")) is None
    assert await files.stat(str(tmp_path / "none" / "below")) is None
    assert await files.stat(str(tmp_path / "file" / "below")) is None


async def test_a_path_that_cannot_be_is_refused(files: RealFiles, tmp_path: Path) -> None:
    path = str(tmp_path / "a\0b")
    for call in (files.stat, files.resolve, files.mkdir, files.remove):
        with pytest.raises(HostPathError, match="not a valid path"):
            await call(path)
    with pytest.raises(HostPathError, match="not a valid path"):
        await files.read(path, 1)


def link(path: Path, target: Path) -> Path:
    """Make a symbolic link; for a directory, on Windows, a junction, which takes no rights."""
    if "UVM_WINE" in os.environ:
        pytest.skip("Wine resolves no links")
    if sys.platform == "win32" and target.is_dir():
        import _winapi

        _winapi.CreateJunction(str(target), str(path))
        return path
    try:
        path.symlink_to(target)
    except (OSError, NotImplementedError) as e:
        pytest.skip(f"no links can be made here: {e}")
    return path


async def test_a_link_is_resolved_to_what_it_leads_to(files: RealFiles, tmp_path: Path) -> None:
    root = Path(await files.resolve(str(tmp_path)))
    (root / "file").write_bytes(b"x")
    for path in (link(root / "link", root / "file"), link(root / "chain", root / "link")):
        assert await files.resolve(str(path)) == str(root / "file")


async def test_a_path_through_a_link_to_a_directory_is_resolved(files: RealFiles, tmp_path: Path) -> None:
    root = Path(await files.resolve(str(tmp_path)))
    (root / "real").mkdir()
    (root / "real" / "file").write_bytes(b"x")
    through = link(root / "link", root / "real") / "file"
    assert await files.resolve(str(through)) == str(root / "real" / "file")


async def test_a_path_that_leads_nowhere_else_is_returned_as_it_is(files: RealFiles, tmp_path: Path) -> None:
    root = Path(await files.resolve(str(tmp_path)))
    (root / "file").write_bytes(b"x")
    spelled = f"{root}{os.sep}.{os.sep}file"
    devices = [r"\\.\PHYSICALDRIVE2"]
    for path in (str(root / "file"), spelled, str(root / "none"), str(root / "file" / "below"), *devices):
        assert await files.resolve(path) == path
    dangling = link(root / "dangling", root / "none")
    assert await files.resolve(str(dangling)) == str(dangling)


async def test_links_that_never_end_are_an_error(files: RealFiles, tmp_path: Path) -> None:
    loop = link(tmp_path / "one", tmp_path / "two")
    link(tmp_path / "two", tmp_path / "one")
    with pytest.raises(HostError, match="resolve") as failed:
        await files.resolve(str(loop))
    assert failed.value.hresult == HResult.ERROR_CANT_RESOLVE_FILENAME


@pytest.mark.parametrize("size", [0, 1, 4096])
async def test_a_file_is_read_whole_up_to_the_limit(files: RealFiles, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert await files.read(str(tmp_path / "file"), size) == content
    (tmp_path / "file").write_bytes(content + b"!")
    with pytest.raises(HostPathError, match=f"it has {size + 1} bytes, more than {size}"):
        await files.read(str(tmp_path / "file"), size)


async def test_what_cannot_be_read_is_named(files: RealFiles, tmp_path: Path) -> None:
    with pytest.raises(HostPathError, match="none: it does not exist"):
        await files.read(str(tmp_path / "none"), 10)
    with pytest.raises(HostPathError, match="it is a directory"):
        await files.read(str(tmp_path), 10)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a file without a size and without an end")
async def test_a_file_that_lies_about_its_size_is_not_read_beyond_the_limit(files: RealFiles) -> None:
    with pytest.raises(HostPathError, match="it has more than 3000000 bytes"):
        await files.read("/dev/zero", 3_000_000)


async def test_a_copy_goes_over_what_is_there(files: RealFiles, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    for old in (None, b"old and longer"):
        if old is not None:
            target.write_bytes(old)
        await files.copy(str(source), str(target))
        assert target.read_bytes() == b"new"


async def test_what_is_no_file_is_not_copied(files: RealFiles, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for source, problem in ((tmp_path / "none", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(HostPathError, match=problem):
            await files.copy(str(source), str(target))
    assert not target.exists()


async def test_a_cancelled_copy_is_stopped_and_has_ended(tmp_path: Path) -> None:
    begun, ended, windows = Signal(Waker()), threading.Event(), Windows()
    (tmp_path / "source").write_bytes(b"x")

    class Slow(Kernel):
        def CopyFileExW(
            self, source: Any, target: Any, progress: Any, data: Any, cancel: Any, flags: int
        ) -> int:
            begun.set()
            while not cancel[0]:
                pass
            ended.set()
            return windows.fail(REQUEST_ABORTED)

    kernel: SystemLibrary[Any] = SystemLibrary(Slow(windows), windows.kernel.ffi, windows.last_error)
    files = RealFiles(Workers(), WindowsFileCalls(kernel, kernel))
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel_when_begun() -> None:
                await begun.wait()
                scope.cancel()

            tasks.start_soon(cancel_when_begun)
            await files.copy(str(tmp_path / "source"), str(tmp_path / "target"))
    assert scope.cancelled_caught
    assert ended.is_set()


async def test_directories_are_made_with_their_parents(files: RealFiles, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    for _ in range(2):
        await files.mkdir(str(path))
        assert path.is_dir()


async def test_no_directory_is_made_of_a_file(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostPathError, match="it is a file"):
        await files.mkdir(str(tmp_path / "file"))
    with pytest.raises((HostPathError, HostError)):
        await files.mkdir(str(tmp_path / "file" / "below"))


async def test_files_and_empty_directories_are_removed(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    for name in ("file", "directory", "none"):
        await files.remove(str(tmp_path / name))
        assert not (tmp_path / name).exists()


async def test_a_directory_that_is_not_empty_stays(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_bytes(b"x")
    with pytest.raises(HostPathError, match="the directory is not empty"):
        await files.remove(str(tmp_path / "directory"))
    assert (tmp_path / "directory" / "file").exists()


@pytest.mark.skipif(ON_WINDOWS, reason="links need a privilege on Windows")
async def test_of_a_link_to_a_directory_only_the_link_is_removed(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "directory")
    assert await files.stat(str(tmp_path / "link")) == FileInfo(0, is_dir=True)
    await files.remove(str(tmp_path / "link"))
    assert (tmp_path / "directory").is_dir()
    assert not (tmp_path / "link").exists()


async def test_a_refusal_of_the_system_has_its_code(files: RealFiles, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="mkdir") as failed:
        await files.mkdir(str(tmp_path / ("y" * 300)))
    assert failed.value.hresult & 0xFFFF0000 == 0x80070000


@pytest.mark.parametrize("answer", [True, False])
async def test_a_path_has_file_ids_if_windows_answers(answer: bool) -> None:
    windows = Windows(files={"D:\\share": answer})
    assert await files_on(windows).has_file_ids("D:\\share") is answer
    assert not windows.open


async def test_file_ids_of_what_is_not_there_are_an_error() -> None:
    with pytest.raises(HostError, match=r"open D:.none") as failed:
        await files_on(Windows()).has_file_ids("D:\\none")
    assert failed.value.name == "ERROR_FILE_NOT_FOUND"


class Disks:
    """A stand-in for virtdisk.dll."""

    def __init__(self, windows: Windows) -> None:
        from uvm.backends.hcs._bindings.virtdisk import ffi

        self.windows, self.ffi = windows, ffi
        self.set: list[tuple[str, int, bytes]] = []

    def OpenVirtualDisk(
        self, storage_type: Any, path: Any, access: int, flags: int, parameters: Any, handle: Any
    ) -> int:
        assert (access, flags, parameters.Version, parameters.Version2.ReadOnly) == (0, 0, 2, 0)
        assert bytes(self.ffi.buffer(storage_type)) == bytes(20)
        name = self.ffi.string(path)
        if "missing" in name:
            return 2
        handle[0] = self.windows.make(name)
        return 0

    def SetVirtualDiskInformation(self, disk: Any, information: Any) -> int:
        path = self.windows.of(disk)
        if "readonly" in path:
            return 5
        identifier = bytes(self.ffi.buffer(self.ffi.addressof(information[0], "VirtualDiskId")))
        self.set.append((path, information.Version, identifier))
        return 0


def disks_on(windows: Windows) -> tuple[RealFiles, Disks]:
    disks = Disks(windows)
    return files_on(windows, SystemLibrary(disks, disks.ffi, windows.last_error)), disks


@pytest.mark.parametrize(
    ("path", "version"), [("a.vhd", 2), ("a.vhdx", 5), ("A.VHDX", 5), ("a.avhd", 2), ("a.avhdx", 5)]
)
async def test_a_disk_gets_the_identifier_that_its_format_has(path: str, version: int) -> None:
    windows = Windows()
    files, disks = disks_on(windows)
    await files.set_disk_id(path, DISK_ID)
    # A GUID's first three parts are numbers, in the byte order of the machine.
    assert disks.set == [(path, version, bytes.fromhex("101f3a5c7e2b4e4b9a770d3b6c0e8f21"))]
    assert not windows.open


@pytest.mark.parametrize(
    ("path", "name"), [("missing.vhdx", "ERROR_FILE_NOT_FOUND"), ("readonly.vhdx", "E_ACCESSDENIED")]
)
async def test_a_disk_whose_identifier_cannot_be_set_is_closed_again(path: str, name: str) -> None:
    windows = Windows()
    files, disks = disks_on(windows)
    with pytest.raises(HostError, match=f"set the identifier of {path} to {DISK_ID}") as failed:
        await files.set_disk_id(path, DISK_ID)
    assert failed.value.name == name
    assert disks.set == []
    assert not windows.open


async def test_a_disk_identifier_is_a_guid() -> None:
    files, _ = disks_on(Windows())
    with pytest.raises(OptionsError, match="must be a GUID, not 'scratch'"):
        await files.set_disk_id("a.vhdx", "scratch")


@only_on_windows
async def test_windows_answers_for_file_ids_of_files_and_directories(
    files: RealFiles, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    answers = [await files.has_file_ids(str(path)) for path in (tmp_path, tmp_path / "file")]
    assert answers in ([True, True], [False, False])
    with pytest.raises(HostError) as failed:
        await files.has_file_ids(str(tmp_path / "none"))
    assert failed.value.name == "ERROR_FILE_NOT_FOUND"


@only_on_windows
async def test_windows_refuses_the_identifier_of_a_disk_that_is_not_there(
    files: RealFiles, tmp_path: Path
) -> None:
    with pytest.raises(HostError, match="set the identifier of"):
        await files.set_disk_id(str(tmp_path / "none.vhdx"), DISK_ID)


@only_on_windows
async def test_a_file_that_is_open_elsewhere_is_not_removed(files: RealFiles, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb"), pytest.raises(HostError) as failed:
        await files.remove(str(path))
    assert failed.value.name == "ERROR_SHARING_VIOLATION"
