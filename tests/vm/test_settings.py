"""Changes of a running VM, what it tells of itself, sharing, and the same through HCS's own connection."""

from __future__ import annotations

import math
from pathlib import PureWindowsPath
from typing import Any

import pytest
from attrs import define

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    ENDPOINT,
    FILE,
    LAYER,
    MIB,
    NAMESPACE,
    OTHER_FILE,
    OTHER_SHARED,
    PIPE,
    SCRATCH,
    SHARED,
    Running,
    lcow,
    running,
    wcow,
)
from uvm._vm.statistics import read_assigned_memory_bytes
from uvm.errors import GuestError, HostError, NotAttachedError, OptionsError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

SERVICE = "0000006D-FACB-11E6-BD58-64006A7986D3"
OS = pytest.mark.parametrize("options", [lcow(), wcow()], ids=["linux", "windows"])


def last(run: Running) -> Any:
    """The document of the last request."""
    return run.sent()[-1].document


# Memory, processors, sockets.


@OS
async def test_memory_is_changed_in_even_mebibytes(options: Any) -> None:
    async with running(options) as run:
        for size_bytes, size_mb in ((2048 * MIB, 2048), (2049 * MIB + 1, 2050), (MIB, 2)):
            await run.vm.update_memory(size_bytes)
            assert last(run) == {
                "ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB",
                "Settings": size_mb,
            }
            assert run.inventory["ComputeTopology"]["Memory"]["SizeInMB"] == size_mb


async def test_memory_is_changed_in_megabytes_as_it_is_created() -> None:
    async with running() as run:
        for memory_mb, size_mb in ((2048, 2048), (2049, 2050), (1, 2)):
            await run.vm.update_memory(memory_mb=memory_mb)
            assert last(run)["Settings"] == size_mb


@pytest.mark.parametrize(
    "size",
    [{}, {"size_bytes": MIB, "memory_mb": 1}, {"memory_mb": 0}, {"memory_mb": True}, {"size_bytes": "1G"}],
)
async def test_a_size_that_is_none_changes_nothing(size: dict[str, Any]) -> None:
    async with running() as run:
        before = len(run.sent())
        with pytest.raises(OptionsError):
            await run.vm.update_memory(**size)
        assert len(run.sent()) == before


@define
class Asked:
    """A system whose host answers in a way of its own."""

    answer: Any
    id: str = "vm1"

    async def properties(self, *types: str) -> Any:
        return self.answer


@pytest.mark.parametrize(
    "answer", [{}, {"Memory": {}}, {"Memory": {"VirtualMachineMemory": {"AssignedMemory": "?"}}}]
)
async def test_a_host_that_leaves_out_the_memory_is_an_error(answer: Any) -> None:
    system: Any = Asked(answer)
    with pytest.raises(uvm.SchemaError, match=r"AssignedMemory|VirtualMachineMemory"):
        await read_assigned_memory_bytes(system)


@pytest.mark.parametrize(
    "limits",
    [
        {"limit": 100_001},
        {"limit": -1},
        {"weight": 10_001},
        {"reservation": 100_001},
        {"maximum_frequency_mhz": 2**32},
        {"weight": "100"},
    ],
)
async def test_processor_limits_have_the_ranges_of_the_options(limits: dict[str, Any]) -> None:
    async with running() as run:
        before = len(run.sent())
        with pytest.raises(OptionsError, match=next(iter(limits))):
            await run.vm.update_cpu_limits(**limits)
        assert len(run.sent()) == before


async def test_guids_may_have_braces() -> None:
    async with running() as run:
        group = (await uvm.create_cpu_group(run.backend, [0])).id
        await run.vm.set_cpu_group("{" + group + "}")
        assert last(run)["Settings"] == {"Id": group}
        await run.vm.update_hvsocket_service("{" + SERVICE + "}", uvm.HvSocketService())
        assert last(run)["ResourcePath"].endswith(f"ServiceTable/{SERVICE}")


async def test_a_request_that_is_changed_afterwards_stays_in_the_log_as_it_was() -> None:
    async with running() as run:
        request: dict[str, Any] = {
            "ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB",
            "Settings": 512,
        }
        await run.vm.modify(request)
        request["Settings"] = 1
        assert last(run)["Settings"] == 512


@pytest.mark.parametrize("settings", [{1: "a"}, {"a": object()}, {"a": math.nan}, {"a": 10**5000}])
async def test_a_request_that_is_no_json_is_refused_and_not_among_those_that_were_sent(settings: Any) -> None:
    async with running() as run:
        before = run.vm.devices().requests
        for send in (run.vm.modify, run.vm.guest_request):
            with pytest.raises(uvm.OptionsError, match="the request, of which nothing was sent, cannot be"):
                await send({"RequestType": "Update", "Settings": settings})
        assert run.vm.devices().requests == before


async def test_a_vm_is_shown_whatever_was_sent_to_it() -> None:
    async with running() as run:
        odd = {"ResourcePath": "VirtualMachine/X", "RequestType": "Update", "Settings": {"Layers": 3}}
        with pytest.raises(HostError):
            await run.vm.modify(odd)
        assert run.vm.devices().requests[-1].settings == ("Layers=3",)
        assert "Layers=3" in str(run.vm.devices())


async def test_the_state_is_saved_at_an_absolute_path() -> None:
    async with running() as run:
        await run.vm.pause()
        with pytest.raises(OptionsError, match="no root"):
            await run.vm.save("D:saved.vmrs")
        await run.vm.save(PureWindowsPath(r"C:\vm\saved.vmrs"))
        assert await run.backend.files.stat(r"C:\vm\saved.vmrs") is not None


async def test_assigned_memory_is_told_in_bytes() -> None:
    async with running(lcow(memory_mb=512, allow_overcommit=False)) as run:
        assert await run.vm.assigned_memory_bytes() == 512 * MIB


@OS
async def test_processor_limits_and_groups_are_changed(options: Any) -> None:
    async with running(options) as run:
        await run.vm.update_cpu_limits(limit=50_000, weight=200)
        assert last(run)["Settings"] == {"Limit": 50_000, "Weight": 200}
        group = (await uvm.create_cpu_group(run.backend, [0])).id
        await run.vm.set_cpu_group(group)
        assert last(run)["Settings"] == {"Id": group}
        await run.vm.release_cpu_group()
        assert last(run)["Settings"] == {"Id": "00000000-0000-0000-0000-000000000000"}


@OS
async def test_socket_services_are_added_and_removed(options: Any) -> None:
    async with running(options) as run:
        service = uvm.HvSocketService(
            connect_security_descriptor="D:P(A;;FA;;;WD)", allow_wildcard_binds=True
        )
        await run.vm.update_hvsocket_service(SERVICE, service)
        assert last(run)["ResourcePath"].endswith(f"ServiceTable/{SERVICE}")
        assert SERVICE in str(run.inventory["HvSocket"]).upper()
        await run.vm.remove_hvsocket_service(SERVICE)
        assert SERVICE not in str(run.inventory.get("HvSocket")).upper()


async def test_a_linux_guest_fits_its_pods_to_the_memory() -> None:
    async with running() as run:
        await run.vm.update_container_memory_limits()
        assert last(run) == {"RequestType": "Update", "ResourceType": "PodCgroupMemoryLimit"}


async def test_a_change_that_is_refused_is_raised_and_changes_nothing() -> None:
    async with running() as run:
        before = run.inventory
        run.backend.faults.refuse(operation="modify")
        with pytest.raises(HostError, match="E_FAIL"):
            await run.vm.update_memory(4096 * MIB)
        assert run.inventory == before


async def test_any_request_can_be_sent_as_it_is() -> None:
    async with running() as run:
        await run.vm.modify(
            {"ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB", "Settings": 512}
        )
        assert run.inventory["ComputeTopology"]["Memory"]["SizeInMB"] == 512
        with pytest.raises(GuestError, match="Nonsense"):
            await run.vm.guest_request({"RequestType": "Add", "ResourceType": "Nonsense"})


# What it tells.


@pytest.mark.parametrize("overcommit", [True, False])
async def test_statistics(overcommit: bool) -> None:
    async with running(lcow(memory_mb=512, allow_overcommit=overcommit)) as run:
        first = await run.vm.stats()
        run.backend.clock.advance(1.0)
        second = await run.vm.stats()
        assert second.uptime_ns - first.uptime_ns >= 1_000_000_000
        assert second.processor_runtime_ns >= first.processor_runtime_ns
        assert second.memory is not None
        assert (second.memory.assigned_pages * 4096 == 512 * MIB) is not overcommit
        assert (second.working_set_bytes == 512 * MIB) is not overcommit


async def test_properties_come_under_hcs_names() -> None:
    async with running() as run:
        assert "Memory" in await run.vm.properties("Memory")
        with pytest.raises(HostError, match="HCS_E_INVALID_JSON"):
            await run.vm.properties("Nonsense")


@OS
async def test_what_the_vm_is(options: Any) -> None:
    async with running(options) as run:
        vm = run.vm
        assert (vm.id, vm.options, vm.host) == ("vm1", options, run.backend.info)
        assert vm.runtime_id == run.backend.vms["vm1"].runtime_id
        assert repr(vm) == f"<UtilityVM vm1 ({vm.os}, running)>"
        assert vm.plan.document["Owner"] == options.owner


# Sharing.


async def test_a_directory_and_a_file_are_shared_with_a_linux_guest() -> None:
    async with running() as run:
        directory = await run.vm.share(SHARED, "/dir")
        file = await run.vm.share(FILE, "/file", read_only=True)
        assert (directory.host_path, directory.guest_path) == (SHARED, "/dir")
        assert (file.host_path, file.guest_path) == (FILE, "/file/one.txt")
        shares = run.inventory["Plan9"]["Shares"]
        assert [share.get("AllowedFiles") for share in shares] == [None, ["one.txt"]]
        assert [mount.read_only for mount in run.guest.mounts.values()] == [False, True]
        assert [shown.guest_path for shown in run.vm.shared] == ["/dir", "/file/one.txt"]
        check_at_rest(run)
        await directory.release()
        await file.release()
        assert "Plan9" not in run.inventory


async def test_a_directory_and_a_file_are_shared_with_a_windows_guest() -> None:
    async with running(wcow()) as run:
        directory = await run.vm.share(SHARED, r"C:\dir")
        file = await run.vm.share(FILE, r"C:\file", read_only=True)
        assert sorted(mount.path for mount in run.guest.mounts.values()) == [r"C:\dir", r"C:\file"]
        assert last(run)["Settings"]["HostPath"].endswith(r"\s2\one.txt")
        check_at_rest(run)
        await directory.release()
        await file.release()
        assert run.guest.mounts == {}
        check_at_rest(run)


async def test_a_share_that_the_guest_refuses_to_show_is_given_back() -> None:
    async with running(wcow(no_direct_map=True)) as run:
        run.backend.faults.refuse(resource="MappedDirectory", first=1)
        with pytest.raises(GuestError):
            await run.vm.share(SHARED, r"C:\dir")
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())
        check_at_rest(run)


@pytest.mark.parametrize("revoke", [True, False])
async def test_a_released_file_is_revoked_at_once_only_where_that_was_asked_for(revoke: bool) -> None:
    async with running(wcow(revoke_released_files=revoke, no_direct_map=True)) as run:
        one, two = await run.vm.vsmb.add(FILE), await run.vm.vsmb.add(OTHER_FILE)
        await one.release()
        (share,) = (s for s in run.inventory["VirtualSmb"]["Shares"] if s["Name"] == one.name)
        assert share["AllowedFiles"] == ([OTHER_FILE] if revoke else [FILE, OTHER_FILE])
        check_at_rest(run)
        await two.release()
        assert [s["Name"] for s in run.inventory["VirtualSmb"]["Shares"]] == ["os"]


# Looking up, and removing, by host path.


async def test_disks_and_layers_are_found_by_their_host_path() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK, mount=uvm.Mount(guest_path="/disk"))
        layer = await run.vm.vpmem.add(LAYER)
        assert run.vm.scsi.find(DISK) == (disk.controller, disk.lun)
        assert run.vm.scsi.find(DISK, read_only=True) is None
        assert run.vm.scsi.guest_path(DISK) == "/disk"
        assert run.vm.vpmem.guest_path(LAYER) == layer.guest_path
        await run.vm.scsi.detach(DISK, read_only=False)
        await run.vm.vpmem.remove(LAYER)
        assert (disk.released, layer.released) == (True, True)
        with pytest.raises(NotAttachedError):
            run.vm.scsi.guest_path(DISK)


async def test_shares_are_found_by_their_host_path() -> None:
    async with running(wcow()) as run:
        directory = await run.vm.vsmb.add(SHARED, read_only=True)
        file = await run.vm.vsmb.add(FILE)
        assert directory.share_path == directory.guest_path
        assert file.guest_path == rf"{file.share_path}\one.txt"
        assert await run.vm.vsmb.guest_path(SHARED, read_only=True) == directory.guest_path
        assert await run.vm.vsmb.guest_path(FILE, read_only=False) == file.guest_path
        with pytest.raises(NotAttachedError):
            await run.vm.vsmb.guest_path(OTHER_FILE, read_only=False)
        await run.vm.vsmb.remove(SHARED, read_only=True)
        await run.vm.vsmb.remove(FILE, read_only=False)
        assert (directory.released, file.released) == (True, True)


async def test_pipes_and_roots_are_removed_by_their_paths() -> None:
    async with running(wcow()) as run:
        pipe = await run.vm.pipes.add(PIPE)
        await run.vm.pipes.remove(PIPE)
        assert pipe.released
        root = await run.vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], SCRATCH)
        await run.vm.layers.remove(root.root)
        await root.release()
        assert run.guest.mounts == {}
        check_at_rest(run)


# Through HCS's own connection to the guest.


async def _everything(run: Running) -> None:
    vm = run.vm
    linux = vm.os == "linux"
    leases: list[Any] = [
        await vm.scsi.attach(DISK, mount=uvm.Mount()),
        await vm.network.setup(NAMESPACE),
        await vm.share(OTHER_SHARED, "/there" if linux else r"C:\there"),
    ]
    if linux:
        leases += [await vm.vpmem.add(LAYER), await vm.mount_layers("c1", [LAYER], SCRATCH)]
    else:
        leases += [
            await vm.pipes.add(PIPE),
            await vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], SCRATCH),
        ]
    check_at_rest(run)
    for lease in reversed(leases):
        await lease.release()
    check_at_rest(run)


@pytest.mark.parametrize("make", [lcow, wcow])
async def test_relayed_requests_are_the_same_as_those_of_our_own_connection(make: Any) -> None:
    sent = []
    for external in (True, False):
        async with running(
            make(external_guest_connection=external), concurrency=uvm.Concurrency(network=1)
        ) as run:
            assert run.vm.capabilities["NamespaceAddRequestSupported"] is True
            await _everything(run)
            sent.append([(e.to, e.document) for e in run.sent() if e.to != "grant"])
    own, relayed = sent
    assert sorted(map(str, relayed)) == sorted(map(str, own))


async def test_a_relayed_refusal_carries_the_guests_code() -> None:
    async with running(lcow(external_guest_connection=False)) as run:
        run.backend.faults.refuse(HResult.ERROR_VMCOMPUTE_TIMEOUT, to="guest", first=1)
        with pytest.raises(HostError) as caught:
            await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        assert caught.value.hresult == HResult.ERROR_VMCOMPUTE_TIMEOUT
        check_at_rest(run)


async def test_a_relayed_guest_that_does_not_know_a_container_is_no_vm_that_has_gone() -> None:
    """0xC037010E is the guest's "system not found"; the host's own is 0x8037010E."""
    async with running(lcow(external_guest_connection=False)) as run:
        with pytest.raises(HostError) as caught:
            await run.vm.guest_request({"RequestType": "Update", "ResourceType": "ContainerConstraints"})
        assert caught.value.hresult == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
        await run.vm.network.add_namespace(NAMESPACE)
        await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT)
