"""Headers of disk images: what they are, what they name besides, and what is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.qemu import images
from uvm.backends.qemu.images import Image, ImageError, ImageFormat, format_of, read_image
from uvm.backends.qemu.images.vhd import with_id

_SIZE = 3 * images.MIB
_IMAGES: dict[ImageFormat, bytes] = {
    "vhd": images.dynamic_vhd(_SIZE),
    "vhdx": images.vhdx(_SIZE),
    "qcow2": images.qcow2(_SIZE),
}


def read(format: ImageFormat, data: bytes) -> Image:
    return read_image(format, len(data), lambda offset, length: data[offset : offset + length])


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("/x/layer.vhd", "vhd"),
        ("/x/LAYER.VHD", "vhd"),
        ("/x/scratch.vhdx", "vhdx"),
        ("/x/disk.qcow2", "qcow2"),
        ("/x/disk.img", "raw"),
        ("/x/disk", "raw"),
        ("/x.vhd/disk", "raw"),
        ("/dev/sda", "raw"),
    ],
)
def test_the_format_is_what_the_name_says(path: str, format: ImageFormat) -> None:
    assert format_of(path) == format


@pytest.mark.parametrize("path", ["/x/disk.vmdk", "/x/disk.VDI"])
def test_a_format_that_is_not_supported_is_not_taken_for_raw(path: str) -> None:
    with pytest.raises(ImageError, match=r"(VMDK|VDI) is not supported: .* with qemu-img convert"):
        format_of(path)


def test_a_raw_image_is_all_of_its_file_whatever_a_guest_has_written_there() -> None:
    found = read("raw", images.qcow2(backing="/etc/passwd"))
    assert (found.format, found.fixed, found.backing) == ("raw", True, None)
    assert found.size_bytes == 1 << 16


def test_a_fixed_vhd_ends_before_its_footer() -> None:
    found = read("vhd", images.fixed_vhd(images.MIB))
    assert (found.fixed, found.size_bytes, found.identifiers) == (True, images.MIB, (images.MIB,))


@pytest.mark.parametrize("format", _IMAGES)
def test_an_image_has_the_size_that_its_header_says(format: ImageFormat) -> None:
    found = read(format, _IMAGES[format])
    assert (found.format, found.size_bytes, found.fixed) == (format, _SIZE, False)
    assert (found.backing, found.data_file) == (None, None)


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("vhd", images.dynamic_vhd(kind=images.DIFFERENCING, parent="/base.vhd")),
        ("vhdx", images.vhdx(parent="/base.vhd")),
        ("qcow2", images.qcow2(backing="/base.vhd")),
        ("qcow2", images.qcow2(backing="/base.vhd", version=2)),
    ],
)
def test_what_an_image_is_based_on_is_named(format: ImageFormat, data: bytes) -> None:
    assert read(format, data).backing == "/base.vhd"


def test_a_qcow2_image_says_what_its_backing_file_and_its_data_file_are() -> None:
    found = read("qcow2", images.qcow2(backing="b", backing_format="raw", data_file="/etc/shadow"))
    assert (found.backing, found.backing_format, found.data_file) == ("b", "raw", "/etc/shadow")


@pytest.mark.parametrize(
    ("format", "data", "why"),
    [
        ("raw", b"", "empty"),
        ("vhd", b"", "cut short"),
        ("vhd", bytes(4096), "no VHD"),
        ("vhd", images.fixed_vhd()[512 * 3 :], "cut short"),
        ("vhd", images.fixed_vhd()[:-1] + b"\x01", "checksum"),
        ("vhd", images.vhd_footer(images.MIB, kind=7), "type is 7"),
        ("vhd", images.dynamic_vhd()[-512:], "cut short"),
        ("vhdx", images.fixed_vhd(), "no VHDX"),
        ("vhdx", images.vhdx()[: 200 << 10], "cut short"),
        ("vhdx", images.vhdx()[: images.MIB + 100], "cut short"),
        ("vhdx", images.vhdx(size=0), "is 0"),
        ("qcow2", images.fixed_vhd(), "no qcow2"),
        ("qcow2", images.qcow2()[:50], "cut short"),
        ("qcow2", images.qcow2()[:90], "cut short"),
        ("qcow2", images.qcow2(version=9), "version 9"),
        ("qcow2", images.qcow2(encrypted=True), "encrypted"),
        ("qcow2", images.qcow2(size=0), "is 0"),
        ("qcow2", images.qcow2(backing="x" * 1024), "1024 bytes"),
    ],
)
def test_what_is_no_image_of_its_format_is_refused(format: ImageFormat, data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        read(format, data)


@given(st.sampled_from(sorted(_IMAGES)), st.data())
def test_no_header_does_more_than_be_refused(format: ImageFormat, data: st.DataObject) -> None:
    image = bytearray(_IMAGES[format])
    # What a header is made of is at its beginning, at its end, and in the tables of a VHDX.
    places = st.sampled_from(
        [0, len(image) - 512, 192 << 10, images.VHDX_TABLE, images.VHDX_TABLE + (64 << 10)]
    )
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(places) + data.draw(st.integers(0, 511))
        if 0 <= at < len(image):
            image[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    cut = data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))
    read_bytes = 0

    def counted(offset: int, length: int) -> bytes:
        nonlocal read_bytes
        read_bytes += length
        return bytes(image[:cut][offset : offset + length])

    try:
        found = read_image(format, cut, counted)
    except ImageError:
        pass
    else:
        assert found.size_bytes > 0
    # However large a header says that its parts are.
    assert read_bytes < 4 << 20


def test_a_vhd_with_another_identifier_is_a_vhd() -> None:
    wanted = UUID("12345678-1234-5678-1234-567812345678")
    data = images.fixed_vhd()
    changed = with_id(data[-512:], wanted)
    assert changed[68:84] == wanted.bytes
    assert read("vhd", data[:-512] + changed) == read("vhd", data)
