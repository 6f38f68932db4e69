"""The host's file system."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.fake.support import expect_refusal
from uvm.backend import FileInfo
from uvm.backends.fake import FakeFiles
from uvm.backends.fake.files import OpenDisk
from uvm.errors import HostPathError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

DISK = r"C:\real\disk.vhd"


@pytest.mark.parametrize(
    "same",
    [r"c:\Layers\BASE.vhd", "C:/layers/base.vhd", r"C:\layers\.\x\..\base.vhd", r"\\?\C:\layers\base.vhd"],
)
async def test_windows_paths_compare_without_case_and_with_both_separators(same: str) -> None:
    files = FakeFiles()
    files.add(r"C:\layers\base.vhd", size=5)
    assert await files.stat(same) == FileInfo(size=5)


async def test_posix_paths_compare_exactly() -> None:
    files = FakeFiles("posix")
    files.add("/layers/base.vhd", size=5)
    for same in ("/layers/../layers/base.vhd", "//layers//base.vhd"):
        assert await files.stat(same) == FileInfo(size=5)
    assert await files.stat("/Layers/base.vhd") is None


@pytest.mark.parametrize("share", [r"\\server\share", "D:"])
async def test_adding_a_file_makes_its_directories(share: str) -> None:
    files = FakeFiles()
    files.add(rf"{share}\a\b\file.txt", content=b"text")
    assert await files.stat(rf"{share}\a") == FileInfo(is_dir=True)
    assert files.listing(rf"{share}\a\b") == ["file.txt"]
    assert files.listing(rf"{share}\a") == ["b"]


async def test_nothing_exists_that_was_not_added() -> None:
    assert await FakeFiles().stat(r"C:\anything") is None


async def test_in_a_permissive_file_system_every_path_is_a_file_until_it_is_deleted() -> None:
    files = FakeFiles(permissive=True)
    assert await files.stat(r"C:\anything") == FileInfo(size=1 << 20)
    files.delete(r"c:\ANYTHING")
    assert await files.stat(r"C:\anything") is None
    files.add(r"C:\anything", size=1)
    assert await files.stat(r"C:\anything") == FileInfo(size=1)


async def test_a_file_reads_as_its_content_and_zeros_up_to_its_size() -> None:
    files = FakeFiles()
    files.add(r"C:\f", content=b"ab", size=4)
    assert await files.read(r"C:\f", 4) == b"ab\0\0"


async def test_a_file_larger_than_the_reader_takes_is_not_read() -> None:
    files = FakeFiles()
    files.add(r"C:\huge.vhd", size=1 << 40)
    with pytest.raises(HostPathError, match=r"huge\.vhd: it has 1099511627776 bytes, more than 10"):
        await files.read(r"C:\huge.vhd", 10)


@pytest.mark.parametrize(("path", "problem"), [(r"C:\none", "does not exist"), (r"C:\dir", "is a directory")])
async def test_only_files_can_be_read_and_copied(path: str, problem: str) -> None:
    files = FakeFiles()
    files.add_directory(r"C:\dir")
    with pytest.raises(HostPathError, match=problem):
        await files.read(path, 10)
    with pytest.raises(HostPathError, match=problem):
        await files.copy(path, r"C:\copy")
    with pytest.raises(HostPathError, match=problem):
        await files.set_disk_id(path, "id")


async def test_a_copy_replaces_what_is_at_the_target() -> None:
    files = FakeFiles()
    files.add(r"C:\from", content=b"new")
    files.add(r"C:\to", content=b"older")
    await files.copy(r"C:\from", r"C:\to")
    assert await files.read(r"C:\to", 100) == b"new"


async def test_mkdir_makes_parents_and_takes_an_existing_directory() -> None:
    files = FakeFiles()
    await files.mkdir(r"C:\a\b")
    await files.mkdir(r"C:\a\b")
    assert files.listing(r"C:\a") == ["b"]


async def test_mkdir_over_a_file_is_refused() -> None:
    files = FakeFiles()
    files.add(r"C:\a")
    with pytest.raises(HostPathError, match="it is a file"):
        await files.mkdir(r"C:\a")


async def test_removing_takes_files_and_empty_directories_and_what_is_not_there() -> None:
    files = FakeFiles()
    files.add(r"C:\a\f")
    with pytest.raises(HostPathError, match="not empty"):
        await files.remove(r"C:\a")
    await files.remove(r"C:\a\f")
    await files.remove(r"C:\a\f")
    await files.remove(r"C:\a")
    assert await files.stat(r"C:\a") is None


async def test_what_a_vm_has_open_can_neither_be_removed_nor_overwritten() -> None:
    files = FakeFiles()
    files.add(r"C:\disk", size=1)
    files.add(r"C:\other", size=1)
    disk = files.open_disk(r"C:\disk", writable=False, operation="attach")
    with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
        await files.remove(r"C:\DISK")
    with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
        await files.copy(r"C:\other", r"C:\disk")
    disk.close()
    await files.remove(r"C:\disk")


async def test_file_ids_are_a_fact_of_the_directory_a_file_is_in() -> None:
    files = FakeFiles()
    files.add(r"\\azure\files\share\f", file_ids=False)
    files.add(r"C:\f")
    assert not await files.has_file_ids(r"\\azure\files\share")
    assert await files.has_file_ids(r"C:\f")


async def test_a_disk_id_is_kept() -> None:
    files = FakeFiles()
    files.add(r"C:\d.vhdx", size=1)
    await files.set_disk_id(r"c:\d.vhdx", "1234")
    assert files.disk_id(r"C:\d.vhdx") == "1234"


def test_a_file_cannot_be_shorter_than_its_content() -> None:
    with pytest.raises(ValueError, match="longer than 1 bytes"):
        FakeFiles().add(r"C:\f", content=b"ab", size=1)


def test_a_file_and_a_directory_cannot_have_one_path() -> None:
    files = FakeFiles()
    files.add(r"C:\a\f")
    with pytest.raises(ValueError, match="is a directory"):
        files.add(r"C:\a")
    with pytest.raises(ValueError, match="is a file"):
        files.add_directory(r"C:\a\f")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=20))
def test_any_number_read_a_file_or_one_writes_it(wishes: list[tuple[str, bool]]) -> None:
    files = FakeFiles()
    opened: list[tuple[str, bool, OpenDisk]] = []
    for path, writable in wishes:
        there = [w for p, w, _ in opened if p == path]
        if any(there) or (writable and there):
            with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
                files.open_disk(path, writable=writable, operation="open")
        else:
            opened.append((path, writable, files.open_disk(path, writable=writable, operation="open")))
    for _, _, disk in opened:
        disk.close()
    assert not files.is_open("a")
    assert not files.is_open("b")


def linked(*links: tuple[str, str]) -> FakeFiles:
    """A Windows host with one disk, and links."""
    files = FakeFiles()
    files.add(DISK, content=b"disk")
    for path, target in links:
        files.add_link(path, target)
    return files


@pytest.mark.parametrize(
    ("path", "links"),
    [
        (r"C:\a.vhd", [(r"C:\a.vhd", DISK)]),
        (r"c:\A.VHD", [(r"C:\a.vhd", DISK)]),
        (r"C:\b.vhd", [(r"C:\a.vhd", DISK), (r"C:\b.vhd", r"C:\a.vhd")]),
        (r"C:\link\disk.vhd", [(r"C:\link", r"C:\real")]),
        (r"S:\disk.vhd", [("S:\\", r"C:\real")]),
        (r"C:\real\sub\a.vhd", [(r"C:\real\sub\a.vhd", r"..\disk.vhd")]),
        (r"D:\x\y\disk.vhd", [(r"D:\x\y", r"\z"), (r"D:\z", r"C:\real")]),
    ],
)
async def test_a_link_is_what_it_leads_to_wherever_it_stands_in_a_path(
    path: str, links: list[tuple[str, str]]
) -> None:
    files = linked(*links)
    assert await files.resolve(path) == DISK
    assert await files.stat(path) == FileInfo(size=4)
    assert await files.read(path, 10) == b"disk"
    assert files.key(path) == files.key(DISK)
    opened = files.open_disk(path, writable=True, operation="attach")
    assert files.is_open(DISK)
    opened.close()


@pytest.mark.parametrize("path", [DISK, r"C:\REAL\.\disk.vhd", r"C:\none", r"C:\dangling", "disk.vhd"])
async def test_a_path_that_leads_nowhere_else_is_returned_as_it_is(path: str) -> None:
    files = linked((r"C:\dangling", r"C:\gone"))
    assert await files.resolve(path) == path


async def test_links_that_never_end_are_refused() -> None:
    files = linked((r"C:\a", r"C:\b"), (r"C:\b", r"C:\a"))
    for call in (files.resolve(r"C:\a"), files.stat(r"C:\b"), files.read(r"C:\a\below", 1)):
        with expect_refusal(HResult.ERROR_CANT_RESOLVE_FILENAME):
            await call


async def test_removing_a_link_leaves_what_it_leads_to() -> None:
    files = linked((r"C:\a.vhd", DISK), (r"C:\link", r"C:\real"))
    opened = files.open_disk(r"C:\a.vhd", writable=True, operation="attach")
    await files.remove(r"C:\a.vhd")
    await files.remove(r"C:\link")
    assert await files.stat(r"C:\a.vhd") is None
    assert files.listing("C:\\") == ["real"]
    assert files.is_open(DISK)
    opened.close()
    assert not files.is_open(DISK)
    await files.remove(DISK)


async def test_what_is_made_through_a_link_is_made_where_it_leads() -> None:
    files = linked((r"C:\link", r"C:\real"))
    await files.copy(DISK, r"C:\link\copy.vhd")
    await files.mkdir(r"C:\link\sub")
    assert files.listing(r"C:\real") == ["copy.vhd", "disk.vhd", "sub"]


async def test_two_dots_lead_out_of_a_link_on_windows_and_out_of_its_target_on_posix() -> None:
    windows = linked((r"C:\link", r"C:\real\sub"))
    assert await windows.resolve(r"C:\link\..\real\disk.vhd") == r"C:\link\..\real\disk.vhd"
    posix = FakeFiles("posix")
    posix.add("/real/disk", size=1)
    posix.add_link("/link", "real/sub")
    posix.add_directory("/real/sub")
    assert await posix.resolve("/link/../disk") == "/real/disk"


def test_a_link_is_not_put_over_what_is_there() -> None:
    with pytest.raises(ValueError, match="exists"):
        linked((DISK, r"C:\other"))


DIRECTORIES = [r"C:\a", r"C:\a\b", r"C:\a-b", r"C:\a\b\c"]
STEPS = st.lists(st.tuples(st.sampled_from(["file", "mkdir", "delete"]), st.sampled_from(DIRECTORIES)))


@given(STEPS)
def test_listings_are_of_what_is_in_a_directory_itself(steps: list[tuple[str, str]]) -> None:
    anyio.run(check_listings_after, steps)


async def check_listings_after(steps: list[tuple[str, str]]) -> None:
    files = FakeFiles()
    files.add_directory("C:\\")
    there: dict[str, bool] = {}  # whether each path was made by mkdir
    for step, path in steps:
        parents = [path[:end] for end, c in enumerate(path) if c == "\\" and end > 2]
        if step == "delete":
            files.delete(path)
            there = {each: made for each, made in there.items() if not (each + "\\").startswith(path + "\\")}
        elif step == "mkdir":
            await files.mkdir(path)
            for each in (*parents, path):
                there.setdefault(each, True)
        else:
            files.add(path + r"\file", size=1)
            for each in (*parents, path, path + r"\file"):
                there.setdefault(each, False)
        for directory in DIRECTORIES:
            inside = sorted(
                each.rpartition("\\")[2] for each in there if each.rpartition("\\")[0] == directory
            )
            assert files.listing(directory) == inside
        empty = [
            path for path, made in there.items() if made and not any(e.startswith(path + "\\") for e in there)
        ]
        assert sorted(files.left_empty()) == sorted(path.upper() for path in empty)
