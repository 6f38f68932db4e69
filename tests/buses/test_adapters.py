"""Adapters: SR-IOV settings, adapters in the guest alone, and all of them removed at once."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    ENDPOINT,
    GUEST_ADAPTER,
    NAMESPACE,
    NIC,
    NIC_DEVICE,
    OPTIONS,
    Attempt,
    Running,
    host_backend,
    lcow,
    running,
    wcow,
)
from uvm.backends.fake import LinuxGuest
from uvm.errors import (
    GuestError,
    HostError,
    NotAttachedError,
    NotSupportedError,
    OptionsError,
    UnknownOutcomeError,
)
from uvm.schema.guest import LCOWIPConfig, LCOWNetworkAdapter

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends


async def with_device(run: Running) -> None:
    await run.vm.network.add_namespace(NAMESPACE)
    await run.vm.vpci.assign(NIC_DEVICE, vmbus_guid=NIC)


def in_guest(run: Running) -> list[str]:
    guest = run.guest
    assert isinstance(guest, LinuxGuest)
    return [nic for adapters in guest.namespaces.values() for nic in adapters]


# SR-IOV.


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (0, "Default"),
        (1, "Adaptive"),
        (2, "Off"),
        (100, "Low"),
        (200, "Medium"),
        (300, "High"),
        ("Off", "Off"),
    ],
)
@pytest.mark.parametrize("os", OPTIONS)
async def test_sr_iov_is_changed_on_the_host_alone(os: str, given: int | str, name: str) -> None:
    async with running(OPTIONS[os]()) as run:
        await run.vm.network.setup(NAMESPACE)
        nic_id, before = run.vm.network.adapters[0].nic_id, len(run.sent())
        await run.vm.network.update_adapter(
            nic_id.upper(), offload_weight=100, queue_pairs=2, interrupt_moderation=given
        )
        [sent] = run.sent()[before:]
        iov = {"OffloadWeight": 100, "QueuePairsRequested": 2, "InterruptModeration": name}
        adapter = {"EndpointId": ENDPOINT, "MacAddress": "00-15-5D-00-00-00", "IovSettings": iov}
        path = f"VirtualMachine/Devices/NetworkAdapters/{nic_id}"
        assert sent.to == "host"
        assert sent.document == {"ResourcePath": path, "RequestType": "Update", "Settings": adapter}
        assert run.inventory["NetworkAdapters"][nic_id] == adapter
        check_at_rest(run)


async def test_what_is_not_given_is_not_sent() -> None:
    async with running(lcow()) as run:
        await run.vm.network.setup(NAMESPACE)
        await run.vm.network.update_adapter(run.vm.network.adapters[0].nic_id, queue_pairs=0)
        assert run.sent()[-1].document["Settings"]["IovSettings"] == {"QueuePairsRequested": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a setting"),
        ({"offload_weight": -1}, "offload_weight must be a whole number"),
        ({"queue_pairs": 1 << 32}, "queue_pairs must be a whole number"),
        ({"queue_pairs": True}, "queue_pairs must be a whole number"),
        ({"interrupt_moderation": 3}, r"one of Default \(0\), .* High \(300\), not 3"),
        ({"interrupt_moderation": "high"}, "not 'high'"),
    ],
)
async def test_sr_iov_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    async with running(lcow()) as run:
        await run.vm.network.setup(NAMESPACE)
        before = len(run.sent())
        with pytest.raises(OptionsError, match=message):
            await run.vm.network.update_adapter(run.vm.network.adapters[0].nic_id, **settings)
        assert len(run.sent()) == before


async def test_an_adapter_that_is_not_there_or_in_the_guest_alone_has_no_sr_iov_to_change() -> None:
    async with running(lcow()) as run:
        await with_device(run)
        await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
        before = len(run.sent())
        with pytest.raises(NotAttachedError, match=f"has no adapter {NIC} on the host"):
            await run.vm.network.update_adapter(NIC, offload_weight=1)
        assert len(run.sent()) == before


async def test_an_update_whose_answer_is_lost_has_an_unknown_outcome_and_the_adapter_stays_usable() -> None:
    async with running(lcow()) as run:
        namespace = await run.vm.network.setup(NAMESPACE)
        nic_id = run.vm.network.adapters[0].nic_id
        rule = run.backend.faults.lose(request_type="Update")
        with pytest.raises(UnknownOutcomeError):
            await run.vm.network.update_adapter(nic_id, offload_weight=1)
        rule.remove()
        await run.vm.network.update_adapter(nic_id, offload_weight=2)
        assert run.inventory["NetworkAdapters"][nic_id]["IovSettings"] == {"OffloadWeight": 2}
        await namespace.release()
        check_at_rest(run)


# In the guest alone.


async def test_an_adapter_in_the_guest_alone_is_a_lease_like_others() -> None:
    async with running(lcow()) as run:
        await with_device(run)
        before = len(run.sent())
        lease = await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
        assert (lease.nic_id, lease.endpoint_id, lease.namespace_id) == (NIC, "", NAMESPACE)
        [adapter] = run.vm.network.adapters
        assert run.vm.devices().adapters == (adapter,)
        assert (adapter.nic_id, adapter.endpoint_id, adapter.addresses) == (NIC, "", ("10.0.0.2/24",))
        assert (adapter.references, adapter.namespace_id) == (1, NAMESPACE)
        assert in_guest(run) == [NIC]
        await lease.release()
        assert run.vm.network.adapters == ()
        assert in_guest(run) == []
        added, removed = run.sent()[before:]
        assert (added.to, added.document) == (
            "guest",
            {"RequestType": "Add", "ResourceType": "Network", "Settings": GUEST_ADAPTER},
        )
        settings = {"NamespaceID": NAMESPACE, "ID": NIC}
        assert (removed.to, removed.document) == (
            "guest",
            {"RequestType": "Remove", "ResourceType": "Network", "Settings": settings},
        )
        check_at_rest(run)


async def test_it_is_given_as_a_model_too_and_what_the_caller_changes_later_is_not_its() -> None:
    async with running(lcow()) as run:
        await with_device(run)
        address = LCOWIPConfig(ip_address="10.0.0.2", prefix_length=24)
        model = LCOWNetworkAdapter(
            namespace_id=f"{{{NAMESPACE.upper()}}}", id=f"{{{NIC}}}", vpci_assigned=True, ip_configs=[address]
        )
        async with run.vm.network.add_guest_adapter(model) as lease:
            address.ip_address = "10.0.0.9"
            assert (lease.nic_id, lease.namespace_id) == (NIC, NAMESPACE)
            assert run.vm.network.adapters[0].addresses == ("10.0.0.2/24",)
        assert run.vm.network.adapters == ()


async def test_it_goes_with_its_namespace() -> None:
    async with running(lcow()) as run:
        await with_device(run)
        endpoint = await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT)
        lease = await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
        before = len(run.sent("guest"))
        await run.vm.network.remove_namespace(NAMESPACE)
        gone = {each.document["Settings"]["ID"] for each in run.sent("guest")[before:]}
        assert gone == {endpoint.nic_id, NIC}
        assert lease.released
        assert run.vm.network.namespaces == ()
        check_at_rest(run)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ID": "x"}, OptionsError, "the id of an adapter is"),
        ({"NamespaceID": NIC}, NotAttachedError, "is not in the network namespace"),
        ({"NamespaceID": ""}, NotAttachedError, "is not in the network namespace"),
        ({"IPConfigs": 5}, uvm.SchemaError, "IPConfigs"),
    ],
)
async def test_what_cannot_be_an_adapter_of_the_guest_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with running(lcow()) as run:
        await with_device(run)
        before = len(run.sent())
        with pytest.raises(error, match=message):
            await run.vm.network.add_guest_adapter({**GUEST_ADAPTER, **changes})
        assert len(run.sent()) == before
        check_at_rest(run)


async def test_two_adapters_do_not_share_an_id() -> None:
    async with running(lcow()) as run:
        await with_device(run)
        async with run.vm.network.add_guest_adapter(GUEST_ADAPTER):
            with pytest.raises(OptionsError, match="it has one of the id"):
                await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
            with pytest.raises(OptionsError, match="another adapter has the id"):
                await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT, nic_id=NIC)
        async with run.vm.network.add_endpoint(NAMESPACE, ENDPOINT, nic_id=NIC):
            with pytest.raises(OptionsError, match="the adapter in the guest was not added: another"):
                await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
        check_at_rest(run)


async def test_windows_guests_and_guests_without_namespaces_have_none_of_their_own() -> None:
    async with running(wcow()) as run:
        with pytest.raises(NotSupportedError, match="needs a Linux guest"):
            await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
    backend = host_backend(guest_capabilities={"NamespaceAddRequestSupported": False})
    async with running(lcow(), backend=backend) as run:
        await with_device(run)
        with pytest.raises(NotSupportedError, match="supports no network namespaces"):
            await run.vm.network.add_guest_adapter(GUEST_ADAPTER)


async def test_one_that_the_guest_refuses_leaves_nothing() -> None:
    async with running(lcow()) as run:
        await run.vm.network.add_namespace(NAMESPACE)
        with pytest.raises(GuestError, match="has not added adapter"):
            await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
        assert run.vm.network.adapters == ()
        await run.vm.network.remove_namespace(NAMESPACE)
        check_at_rest(run)


async def test_one_whose_add_gets_lost_is_withheld_and_reported() -> None:
    async with running(lcow(external_guest_connection=False)) as run:
        await with_device(run)
        run.backend.faults.lose(to="guest", request_type="Add")
        with pytest.raises(UnknownOutcomeError):
            await run.vm.network.add_guest_adapter(GUEST_ADAPTER)
        [withheld] = run.vm.devices().quarantined
        assert (withheld.what, withheld.where) == ("adapter in the guest alone", f"adapter id {NIC}")
        check_at_rest(run)


# All of them.


async def test_all_adapters_go_one_after_another_and_the_namespaces_stay() -> None:
    async with running(wcow()) as run:
        lease = await run.vm.network.setup(NAMESPACE)
        ids = [adapter.nic_id for adapter in run.vm.network.adapters]
        again = await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT)
        before = len(run.sent())
        await run.vm.network.remove_all_adapters()
        assert [each.to for each in run.sent()[before:]] == ["guest", "host"] * 2
        told = [each.document["Settings"] for each in run.sent()[before:]]
        assert [each.get("AdapterId") for each in told[::2]] == ids
        assert (run.vm.network.adapters, run.vm.network.namespaces) == ((), (NAMESPACE,))
        assert again.released
        assert lease.state is uvm.LeaseState.HELD
        await run.vm.network.remove_all_adapters()
        assert len(run.sent()) == before + 4
        await lease.release()
        check_at_rest(run)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_the_first_error_ends_it_and_the_rest_goes_on_when_asked_again(nth: int) -> None:
    async with running(wcow()) as run:
        lease = await run.vm.network.setup(NAMESPACE)
        rule = run.backend.faults.refuse(request_type="Remove", nth=nth)
        before = len(run.sent())
        with pytest.raises((GuestError, HostError)):
            await run.vm.network.remove_all_adapters()
        assert len(run.sent()) == before + nth
        assert len(run.vm.network.adapters) == (2 if nth < 3 else 1)
        assert run.vm.orphans == ()
        rule.remove()
        await run.vm.network.remove_all_adapters()
        assert len(run.sent()) == before + 5
        assert run.vm.network.adapters == ()
        await lease.release()
        check_at_rest(run)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_an_answer_that_is_lost_ends_it_and_the_rest_goes_on_when_asked_again(nth: int) -> None:
    async with running(lcow()) as run:
        await run.vm.network.setup(NAMESPACE)
        run.backend.faults.lose(request_type="Remove", nth=nth)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.network.remove_all_adapters()
        withheld = len(run.vm.quarantined)
        await run.vm.network.remove_all_adapters()
        assert (run.vm.network.adapters, run.vm.network.namespaces) == ((), (NAMESPACE,))
        assert (len(run.vm.quarantined), run.vm.orphans) == (withheld, ())
        check_at_rest(run)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_a_caller_who_is_cancelled_leaves_and_the_removal_of_all_goes_on(nth: int) -> None:
    async with running(lcow()) as run:
        await run.vm.network.setup(NAMESPACE)
        with run.hold(request_type="Remove", nth=nth) as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run.vm.network.remove_all_adapters)
                await gate.wait()
                tasks.cancel_scope.cancel()
        await run.vm.settled()
        assert (run.vm.network.adapters, run.vm.network.namespaces) == ((), (NAMESPACE,))
        check_at_rest(run)


async def test_the_exit_of_the_vm_ends_the_removal_of_all() -> None:
    async with running(lcow()) as run:
        await run.vm.network.setup(NAMESPACE)
        with run.hold(request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, run.vm.network.remove_all_adapters)
                await gate.wait()
                run.backend.vms[run.vm.id].crash()
        # All are off the host, as a release would say.
        assert attempt.error is None
        assert run.vm.network.adapters == ()
