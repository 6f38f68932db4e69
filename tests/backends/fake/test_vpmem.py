"""Virtual persistent memory."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.fake.support import (
    JSON,
    LAYER,
    MIB,
    OTHER_LAYER,
    SHARED,
    add,
    backend_of,
    expect_refusal,
    host_files,
    image,
    lcow,
    mapping,
    pmem,
    remove,
    running,
    update,
    wcow,
)
from uvm.backends.fake import Checks, FakeBackend, FakeSystem
from uvm.errors import HostError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


async def test_a_device_is_there_until_it_is_removed() -> None:
    async with running() as system:
        await system.modify(add(pmem(1), image()))
        assert system.vm.tree.inventory()["VirtualPMem"] == {"Devices": {"1": image()}}
        await system.modify(remove(pmem(1)))
        assert "VirtualPMem" not in system.vm.tree.inventory()


async def test_a_number_holds_one_device() -> None:
    async with running() as system:
        await system.modify(add(pmem(0), image()))
        for settings in (image(), image(OTHER_LAYER)):
            with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
                await system.modify(add(pmem(0), settings))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(pmem(0, 0), mapping(OTHER_LAYER)))


async def test_numbers_are_below_the_maximum_count() -> None:
    async with running() as system:
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(pmem(2), image()))


async def test_a_document_without_a_controller_has_no_vpmem() -> None:
    async with running(wcow()) as system:
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(add(pmem(0), image()))


async def test_the_devices_of_the_document_are_there_from_the_start() -> None:
    controller = {"MaximumCount": 2, "MaximumSizeBytes": 16 * MIB, "Devices": {"0": image()}}
    async with running(lcow(VirtualPMem=controller)) as system:
        assert system.vm.tree.vpmem.find((0, None)) is not None
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(pmem(0), image(OTHER_LAYER)))


async def test_a_file_must_exist_and_fit() -> None:
    async with running() as system:
        files = backend_of(system).files
        files.add(r"C:\fits", size=16 * MIB)
        files.add(r"C:\large", size=16 * MIB + 1)
        for path, code in [
            (r"C:\none", HResult.ERROR_FILE_NOT_FOUND),
            (SHARED, HResult.E_ACCESSDENIED),
            (r"C:\large", HResult.E_INVALIDARG),
        ]:
            with expect_refusal(code):
                await system.modify(add(pmem(0), image(path)))
            with expect_refusal(code):
                await system.modify(add(pmem(0, 0), mapping(path)))
        assert not files.is_open(r"C:\large")
        await system.modify(add(pmem(0), image(r"C:\fits")))


async def test_formats_are_vhd1_and_vhdx() -> None:
    async with running() as system:
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.modify(add(pmem(0), image(ImageFormat="Qcow2")))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(pmem(0), {"ImageFormat": "Vhd1"}))


async def test_nothing_there_cannot_be_removed_and_nothing_can_be_updated() -> None:
    async with running() as system:
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(pmem(0)))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(pmem(0, 0)))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(update(pmem(0), image()))


async def test_files_are_mapped_side_by_side_and_the_device_is_there_while_one_is() -> None:
    async with running() as system:
        await system.modify(add(pmem(0, 0), mapping()))
        await system.modify(add(pmem(0, MIB), mapping(OTHER_LAYER)))
        mapped = {"Mappings": {"0": mapping(), str(MIB): mapping(OTHER_LAYER)}}
        assert system.vm.tree.inventory()["VirtualPMem"] == {"Devices": {"0": mapped}}
        with expect_refusal(HResult.HCS_E_INVALID_STATE):
            await system.modify(remove(pmem(0)))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(pmem(0), image()))
        await system.modify(remove(pmem(0, 0)))
        await system.modify(remove(pmem(0, MIB)))
        await system.modify(add(pmem(0), image()))


@pytest.mark.parametrize("offset", [1, 4095, MIB + 2048])
async def test_offsets_are_whole_pages(offset: int) -> None:
    async with running() as system:
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(pmem(0, offset), mapping()))


@pytest.mark.parametrize("offset", [MIB - 4096, 2 * MIB - 4096, MIB + 4096])
async def test_mappings_do_not_overlap(offset: int) -> None:
    async with running() as system:
        await system.modify(add(pmem(0, MIB), mapping()))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(pmem(0, offset), mapping(OTHER_LAYER)))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(pmem(0, MIB), mapping(OTHER_LAYER)))
        assert not backend_of(system).files.is_open(OTHER_LAYER)


async def test_a_file_takes_whole_pages() -> None:
    async with running() as system:
        backend_of(system).files.add(r"C:\odd", size=5000)
        await system.modify(add(pmem(0, 0), mapping(r"C:\odd")))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(pmem(0, 4096), mapping()))
        await system.modify(add(pmem(0, 8192), mapping()))


PAGE = 4096
STEPS = st.lists(
    st.tuples(st.sampled_from(["Add", "Remove"]), st.integers(0, 1), st.integers(0, 12), st.integers(0, 3)),
    max_size=30,
)


@given(STEPS)
def test_of_all_mappings_of_a_device_none_overlaps_another(steps: list[tuple[str, int, int, int]]) -> None:
    """Sizes are in half pages, 0 among them. The model looks at all mappings."""
    anyio.run(map_and_unmap, steps)


async def map_and_unmap(steps: list[tuple[str, int, int, int]]) -> None:
    there: dict[tuple[int, int], int] = {}
    async with running() as system:
        for halves in range(4):
            backend_of(system).files.add(rf"C:\halves\{halves}", size=halves * PAGE // 2)
        for action, number, at, halves in steps:
            pages = (halves + 1) // 2
            on_device = [(other, size) for (n, other), size in there.items() if n == number]
            expected: int = 0
            if action == "Remove":
                expected = 0 if (number, at) in there else HResult.ERROR_NOT_FOUND
                there.pop((number, at), None)
            elif (number, at) in there:
                expected = HResult.ERROR_ALREADY_EXISTS
            elif any(other < at + pages and at < other + size for other, size in on_device):
                expected = HResult.E_INVALIDARG
            else:
                there[number, at] = pages
            request = {"Add": add, "Remove": remove}[action]
            settings = mapping(rf"C:\halves\{halves}") if action == "Add" else None
            assert await outcome(system, request(pmem(number, at * PAGE), settings)) == expected
        assert {(n, offset // PAGE) for n, offset in system.vm.tree.vpmem.mappings} == set(there)
        for number in (0, 1):
            mapped = any(n == number for n, _ in there)
            assert await outcome(system, add(pmem(number), image())) == (
                HResult.ERROR_ALREADY_EXISTS if mapped else 0
            )


async def outcome(system: FakeSystem, request: JSON) -> int:
    """Send a request; return 0, or the code with which it is refused."""
    try:
        await system.modify(request)
    except HostError as e:
        return e.hresult
    return 0


async def test_a_mapping_ends_within_the_device() -> None:
    async with running() as system:
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(pmem(0, 15 * MIB + 4096), mapping()))
        await system.modify(add(pmem(0, 15 * MIB), mapping()))


async def test_a_writable_device_has_its_file_for_itself_and_needs_access() -> None:
    async with running() as system:
        with expect_refusal(HResult.E_ACCESSDENIED):
            await system.modify(add(pmem(0), image(ReadOnly=False)))
        await backend_of(system).grant_access(LAYER, "vm1")
        await system.modify(add(pmem(0), image(ReadOnly=False)))
        with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
            await system.modify(add(pmem(1), image()))


async def test_read_only_layers_need_access_where_all_access_is_checked() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks(access="all"))
    async with running(backend=backend) as system:
        with expect_refusal(HResult.E_ACCESSDENIED):
            await system.modify(add(pmem(0, 0), mapping()))


async def test_the_exit_lets_go_of_every_file() -> None:
    async with running() as system:
        await system.modify(add(pmem(0), image()))
        await system.modify(add(pmem(1, 0), mapping(OTHER_LAYER)))
        await system.terminate()
        assert not backend_of(system).files.is_open(LAYER)
        assert not backend_of(system).files.is_open(OTHER_LAYER)
