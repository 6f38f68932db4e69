"""Requests in a few words.

What is sent is no business of a summary, so hypothesis sends anything: any JSON, and recorded requests of
which some values are replaced.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.devices.scripts import DATA
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


RECORDED: list[dict[str, Any]] = [
    request
    for trace in json.loads(DATA.read_text(encoding="utf-8"))
    for step in trace["steps"]
    for request in step.get("requests", ())
]


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value in a JSON value, as what holds it, and its name or number there."""
    if isinstance(value, dict | list):
        for place in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, place
            yield from places_in(value[place])


PLACES = [place for each in RECORDED for _, place in places_in(each["doc"])]
NAMES = sorted({place for place in PLACES if isinstance(place, str)})
names = st.sampled_from([*NAMES, "CommandArgs", "OciProcess", "ProcessParameters", "args"]) | st.text(
    max_size=3
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**4000)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["MappedDirectory", "VPMem", '{"CommandArgs": 3}', '{"OciProcess": {"args": {}}}', "NaN"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """A receiver, and a recorded request of which some values were replaced."""
    recorded = copy.deepcopy(draw(st.sampled_from(RECORDED)))
    for _ in range(draw(st.integers(1, 3))):
        if places := [*places_in(recorded["doc"])]:
            holder, place = draw(st.sampled_from(places))
            holder[place] = draw(values)
    return recorded["to"], recorded["doc"]


def sized(size_mb: int) -> Any:
    """The document of a VM of a size."""
    topology = {"Processor": {"Count": 1}, "Memory": {"SizeInMB": size_mb}}
    return {"VirtualMachine": {"ComputeTopology": topology}}


@given(
    request=requests() | st.tuples(st.sampled_from(["grant", "guest", "host", "revoke"]), values),
    operation=st.sampled_from(["modify", "create", "create process", "execute process"]),
)
@example(("host", {"Settings": {"Layers": 3}}), "modify")
@example(("guest", {"Settings": {"ProcessParameters": '{"CommandArgs": 3}'}}), "create process")
@example(("guest", {"Settings": {"ProcessParameters": '{"CommandLine": NaN}'}}), "create process")
@example(("host", {"Settings": {"SizeInBytes": 10**400}}), "modify")
@example(("host", sized(10**400)), "create")
def test_whatever_was_sent_has_a_summary(request: tuple[str, Any], operation: str) -> None:
    summary = summarize(*request, operation)
    words = (summary.to, summary.verb, summary.resource, *summary.settings)
    assert all(isinstance(each, str) for each in words)


def test_what_nests_deeply_has_a_summary() -> None:
    deep: Any = "x"
    for _ in range(2000):
        deep = {"Path": deep}
    assert summarize("host", deep).verb == "set"
    assert summarize("host", {"Settings": deep}).settings == ("(hidden)",)
