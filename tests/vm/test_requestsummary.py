"""Requests in a few words."""

from __future__ import annotations

import pytest

from uvm._vm.requestsummary import shorten, summarize
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
DISK_PATH = f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[2]}/Attachments/7"


@pytest.mark.parametrize(
    ("to", "document", "told"),
    [
        ("grant", {"path": r"C:\a", "vm": GUID}, r"grant access C:\a"),
        ("revoke", {"path": r"C:\a", "vm": GUID}, r"grant revoke C:\a"),
        (
            "host",
            {"ResourcePath": DISK_PATH, "RequestType": "Add", "Settings": {"Path": "a", "ReadOnly": True}},
            "host add Scsi 2:7 a, read-only",
        ),
        (
            "host",
            {
                "ResourcePath": "VirtualMachine/Devices/VirtualPMem/Devices/3/Mappings/1048576",
                "RequestType": "Remove",
            },
            "host remove VirtualPMem 3 at 1 MiB",
        ),
        (
            "host",
            {"ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB", "Settings": 2048},
            "host set Memory SizeInMB 2048",
        ),
        (
            "guest",
            {"ResourceType": "SCSIDevice", "RequestType": "Remove", "Settings": {"Controller": 1, "Lun": 2}},
            "guest remove SCSIDevice 1:2",
        ),
        (
            "guest",
            {
                "ResourceType": "CombinedLayers",
                "RequestType": "Add",
                "Settings": {"ContainerRootPath": "/r", "Layers": [{"Path": "/a"}, {"Path": "/b"}]},
            },
            "guest add CombinedLayers at /r, 2 layers",
        ),
        (
            "guest",
            {
                "ResourceType": "Network",
                "RequestType": "Add",
                "Settings": {"AdapterId": GUID, "RequestType": "PreAdd", "Settings": {"Name": "x"}},
            },
            "guest preadd Network 6fb1ab1e",
        ),
        (
            "guest",
            {
                "ResourceType": "SecurityPolicy",
                "RequestType": "Add",
                "Settings": {"EncodedSecurityPolicy": "c2Vj"},
            },
            "guest add SecurityPolicy",
        ),
    ],
)
def test_a_request_in_a_few_words(to: str, document: dict[str, object], told: str) -> None:
    words = summarize(to, document)
    assert " ".join(filter(None, (words.to, words.verb, words.resource, ", ".join(words.settings)))) == told


def test_ids_are_cut_to_their_first_part() -> None:
    container = "5b34d47dc914" + "0f" * 26
    assert shorten(f"{GUID} of /run/{container}/rootfs") == "6fb1ab1e of /run/5b34d47dc914/rootfs"
    assert shorten(f"{container}0") == f"{container}0"
