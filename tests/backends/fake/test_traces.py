"""The recorded documents and requests of hcsshim: the fake takes all of them, in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.backends.fake.support import JSON, guest_of, lcow, wcow
from uvm.backend import HostInfo
from uvm.backends.fake import Checks, FakeBackend
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[2] / "data"
DOCUMENTS: list[JSON] = json.loads((DATA / "documents.json").read_text(encoding="utf-8"))
TRACES: list[JSON] = json.loads((DATA / "traces.json").read_text(encoding="utf-8"))


def named(cases: list[JSON]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("case", named([c for c in DOCUMENTS if "document" in c]))
async def test_a_recorded_document_makes_a_vm_that_starts(case: JSON) -> None:
    backend = FakeBackend(host=HostInfo(build=case["build"]), checks=Checks.lenient())
    system = await backend.create(case["name"], case["document"])
    await system.start()
    assert system.vm.os == case["os"]
    await system.close()
    assert backend.leftovers() == []


@pytest.mark.parametrize("case", named(TRACES))
async def test_recorded_requests_are_taken_and_leave_nothing_dangling(case: JSON) -> None:
    backend = FakeBackend(checks=Checks.lenient())
    document = lcow() if case["os"] == "linux" else wcow()
    devices = document["VirtualMachine"]["Devices"]
    devices["Scsi"] = {guid: {} for guid in SCSI_CONTROLLER_GUIDS}
    if case["os"] == "linux":
        devices["VirtualPMem"] = {"MaximumCount": 64, "MaximumSizeBytes": 4 << 30}
    system = await backend.create("vm1", document)
    await system.start()
    for op in case["ops"]:
        if op["op"] == "mkfile":
            backend.files.add(op["path"], size=op["size"])
        elif op["op"] == "mkdir":
            backend.files.add_directory(op["path"])
    requests = [request for step in case["steps"] for request in step.get("requests", ())]
    async with guest_of(system) as guest:
        for request in requests:
            if request["to"] == "grant":
                backend.files.add(request["doc"]["path"], size=1)
                await backend.grant_access(request["doc"]["path"], request["doc"]["vm"])
            elif request["to"] == "host":
                await system.modify(request["doc"])
            else:
                await guest.modify(request["doc"])
    assert system.vm.guest.inconsistencies() == []
