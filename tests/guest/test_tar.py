"""Archives of a hostile guest: nothing leads elsewhere, grows without bound, or is half there."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from uvm._guest.tar import END, Member, Parts, Reader, filling, header, safe_link
from uvm._guest.unpack import Unpacking, packed
from uvm.backends.fake import FakeProcess

#: Links, pipes and modes, which Windows makes for few or not at all.
links = pytest.mark.skipif(sys.platform == "win32", reason="takes links, pipes and modes of POSIX")


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any) -> bytes:
    """Return one member as a guest may send it, whatever it is."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + filling(len(content))


def header_of(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return member("x", tarfile.XHDTYPE, b"%d %s=%s\n" % (length, key, value))


FILE = member("file", content=b"x")
LINK = member("link", tarfile.SYMTYPE, linkname="file")
HOSTILE = {
    "an absolute name": member("/etc/passwd"),
    "a name above": member("../escaped"),
    "a name above within": member("a/../../escaped"),
    "a long name above": pax(b"path", b"../escaped") + FILE,
    "a GNU name above": member("x", b"L", b"../escaped\0") + FILE,
    "a name with a zero": pax(b"path", b"a\0b") + FILE,
    "a link to an absolute path": member("link", tarfile.SYMTYPE, linkname="/etc"),
    "a link above": member("link", tarfile.SYMTYPE, linkname="../escaped"),
    "a link that climbs after it went down": member("link", tarfile.SYMTYPE, linkname="a/../../escaped"),
    "a long link above": pax(b"linkpath", b"../escaped") + member("link", tarfile.SYMTYPE, linkname="x"),
    "a file behind a link": LINK + member("link/file"),
    "a directory in place of a link": LINK + member("link", tarfile.DIRTYPE),
    "a link in place of a directory": member("d/f") + member("d", tarfile.SYMTYPE, linkname="e"),
    "a directory in place of a file": FILE + member("file/below"),
    "a file twice": FILE + FILE,
    "a hard link to elsewhere": member("link", tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a hard link above": member("link", tarfile.LNKTYPE, linkname="../secret"),
    "a hard link to what is not there": member("link", tarfile.LNKTYPE, linkname="secret"),
    "a hard link to a link": LINK + member("h", tarfile.LNKTYPE, linkname="link"),
    "a device": member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a disk": member("disk", tarfile.BLKTYPE),
    "a pipe": member("pipe", tarfile.FIFOTYPE),
    "a sparse file": member("sparse", tarfile.GNUTYPE_SPARSE),
    "a sparse file of pax": pax(b"GNU.sparse.major", b"1") + FILE,
    "an unknown kind": member("x", b"?"),
    "a directory that has bytes": header_of(tarfile.DIRTYPE, 5),
    "a file too large": header_of(tarfile.REGTYPE, 10**15),
    "a file too large by pax": pax(b"size", b"9" * 18) + FILE,
    "a size that is none": pax(b"size", b"-1") + FILE,
    "a name too long": header_of(b"L", 1 << 40),
    "an extended header too long": header_of(tarfile.XHDTYPE, 1 << 40),
    "an extended header that is none": member("x", tarfile.XHDTYPE, b"999 path=x\n") + FILE,
    "a record of no length": member("x", tarfile.XHDTYPE, b"0 path=x\n") + FILE,
    "a name too deep": pax(b"path", b"a/" * 300 + b"x") + FILE,
    "too many members": b"".join(member(f"d{n}", tarfile.DIRTYPE) for n in range(60)),
    "no archive": b"not an archive at all" * 100,
    "half a file": header_of(tarfile.REGTYPE, 1000) + b"half",
    "half a header": FILE[:100],
    "nothing": b"",
    "no end": FILE,
    "what follows its end": FILE + END + b"x" * (2 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("piece", [1 << 20, 700])
def test_an_archive_that_is_not_to_be_unpacked_is_refused_and_leaves_nothing(
    name: str, piece: int, tmp_path: Path
) -> None:
    data = HOSTILE[name] + (END if name[:4] not in ("half", "noth", "no e") else b"")
    unpacking = Unpacking(str(tmp_path / "target"), only=None, max_bytes=10_000, max_entries=50)
    with pytest.raises(uvm.ArchiveError):
        unpack(unpacking, data, piece)
    unpacking.discard()
    assert [*tmp_path.iterdir()] == []


def unpack(unpacking: Unpacking, data: bytes, piece: int = 1000) -> None:
    unpacking.begin()
    for at in range(0, len(data), piece):
        unpacking.feed(data[at : at + piece])
    unpacking.finish()


@links
def test_what_is_harmless_is_unpacked_without_what_is_special(tmp_path: Path) -> None:
    data = (
        member("./", tarfile.DIRTYPE)
        + member("bin/run", content=b"run", mode=0o6777, uid=0, mtime=1_000_000)
        + member("bin/same", tarfile.LNKTYPE, linkname="bin/run")
        + member("bin/link", tarfile.SYMTYPE, linkname="../etc/file")
        + member("etc/file", content=b"x", mode=0, mtime=-5)
        + member("x" * 200 + "/" + "y" * 200, content=b"long")
        + END
        + bytes(5120)
    )
    unpack(Unpacking(str(tmp_path / "target"), only=None, max_bytes=10_000, max_entries=50), data)
    target = tmp_path / "target"
    assert (target / "bin" / "run").stat().st_mode & 0o7777 == 0o755
    assert (target / "bin" / "run").stat().st_mtime == 1_000_000
    assert (target / "bin" / "same").read_bytes() == b"run"
    assert (target / "bin" / "link").read_bytes() == b"x"
    assert (target / "etc" / "file").stat().st_mode & 0o777 == 0o600
    assert (target / ("x" * 200) / ("y" * 200)).read_bytes() == b"long"
    assert [*tmp_path.iterdir()] == [target]


@links
def test_nothing_is_written_through_a_link_that_another_has_put_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    unpacking = Unpacking(str(tmp_path / "target"), only=None, max_bytes=10_000, max_entries=50)
    unpacking.begin()
    unpacking.feed(member("d/", tarfile.DIRTYPE))
    [root] = [path for path in tmp_path.iterdir() if path.name.startswith(".target")]
    (root / "d").rmdir()
    (root / "d").symlink_to(outside)
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's
        unpacking.feed(member("d/file"))
    unpacking.discard()
    assert [*outside.iterdir()] == []


@given(
    links=st.dictionaries(
        st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(tuple),
        st.lists(st.sampled_from(["a", "b", ".", ".."]), min_size=1, max_size=5).map("/".join),
        max_size=4,
    )
)
def test_links_that_are_allowed_lead_nowhere_else_together(links: dict[tuple[str, ...], str]) -> None:
    allowed: dict[tuple[str, ...], str] = {}
    for parts, target in links.items():
        # A directory of a link is none itself: the unpacking sees to that.
        if any(parts[:n] in links for n in range(1, len(parts))):
            continue
        try:
            allowed[parts] = safe_link(parts, target)
        except uvm.ArchiveError:
            continue
    for parts in allowed:
        assert stays_within(parts, allowed)


def stays_within(parts: Parts, links: dict[Parts, str]) -> bool:
    """Follow a path as a system does, over 40 links at most; return whether it never leaves the root."""
    left, here, followed = [*parts], list[str](), 0
    while left and followed < 40:
        step = left.pop(0)
        if step == ".." and not here:
            return False
        if step == "..":
            here.pop()
        elif step != ".":
            here.append(step)
            if (target := links.get(tuple(here))) is not None:
                here.pop()
                left[:0] = target.split("/")
                followed += 1
    return True


def test_a_link_that_climbs_after_another_would_leave() -> None:
    links = {("a", "b", "up"): "../..", ("out",): "a/b/up/../x"}
    assert not stays_within(("out",), links)
    assert safe_link(("a", "b", "up"), "../..")
    with pytest.raises(uvm.ArchiveError):
        safe_link(("out",), links["out",])


@given(data=st.binary(max_size=3000), pieces=st.integers(1, 1500))
def test_any_bytes_are_an_archive_or_its_one_error(data: bytes, pieces: int) -> None:
    read(FILE[:512] + data, pieces)
    read(data, pieces)


@given(at=st.integers(0, 511), value=st.integers(0, 255), tail=st.binary(max_size=600))
def test_any_header_is_one_or_its_one_error(at: int, value: int, tail: bytes) -> None:
    block = bytearray(FILE[:512])
    block[at] = value
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    read(bytes(block) + tail, 200)


def read(data: bytes, piece: int) -> list[Member | bytes]:
    reader = Reader(5000, 5)
    found: list[Member | bytes] = []
    try:
        for at in range(0, len(data), piece):
            found += reader.feed(data[at : at + piece])
        reader.end()
    except uvm.ArchiveError:
        pass
    return found


def test_an_endless_archive_takes_no_memory() -> None:
    reader = Reader(1 << 40, 1)
    chunk = bytes(1 << 16)
    [*_] = reader.feed(header_of(tarfile.REGTYPE, 1 << 39))
    tracemalloc.start()
    try:
        for _ in range(200):
            for item in reader.feed(chunk):
                assert isinstance(item, bytes)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@links
@pytest.mark.parametrize("windows", [False, True])
def test_what_is_packed_is_read_by_others_and_by_us(windows: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / ("n" * 150)).write_bytes(b"x" * 1500)
    (source / "link").symlink_to("d")
    data = b"".join(packed(str(source), "", windows=windows))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert sorted(archive.getnames()) == ["d", f"d/{'n' * 150}", "link"]
    unpack(Unpacking(str(tmp_path / "copy"), only=None, max_bytes=10_000, max_entries=50), data)
    assert (tmp_path / "copy" / "link" / ("n" * 150)).read_bytes() == b"x" * 1500
    assert os.readlink(tmp_path / "copy" / "link") == "d"


def test_a_header_is_what_was_asked_for() -> None:
    reader = Reader(10, 10)
    [found] = reader.feed(header("name", "file", size=3, mode=0o640, modified=5))
    assert found == Member("file", ("name",), 3, 0o640, 5)


# The same by a guest.


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name",
    [
        "an absolute name",
        "a device",
        "a hard link above",
        "a file behind a link",
        "half a file",
        "no archive",
    ],
)
async def test_a_hostile_guest_puts_nothing_on_the_host(name: str, tmp_path: Path) -> None:
    backend = uvm.FakeBackend()

    @backend.programs.register("tar")
    async def tar(process: FakeProcess) -> None:
        await process.stdout.send(HOSTILE[name])

    async with uvm.start_vm(uvm.LCOWOptions(), backend=backend) as vm:
        with pytest.raises(uvm.ArchiveError, match="copy /etc out of the guest"):
            await vm.files.copy_out("/etc", tmp_path / "target")
        assert names(tmp_path) == []


@pytest.mark.anyio
async def test_a_guest_that_sends_and_says_more_and_more_is_cut_off(tmp_path: Path) -> None:
    backend = uvm.FakeBackend()

    def endless() -> Iterator[bytes]:
        yield header_of(tarfile.REGTYPE, 1 << 50)
        while True:
            yield bytes(65536)

    @backend.programs.register("tar")
    async def tar(process: FakeProcess) -> None:
        for chunk in endless():
            await process.stdout.send(chunk)

    @backend.programs.register("cat")
    async def cat(process: FakeProcess) -> None:
        while True:
            await process.stderr.send(bytes(65536))

    async with uvm.start_vm(uvm.LCOWOptions(), backend=backend) as vm:
        with pytest.raises(uvm.ArchiveError, match="more than"):
            await vm.files.copy_out("/etc", tmp_path / "target", max_bytes=1 << 20)
        with pytest.raises(uvm.OutputLimitError):
            await vm.files.read("/etc/passwd", max_bytes=1 << 20)
        await vm.settled()
        assert names(tmp_path) == []
        with anyio.fail_after(60):
            while backend.vms[vm.id].service.processes:
                await anyio.lowlevel.checkpoint()


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())
