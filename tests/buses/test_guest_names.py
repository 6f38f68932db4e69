"""Names of things in guests and of networks: every spelling of one is the same one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    ENDPOINT,
    LAYER,
    NAMESPACE,
    OTHER_DISK,
    OTHER_LAYER,
    OTHER_SHARED,
    SHARED,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm._names import guest_path_key, guid_key
from uvm.devices.layers import Combination
from uvm.devices.scsi import Mount, Mounts, ScsiSlot, mount_key

pytestmark = pytest.mark.anyio

ELSEWHERE = "99999999-0000-0000-0000-00000000000A"
GUIDS: tuple[Callable[[str], str], ...] = (str.upper, str.lower, lambda guid: "{" + guid.upper() + "}")
LINUX_ROOTS = (
    "/run/gcs/c/1/rootfs",
    "//run/gcs/c/1/rootfs",
    "/run/gcs/./c//1/rootfs/",
    "/run/gcs/c/x/../1/rootfs",
)
WINDOWS_PLACES = (r"C:\Data\x", "c:\\DATA\\X\\", "C:/data/x", r"C:\data\.\x", r"\\?\C:\data\X")


async def refused_unsent(run: Running, use: Callable[[], Awaitable[Any]]) -> None:
    """An OptionsError, before the host or the guest hear of it."""
    before = len(run.sent())
    with pytest.raises(uvm.OptionsError):
        await use()
    assert len(run.sent()) == before


@pytest.mark.parametrize("spell", GUIDS)
@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_namespace_and_its_adapters_are_found_by_every_spelling_of_their_ids(
    os: str, spell: Callable[[str], str]
) -> None:
    async with running(lcow() if os == "linux" else wcow()) as run:
        network = run.vm.network
        await network.setup(spell(NAMESPACE))
        with pytest.raises(uvm.OptionsError, match="already"):
            await network.add_namespace(NAMESPACE)
        again = await network.add_endpoint(spell(NAMESPACE), spell(ENDPOINT))
        assert guid_key(again.namespace_id) == NAMESPACE
        await network.remove_endpoint(spell(NAMESPACE), spell(ENDPOINT))
        assert len(run.backend.network.attachments()) == 2
        await network.remove_namespace(spell(NAMESPACE))
        assert run.backend.network.attachments() == {}
        check_at_rest(run)


async def test_an_adapter_that_was_added_by_the_name_of_its_endpoint_is_removed_by_it() -> None:
    async with running() as run:
        namespace = await run.vm.network.setup(NAMESPACE)
        await namespace.add_endpoint("endpoint-eth0")
        for left in (2, 1):
            await run.vm.network.remove_endpoint(NAMESPACE, "endpoint-eth0")
            assert len(run.backend.network.attachments()) == left
        with pytest.raises(uvm.NotAttachedError, match="endpoint-eth0"):
            await run.vm.network.remove_endpoint(NAMESPACE, "endpoint-eth0")
        await namespace.release()
        check_at_rest(run)


@pytest.mark.parametrize("spell", GUIDS)
async def test_an_adapter_id_is_taken_however_it_is_spelled(spell: Callable[[str], str]) -> None:
    nic = "abcdefab-0000-0000-0000-00000000000c"
    async with running(lcow()) as run:
        namespace = await run.vm.network.add_namespace(NAMESPACE)
        lease = await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT, nic_id=spell(nic))
        assert "{" not in lease.nic_id
        with pytest.raises(uvm.OptionsError, match="another adapter has the id"):
            await run.vm.network.add_endpoint(NAMESPACE, "endpoint-eth1", nic_id=nic)
        await namespace.release()


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_ids_of_documents_are_sent_and_shown_in_one_spelling(os: str) -> None:
    ids = [guid.upper() for guid in (NAMESPACE, ENDPOINT)]
    async with running(lcow() if os == "linux" else wcow()) as run:
        async with run.vm.network.add_namespace({"ID": f"{{{ids[0]}}}"}) as namespace:
            lease = await namespace.add_endpoint({"ID": f"{{{ids[1]}}}"})
            (adapter,) = run.vm.network.adapters
            assert [namespace.id, lease.namespace_id, adapter.namespace_id] == ids[:1] * 3
            assert [lease.endpoint_id, adapter.endpoint_id] == ids[1:] * 2
        sent = str([each.call.document for each in run.sent()])
        assert all(f"{{{each}" not in sent for each in ids)


@pytest.mark.parametrize("os", ["linux", "windows"])
@pytest.mark.parametrize("named", ["", ELSEWHERE, NAMESPACE.upper()])
async def test_an_adapter_is_in_the_namespace_that_was_asked_for_whatever_its_endpoint_names(
    os: str, named: str
) -> None:
    async with running(lcow() if os == "linux" else wcow()) as run:
        run.backend.network.add_namespace({"ID": ELSEWHERE})
        namespace = await run.vm.network.add_namespace(NAMESPACE)
        run.backend.network.add_endpoint({"ID": ELSEWHERE, "Name": "it", "HostComputeNamespace": named})
        endpoint = await run.backend.network.endpoint("it")
        async with namespace.add_endpoint(endpoint) as adapter:
            assert adapter.namespace_id == NAMESPACE
            told = [e.call.document for e in run.sent("guest") if ELSEWHERE in str(e.call.document)]
            assert all(f"'{ELSEWHERE}'" not in str(_namespaces_in(each)) for each in told)
        assert run.backend.network.attachments() == {}


def _namespaces_in(document: Any) -> list[str]:
    """Every namespace that a document names."""
    if isinstance(document, dict):
        here = [str(document[k]) for k in ("NamespaceID", "HostComputeNamespace") if k in document]
        return here + [found for each in document.values() for found in _namespaces_in(each)]
    items = document if isinstance(document, list) else []
    return [found for each in items for found in _namespaces_in(each)]


@pytest.mark.parametrize("document", [{}, {"ID": ""}])
async def test_a_document_without_an_id_is_refused(document: dict[str, Any]) -> None:
    async with running(lcow()) as run:
        await refused_unsent(run, lambda: run.vm.network.add_namespace(document))
        await run.vm.network.add_namespace(NAMESPACE)
        await refused_unsent(run, lambda: run.vm.network.add_endpoint(NAMESPACE, document))


@pytest.mark.parametrize("spelled", LINUX_ROOTS)
async def test_a_root_of_a_linux_guest_is_one_root_in_every_spelling(spelled: str) -> None:
    async with running(lcow()) as run:
        one, two = await run.vm.vpmem.add(LAYER), await run.vm.vpmem.add(OTHER_LAYER)
        combine = run.vm.layers.combine
        await run.vm.scsi.attach(DISK, mount=Mount(guest_path="/run/s"))
        lease = await combine(LINUX_ROOTS[0], [one.guest_path], scratch_path="/run/s")
        same = await combine(spelled, [one.guest_path + "/"], scratch_path="//run/s")
        assert same.root == lease.root == LINUX_ROOTS[0]
        await refused_unsent(run, lambda: combine(spelled, [two.guest_path], scratch_path="/run/s"))
        await run.vm.layers.remove(spelled)
        await run.vm.layers.remove(spelled)
        with pytest.raises(uvm.NotAttachedError):
            await run.vm.layers.remove(spelled)


@pytest.mark.parametrize("spelled", WINDOWS_PLACES)
async def test_a_place_in_a_windows_guest_is_one_place_in_every_spelling(spelled: str) -> None:
    async with running(wcow()) as run:
        lease = await run.vm.share(SHARED, WINDOWS_PLACES[0])
        same = await run.vm.share(SHARED, spelled)
        assert same.guest_path == lease.guest_path == WINDOWS_PLACES[0]
        await refused_unsent(run, lambda: run.vm.share(OTHER_SHARED, spelled))
        await lease.release()
        await same.release()
        other = await run.vm.share(OTHER_SHARED, spelled)
        assert guest_path_key(other.guest_path, "windows") == guest_path_key(spelled, "windows")


@pytest.mark.parametrize("path", ["x", "./x", "C:\\x"])
async def test_a_relative_place_in_a_linux_guest_is_refused_before_anything_is_sent(path: str) -> None:
    async with running(lcow()) as run:
        vm = run.vm
        await refused_unsent(run, lambda: vm.scsi.attach(DISK, mount=Mount(guest_path=path)))
        await refused_unsent(run, lambda: vm.share(SHARED, path))
        await refused_unsent(run, lambda: vm.layers.combine(path, ["/a"]))
        await refused_unsent(run, lambda: vm.layers.combine("/r", [path]))


@pytest.mark.parametrize("path", ["x", r"\\x", "C:", "C:x", "/x"])
async def test_a_place_in_a_windows_guest_without_drive_and_root_is_refused_before_anything_is_sent(
    path: str,
) -> None:
    async with running(wcow()) as run:
        vm = run.vm
        await refused_unsent(run, lambda: vm.scsi.attach(DISK, mount=Mount(guest_path=path)))
        await refused_unsent(run, lambda: vm.share(SHARED, path))
        await refused_unsent(run, lambda: vm.layers.combine(path, [("", r"C:\a")]))


async def test_a_mount_is_sent_at_the_cleaned_path_and_its_place_is_free_again_after_it() -> None:
    async with running(lcow()) as run:
        lease = await run.vm.scsi.attach(DISK, mount=Mount(guest_path="//run//x/"))
        assert lease.guest_path == "/run/x"
        assert run.guest.mounts.keys() >= {"/run/x"}
        await refused_unsent(run, lambda: run.vm.scsi.attach(OTHER_DISK, mount=Mount(guest_path="/run/./x")))
        await lease.release()
        await run.vm.scsi.attach(OTHER_DISK, mount=Mount(guest_path="/run/x"))
        await quiet()


PARTS = st.lists(st.sampled_from(["a", "A", "b", ".", "..", ""]), min_size=1, max_size=4)


@given(st.sampled_from(["linux", "windows"]), st.lists(PARTS, max_size=6))
async def test_mounts_never_share_a_place_in_any_spelling(os: Any, places: list[list[str]]) -> None:
    mounts, taken = Mounts(os), set[str]()
    for lun, parts in enumerate(places):
        path = "/r/" + "/".join(parts) if os == "linux" else "C:/r/" + "/".join(parts)
        key, folded = mount_key(ScsiSlot(0, lun), Mount(guest_path=path), False), guest_path_key(path, os)
        if folded in taken:
            with pytest.raises(uvm.OptionsError):
                mounts.place(key, path)
        else:
            assert guest_path_key(mounts.place(key, path).path, os) == folded
            taken.add(folded)


def test_combinations_are_equal_by_what_their_paths_mean() -> None:
    def combined(*layers: tuple[str, str], root: str = r"C:\root") -> Combination:
        return Combination.of("windows", root, layers)

    guid = "7f2c1c0e-5d0a-4c3e-9b1f-2a60d0a3e7b4"
    one = combined((guid, r"C:\l\1"), (guid, r"C:\l\2"))
    assert one == combined(("{" + guid.upper() + "}", "c:/L/1/"), (guid, r"C:\l\.\2"), root="c:/ROOT")
    assert one != combined((guid, r"C:\l\2"), (guid, r"C:\l\1"))
    assert one != combined((guid, r"C:\l\1"))
