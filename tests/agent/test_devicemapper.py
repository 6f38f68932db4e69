"""Requests to the device mapper, as the kernel reads them."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from uvm.agent.devicemapper import linear, request, verity
from uvm.agent.refused import Refused
from uvm.agent.settings import Settings

INFO = {
    "Ext4SizeInBytes": 8 << 20,
    "Version": 1,
    "Algorithm": "sha256",
    "SuperBlock": True,
    "RootDigest": "ab" * 32,
    "Salt": "0" * 64,
    "BlockSize": 4096,
}


def test_a_request_without_a_table_is_the_header_alone() -> None:
    data = request("dm-linear-pmem0-0-512")
    assert len(data) == 312
    version, size, start, count = data[:12], *struct.unpack_from("<3I", data, 12)
    assert version == struct.pack("<3I", 4, 0, 0)
    assert (size, start, count) == (312, 312, 0)
    assert data[48:176].rstrip(b"\0") == b"dm-linear-pmem0-0-512"


def test_a_table_is_read_only_and_follows_the_header_in_whole_words() -> None:
    data = bytes(request("name", linear("/dev/pmem0", 1 << 20, 2 << 20)))
    size, start, count, _, flags = struct.unpack_from("<5I", data, 12)
    assert (size, start, count, flags) == (len(data), 312, 1, 1)
    first, sectors, status, following, kind = struct.unpack_from("<2QiI16s", data, 312)
    assert (first, sectors, status, kind.rstrip(b"\0")) == (0, 4096, 0, b"linear")
    assert following == len(data) - 312
    assert following % 8 == 0
    assert data[352:].rstrip(b"\0") == b"/dev/pmem0 2048"
    assert data.endswith(b"\0")


def test_verity_has_its_hashes_behind_the_file_system() -> None:
    target = verity("/dev/sda", Settings(INFO))
    assert target.sectors == (8 << 20) // 512
    digest, salt = INFO["RootDigest"], INFO["Salt"]
    assert target.parameters == f"1 /dev/sda /dev/sda 4096 4096 2048 2049 sha256 {digest} {salt}"
    without = verity("/dev/sda", Settings({**INFO, "SuperBlock": False}))
    assert without.parameters.split()[6] == "2048"


@pytest.mark.parametrize(
    "change",
    [
        {"BlockSize": 0},
        {"Ext4SizeInBytes": None},
        {"RootDigest": ""},
        {"Salt": "00 1 restart"},
        {"Algorithm": "a\nb"},
    ],
)
def test_verity_information_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="VerityInfo"):
        verity("/dev/sda", Settings({**INFO, **change}))
