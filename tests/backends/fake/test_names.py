"""The fake takes the spellings of one name for one name."""

from __future__ import annotations

import pytest

from tests.backends.fake.support import expect_refusal
from uvm.backends.fake import FakeBackend, FakeFiles
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

GUID = "0d3f6b5e-1c2a-4f7b-9e8d-5a6b7c8d9e0f"
SPELLINGS = [GUID, GUID.upper(), f"{{{GUID}}}"]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_guid_is_one_in_any_case_and_with_braces(spelling: str) -> None:
    backend = FakeBackend()
    backend.network.add_namespace({"ID": GUID})
    backend.network.add_endpoint({"ID": f"{{{GUID.upper()}}}", "HostComputeNamespace": spelling})
    assert (await backend.network.namespace(spelling))["ID"] == GUID
    assert len(await backend.network.namespace_endpoints(spelling)) == 1
    with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
        backend.network.add_namespace({"ID": spelling})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"C:\STRASSE", r"C:\straße", False),
        (r"C:\É", r"C:\é", True),
        (r"C:\a. ", r"C:\a", True),
        (r"\\?\C:\a.", r"C:\a.", False),
        (r"\\.\PHYSICALDRIVE2", r"\\?\PhysicalDrive2", True),
    ],
)
def test_files_of_windows_compare_by_one_to_one_upper_casing(one: str, other: str, same: bool) -> None:
    files = FakeFiles()
    assert (files.key(one) == files.key(other)) is same
