"""The network of a VM, set up by a network configuration proxy: in whole, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import define, evolve, field

import uvm
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DEVICE,
    ENDPOINT,
    NAMESPACE,
    PCI,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm._ncproxy.setup import ExternalNetworkSetup
from uvm._vm.networksetup import NetworkSetup
from uvm.backend import ByteStream, Listener
from uvm.backends.fake import FakeBackend
from uvm.errors import (
    HostError,
    NotAttachedError,
    OptionsError,
    RPCCode,
    RPCError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
)
from uvm.schema.network import (
    DeviceDetails,
    PCIDeviceDetails,
    ProxyEndpoint,
    ProxyEndpointSettings,
)
from uvm.testing.ncproxy import FakeNetworkProxy

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

PROXY = r"\\.\pipe\ncproxy"
E_FAIL = 0x80004005
OTHER_NAMESPACE = "99999999-0000-0000-0000-000000000001"
OTHER_ID = "99999999-0000-0000-0000-000000000002"
AGENT = r"\\.\pipe\computeagent-pod1"
NAMES = ["endpoint-eth0", "endpoint-eth1"]


@define
class Scene:
    """A running VM whose network a proxy sets up."""

    run: Running
    proxy: FakeNetworkProxy
    setup: NetworkSetup

    @property
    def vm(self) -> uvm.UtilityVM:
        return self.run.vm

    def check_nothing_is_set_up(self) -> None:
        """Neither the VM, nor its host, its guest and the proxy have anything of it."""
        check_at_rest(self.run)
        assert (self.vm.network.namespaces, self.vm.network.adapters) == ((), ())
        assert self.run.backend.network.attachments() == {}
        assert self.vm.vpci.devices == ()
        assert self.run.backend.pipes.listened_at == (PROXY,)
        assert (self.vm.orphans, self.vm.quarantined) == ((), ())


@asynccontextmanager
async def staged(
    backend: FakeBackend | None = None, *, names: list[str] | None = None, os: str = "linux", **given: Any
) -> AsyncIterator[Scene]:
    backend = backend or host_backend()
    options = (lcow if os == "linux" else wcow)(network_config_proxy=PROXY)
    async with (
        FakeNetworkProxy(backend, PROXY, {"pod1": names or NAMES}) as proxy,
        running_there(options, backend) as run,
    ):
        yield Scene(run, proxy, run.vm.network_setup("pod1", **given))
    assert backend.leftovers() == []


@asynccontextmanager
async def running_there(options: Any, backend: FakeBackend) -> AsyncIterator[Running]:
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        yield Running(vm, backend)


async def failing(call: Callable[[str], Awaitable[None]], error: type[Exception] = UVMError) -> Exception:
    with pytest.raises(error) as caught:
        await call(NAMESPACE)
    return caught.value


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_the_proxy_adds_the_adapters_and_removes_them_again(os: str) -> None:
    async with staged(os=os) as scene:
        await scene.setup.setup(NAMESPACE)
        vm, proxy = scene.vm, scene.proxy
        assert vm.network.namespaces == (NAMESPACE,)
        assert [adapter.endpoint_name for adapter in vm.network.adapters] == NAMES
        assert proxy.agents["pod1"].address == AGENT
        check_at_rest(scene.run)
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()
        calls = ["RegisterComputeAgent", "Setup", "Teardown", "UnregisterComputeAgent"]
        assert proxy.calls == [(call, "pod1") for call in calls]
        # And anew.
        await scene.setup.setup(NAMESPACE)
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_the_proxy_sets_up_the_network_of_a_template_and_of_its_clones() -> None:
    backend = host_backend()
    options = wcow(network_config_proxy=PROXY, template=True)
    async with (
        FakeNetworkProxy(backend, PROXY, {"pod1": NAMES}) as proxy,
        running_there(options, backend) as run,
    ):
        await _set_up_and_torn_down(Scene(run, proxy, run.vm.network_setup("pod1")))
        lease = await run.vm.network.add_namespace(NAMESPACE)
        template = await run.vm.save_template()
        of_clone = evolve(
            options, id="vm2", template=False, clone_of=template, scratch_directory=r"C:\clones\one"
        )
        async with running_there(of_clone, backend) as clone:
            await _set_up_and_torn_down(Scene(clone, proxy, clone.vm.network_setup("pod1")))
        await lease.release()
    assert backend.leftovers() == []


async def _set_up_and_torn_down(scene: Scene) -> None:
    await scene.setup.setup(NAMESPACE)
    assert [adapter.endpoint_name for adapter in scene.vm.network.adapters] == NAMES
    check_at_rest(scene.run)
    await scene.setup.teardown(NAMESPACE)
    assert scene.vm.network.adapters == ()
    check_at_rest(scene.run)
    assert dict(scene.proxy.agents) == {}


async def test_sr_iov_of_an_adapter_is_changed_on_the_host_alone() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        [first, _] = scene.vm.network.adapters
        before = len(scene.run.sent("guest"))
        await scene.proxy.agents["pod1"].modify_nic(NAMES[0], first.nic_id, 100, 2, 200)
        request = scene.run.sent("host")[-1].document
        assert request == {
            "ResourcePath": f"VirtualMachine/Devices/NetworkAdapters/{first.nic_id}",
            "RequestType": "Update",
            "Settings": {
                "EndpointId": ENDPOINT,
                "MacAddress": "00-15-5D-00-00-00",
                "IovSettings": {
                    "OffloadWeight": 100,
                    "QueuePairsRequested": 2,
                    "InterruptModeration": "Medium",
                },
            },
        }
        assert len(scene.run.sent("guest")) == before
        await scene.setup.teardown(NAMESPACE)


CUSTOM = ProxyEndpoint(
    endpoint_name="vf1",
    namespace_id=NAMESPACE,
    settings=ProxyEndpointSettings(
        name="vf1",
        ip_address="10.0.0.3",
        ip_address_prefix_length=24,
        default_gateway="10.0.0.1",
        device_details=DeviceDetails(pci_device_details=PCIDeviceDetails(device_id=DEVICE)),
    ),
)


async def test_a_device_of_the_proxy_is_assigned_and_is_an_adapter_in_the_guest_alone() -> None:
    async with staged(names=["vf1"]) as scene:
        scene.proxy.custom["vf1"] = CUSTOM
        await scene.setup.setup(NAMESPACE)
        [device] = scene.vm.vpci.devices
        sent = scene.run.sent("guest")[-1].document
        assert sent["Settings"] == {
            "NamespaceID": NAMESPACE,
            "ID": device.vmbus_guid,
            "VPCIAssigned": True,
            "IPConfigs": [{"IPAddress": "10.0.0.3", "PrefixLength": 24}],
            "Routes": [{"NextHop": "10.0.0.1", "DestinationPrefix": "0.0.0.0/0"}],
        }
        [adapter] = scene.vm.network.adapters
        assert (adapter.nic_id, adapter.endpoint_id) == (device.vmbus_guid, "")
        assert adapter.addresses == ("10.0.0.3/24",)
        # The proxy removes the adapter and leaves the device, which goes with the set-up.
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_what_the_proxy_leaves_is_removed_with_the_set_up() -> None:
    async with staged(names=["vf1", NAMES[0]]) as scene:
        scene.proxy.custom["vf1"] = CUSTOM
        await scene.setup.setup(NAMESPACE)
        scene.proxy.endpoints["pod1"] = []
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_an_adapter_that_is_added_again_is_removed_at_once() -> None:
    async with staged(names=[NAMES[0]]) as scene:
        await scene.setup.setup(NAMESPACE)
        agent = scene.proxy.agents["pod1"]
        await agent.add_nic(NAMES[0], scene.run.backend.new_id())
        [adapter] = scene.vm.network.adapters
        await agent.delete_nic(NAMES[0], adapter.nic_id)
        assert scene.vm.network.adapters == ()
        with pytest.raises(RPCError, match="has no adapter"):
            await agent.delete_nic(NAMES[0], adapter.nic_id)
        scene.proxy.endpoints["pod1"] = []
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_an_adapter_in_the_guest_that_is_added_again_is_refused_and_stays() -> None:
    async with staged(names=["vf1"]) as scene:
        scene.proxy.custom["vf1"] = CUSTOM
        await scene.setup.setup(NAMESPACE)
        [device] = scene.vm.vpci.devices
        agent = scene.proxy.agents["pod1"]
        with pytest.raises(RPCError, match="it has one of the id"):
            await agent.add_nic("vf1", device.vmbus_guid)
        assert [each.nic_id for each in scene.vm.network.adapters] == [device.vmbus_guid]
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_a_device_is_removed_as_often_as_it_was_assigned_also_at_once() -> None:
    async with staged(names=[NAMES[0]]) as scene:
        await scene.setup.setup(NAMESPACE)
        agent = scene.proxy.agents["pod1"]
        ids = [await agent.assign_pci(DEVICE) for _ in range(3)]
        assert len({*ids}) == 1
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(agent.remove_pci, DEVICE)
        assert [device.references for device in scene.vm.vpci.devices] == [1]
        await agent.remove_pci(DEVICE)
        assert scene.vm.vpci.devices == ()
        with pytest.raises(RPCError, match="no device"):
            await agent.remove_pci(DEVICE)
        await scene.setup.teardown(NAMESPACE)


async def test_one_removal_of_a_device_that_is_asked_for_twice_at_once_is_one() -> None:
    async with staged(names=[NAMES[0]]) as scene:
        await scene.setup.setup(NAMESPACE)
        agent = scene.proxy.agents["pod1"]
        await agent.assign_pci(DEVICE)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(agent.remove_pci, DEVICE)
        assert scene.vm.vpci.devices == ()
        await scene.setup.teardown(NAMESPACE)


async def test_the_agent_removes_its_own_before_what_others_have() -> None:
    async with staged(names=[NAMES[0]]) as scene:
        await scene.setup.setup(NAMESPACE)
        mine = await scene.vm.vpci.assign(DEVICE)
        agent = scene.proxy.agents["pod1"]
        await agent.assign_pci(DEVICE)
        await agent.remove_pci(DEVICE)
        assert not mine.released
        await mine.release()
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_what_the_agent_adds_to_another_namespace_is_removed_with_the_set_up() -> None:
    backend = host_backend()
    backend.network.add_namespace({"ID": OTHER_NAMESPACE})
    endpoint = {"ID": OTHER_ID, "Name": "other", "HostComputeNamespace": OTHER_NAMESPACE}
    backend.network.add_endpoint({**endpoint, "MacAddress": "00-15-5D-00-00-09"})
    async with staged(backend, names=[NAMES[0]]) as scene:
        other = await scene.vm.network.add_namespace(OTHER_NAMESPACE)
        await scene.setup.setup(NAMESPACE)
        await scene.proxy.agents["pod1"].add_nic("other", backend.new_id())
        await scene.setup.teardown(NAMESPACE)
        assert scene.vm.network.adapters == ()
        await other.release()
        scene.check_nothing_is_set_up()


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [(NAMES, NotAttachedError, "removed from vm1 meanwhile"), ([*NAMES, "nowhere"], RPCError, "nowhere")],
)
async def test_what_came_as_others_removed_the_namespace_is_removed_with_the_set_up(
    names: list[str], error: type[Exception], said: str
) -> None:
    async with staged(names=names) as scene:
        gate = scene.run.backend.faults.hold(where=lambda call: "NetworkAdapters" in call.resource)
        failed: list[Exception] = []

        async def set_up() -> None:
            failed.append(await failing(scene.setup.setup, error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_up)
            await quiet()
            # The first adapter, which is being added, keeps the namespace for the second.
            assert len(gate.pending) == 1
            await scene.vm.network.remove_namespace(NAMESPACE)
            gate.close()
        assert said in str(failed[0])
        scene.check_nothing_is_set_up()


async def test_an_adapter_that_came_to_a_namespace_of_others_is_removed_with_the_set_up() -> None:
    async with staged(names=[NAMES[0]]) as scene:
        await scene.setup.setup(NAMESPACE)
        await scene.vm.network.remove_namespace(NAMESPACE)
        theirs = await scene.vm.network.add_namespace(NAMESPACE)
        await scene.proxy.agents["pod1"].add_nic(NAMES[1], scene.run.backend.new_id())
        # The proxy cannot have removed what has gone already, and forgets it.
        await failing(scene.setup.teardown, RPCError)
        await scene.setup.teardown(NAMESPACE)
        assert scene.vm.network.adapters == ()
        await theirs.release()
        scene.check_nothing_is_set_up()


async def test_the_agent_refuses_calls_for_other_containers() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        agent = scene.proxy.agents["pod1"]
        agent.container_id = "pod2"
        with pytest.raises(RPCError, match="serves the container 'pod1', not 'pod2'"):
            await agent.assign_pci(DEVICE)
        assert scene.vm.vpci.devices == ()
        await scene.setup.teardown(NAMESPACE)


# Every call that can fail.


CALLS = ["RegisterComputeAgent", "Setup", "UnregisterComputeAgent", "Teardown"]


@pytest.mark.parametrize("refused", ["RegisterComputeAgent", "Setup"])
async def test_a_set_up_that_the_proxy_refuses_is_rolled_back(refused: str) -> None:
    async with staged() as scene:

        async def refuse(method: str) -> None:
            if method == refused:
                raise RPCError(method, RPCCode.FAILED_PRECONDITION, "not now")

        scene.proxy.before = refuse
        error = await failing(scene.setup.setup, RPCError)
        assert str(error).endswith("FAILED_PRECONDITION: not now")
        assert not hasattr(error, "__notes__")
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}
        scene.proxy.before = nothing
        await scene.setup.setup(NAMESPACE)
        await scene.setup.teardown(NAMESPACE)


async def nothing(method: str) -> None:
    pass


@pytest.mark.parametrize("nth", range(1, 5))
async def test_a_set_up_of_which_the_host_or_guest_refuses_a_request_is_rolled_back(nth: int) -> None:
    async with staged() as scene:
        # Two adapters, each added on the host and then in the guest.
        rule = scene.run.backend.faults.refuse(E_FAIL, operation="modify", request_type="Add", nth=nth)
        error = await failing(scene.setup.setup, RPCError)
        assert "E_FAIL" in str(error)
        rule.remove()
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}


async def test_a_set_up_whose_roll_back_is_refused_says_so() -> None:
    async with staged() as scene:

        async def refuse(method: str) -> None:
            if method != "RegisterComputeAgent":
                raise RPCError(method, RPCCode.UNAVAILABLE, "gone")

        scene.proxy.before = refuse
        error = await failing(scene.setup.setup, RPCError)
        assert error.__notes__ == [
            "and rolling the set-up of the network back failed: NetworkConfigProxy.UnregisterComputeAgent: "
            "UNAVAILABLE: gone"
        ]
        # What is the VM's is rolled back all the same.
        scene.check_nothing_is_set_up()


async def test_what_a_roll_back_cannot_remove_is_an_orphan() -> None:
    async with staged(names=[NAMES[0], "vf1"]) as scene:
        scene.proxy.custom["vf1"] = CUSTOM
        faults = scene.run.backend.faults
        refused = faults.refuse(E_FAIL, operation="modify", resource="Network", request_type="Add", nth=2)
        left = faults.refuse(E_FAIL, operation="modify", to="host", request_type="Remove")
        error = await failing(scene.setup.setup, RPCError)
        assert [note.count("E_FAIL") for note in error.__notes__] == [2]
        refused.remove()
        left.remove()
        assert {orphan.ledger for orphan in scene.vm.orphans} == {
            "vpci.devices",
            "network.adapters",
        }
        check_at_rest(scene.run)
        for orphan in scene.vm.orphans:
            await orphan.release()
        scene.check_nothing_is_set_up()


@define
class LosingPipes:
    """Pipes whose connections to the proxy break instead of the answer of one call.

    :ivar lost: which of the connections, from 0; the answer to none by default.
    """

    backend: FakeBackend
    pipes: Any = field(init=False)
    dialled: int = 0
    lost: int = -1

    def __attrs_post_init__(self) -> None:
        self.pipes = self.backend.pipes

    @property
    def listened_at(self) -> tuple[str, ...]:
        return self.pipes.listened_at  # type: ignore[no-any-return]

    async def listen(self, path: str) -> Listener:
        return await self.pipes.listen(path)  # type: ignore[no-any-return]

    async def dial(self, path: str) -> ByteStream:
        stream = await self.pipes.dial(path)
        if path == PROXY:
            self.dialled += 1
            if self.dialled - 1 == self.lost:
                return Losing(stream)
        return stream  # type: ignore[no-any-return]


@define(eq=False)
class Losing:
    """A stream that breaks when the answer has come."""

    stream: Any

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await self.stream.receive(max_bytes)
        raise anyio.BrokenResourceError

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_set_up_of_which_an_answer_is_lost_is_rolled_back(lost: int) -> None:
    backend = host_backend()
    pipes = LosingPipes(backend)
    backend.pipes = pipes  # type: ignore[assignment]
    async with staged(backend) as scene:
        pipes.lost = lost
        error = await failing(scene.setup.setup, UnknownOutcomeError)
        assert "has ended" in str(error)
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}


@pytest.mark.parametrize("never", ["RegisterComputeAgent", "Setup"])
async def test_a_proxy_that_never_answers_is_bounded_and_the_set_up_rolled_back(never: str) -> None:
    async with staged(timeout_seconds=7) as scene:

        async def wait(method: str) -> None:
            if method == never:
                await anyio.sleep_forever()

        scene.proxy.before = wait
        started = anyio.current_time()
        error = await failing(scene.setup.setup, UnknownOutcomeError)
        assert round(anyio.current_time() - started) == 7
        assert "unknown" in str(error)
        scene.check_nothing_is_set_up()


@pytest.mark.parametrize("where", ["RegisterComputeAgent", "Setup"])
async def test_a_caller_who_is_cancelled_leaves_at_once_and_the_set_up_is_rolled_back(where: str) -> None:
    async with staged() as scene:
        begun = anyio.Event()

        async def wait(method: str) -> None:
            if method == where:
                begun.set()
                await anyio.sleep_forever()

        scene.proxy.before = wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.setup.setup, NAMESPACE)
            await begun.wait()
            tasks.cancel_scope.cancel()
        await scene.vm.settled()
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_caller_may_be_cancelled_at_any_time(turns: int) -> None:
    async with staged() as scene:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.setup.setup, NAMESPACE)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await scene.vm.settled()
        if scene.vm.network.namespaces:
            await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}


@pytest.mark.parametrize("where", ["RegisterComputeAgent", "Setup"])
async def test_the_vm_may_exit_during_the_set_up(where: str) -> None:
    async with staged() as scene:

        async def crash(method: str) -> None:
            if method == where:
                scene.run.backend.vms["vm1"].crash()
                await scene.vm.wait()

        scene.proxy.before = crash
        await failing(scene.setup.setup, VMExitedError)
        assert dict(scene.proxy.agents) == {}
        assert scene.run.backend.pipes.listened_at == (PROXY,)


@pytest.mark.parametrize("where", ["RegisterComputeAgent", "Setup", "Teardown", "UnregisterComputeAgent"])
@pytest.mark.parametrize("first", ["exit", "cancel"])
async def test_the_vm_may_exit_as_the_caller_of_the_set_up_leaves(where: str, first: str) -> None:
    async with staged() as scene:
        begun, gate = anyio.Event(), anyio.Event()

        async def wait(method: str) -> None:
            if method == "Setup" and where not in ("RegisterComputeAgent", "Setup"):
                raise RPCError(method, RPCCode.DEADLINE_EXCEEDED, "not now")
            if method == where and not begun.is_set():
                begun.set()
                await gate.wait()

        scene.proxy.before = wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.setup.setup, NAMESPACE)
            await begun.wait()
            if first == "exit":
                scene.run.backend.vms["vm1"].crash()
            tasks.cancel_scope.cancel()
            if first == "cancel":
                scene.run.backend.vms["vm1"].crash()
        await scene.vm.wait()
        assert dict(scene.proxy.agents) == {}
        assert scene.run.backend.pipes.listened_at == (PROXY,)
        gate.set()


async def test_a_proxy_that_is_not_there_is_said_and_nothing_is_changed() -> None:
    backend = host_backend()
    async with running_there(lcow(network_config_proxy=PROXY), backend) as run:
        setup = run.vm.network_setup()
        with pytest.raises(RPCError, match=r"cannot be reached: .*ERROR_FILE_NOT_FOUND.*; nothing was sent"):
            await setup.setup(NAMESPACE)
        assert run.vm.network.namespaces == ()
        assert backend.pipes.listened_at == ()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0" * 10])
async def test_a_proxy_that_answers_nonsense_has_an_unknown_outcome_and_nothing_is_changed(
    answer: bytes,
) -> None:
    backend = host_backend()
    listener = await backend.pipes.listen(PROXY)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            while True:
                stream = await listener.accept()
                await stream.receive()
                await stream.send(answer)
                await stream.aclose()

        tasks.start_soon(serve)
        async with running_there(lcow(network_config_proxy=PROXY), backend) as run:
            with pytest.raises(UnknownOutcomeError, match="whether it was done is unknown"):
                await run.vm.network_setup().setup(NAMESPACE)
            assert run.vm.network.namespaces == ()
            assert backend.pipes.listened_at == (PROXY,)
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def test_a_set_up_that_came_just_as_its_caller_left_is_undone_whatever_the_proxy_says() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)

        async def refuse(method: str) -> None:
            if method == "Teardown":
                raise RPCError(method, RPCCode.UNAVAILABLE, "not now")

        scene.proxy.before = refuse
        assert isinstance(scene.setup, ExternalNetworkSetup)
        assert scene.setup._up is not None
        scene.setup._abandon(scene.setup._up)
        await scene.vm.settled()
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}


async def test_a_container_id_without_a_form_is_refused_and_nothing_is_changed() -> None:
    async with staged() as scene:
        setup = scene.vm.network_setup("\ud800", agent_address=AGENT)
        error = await failing(setup.setup, OptionsError)
        assert not hasattr(error, "__notes__")
        scene.check_nothing_is_set_up()


# The tear-down.


@pytest.mark.parametrize("refused", ["Teardown", "UnregisterComputeAgent"])
async def test_a_tear_down_that_the_proxy_refuses_goes_on_when_it_is_asked_for_again(refused: str) -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)

        async def refuse(method: str) -> None:
            if method == refused:
                raise RPCError(method, RPCCode.UNAVAILABLE, "not now")

        scene.proxy.before = refuse
        await failing(scene.setup.teardown, RPCError)
        assert scene.vm.network.namespaces == (NAMESPACE,)
        scene.proxy.before = nothing
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()
        assert [call for call, _ in scene.proxy.calls[2:]].count("Teardown") == 1 + (refused == "Teardown")


@pytest.mark.parametrize("lost", [2, 3])
async def test_a_tear_down_of_which_an_answer_is_lost_goes_on_when_it_is_asked_for_again(lost: int) -> None:
    backend = host_backend()
    pipes = LosingPipes(backend)
    backend.pipes = pipes  # type: ignore[assignment]
    async with staged(backend) as scene:
        await scene.setup.setup(NAMESPACE)
        pipes.lost = lost
        await failing(scene.setup.teardown, UnknownOutcomeError)
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_a_tear_down_goes_on_for_a_caller_who_is_cancelled() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        begun, gate = anyio.Event(), anyio.Event()

        async def wait(method: str) -> None:
            begun.set()
            await gate.wait()

        scene.proxy.before = wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.setup.teardown, NAMESPACE)
            await begun.wait()
            tasks.cancel_scope.cancel()
        gate.set()
        await scene.vm.settled()
        scene.check_nothing_is_set_up()


async def test_a_proxy_of_hcsshim_0_8_16_knows_no_unregistering() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)

        async def refuse(method: str) -> None:
            if method == "UnregisterComputeAgent":
                raise RPCError(method, RPCCode.UNIMPLEMENTED, f"method {method}")

        scene.proxy.before = refuse
        await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()


async def test_closing_the_vm_stops_the_service_of_its_agent() -> None:
    backend = host_backend()
    async with FakeNetworkProxy(backend, PROXY, {"pod1": NAMES}) as proxy:
        async with running_there(lcow(network_config_proxy=PROXY), backend) as run:
            await run.vm.network_setup("pod1").setup(NAMESPACE)
            assert AGENT in backend.pipes.listened_at
            agent = proxy.agents["pod1"]
        assert backend.pipes.listened_at == (PROXY,)
        with pytest.raises(UVMError):
            await agent.assign_pci(DEVICE)
    assert backend.leftovers() == []


async def test_after_the_exit_only_the_proxy_is_asked() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        scene.run.backend.vms["vm1"].crash()
        await scene.vm.wait()
        scene.proxy.endpoints["pod1"] = []
        await scene.setup.teardown(NAMESPACE)
        assert [call for call, _ in scene.proxy.calls[2:]] == ["Teardown", "UnregisterComputeAgent"]
        assert dict(scene.proxy.agents) == {}


async def test_after_the_exit_the_agent_is_unregistered_also_if_the_proxy_needs_it_to_tear_down() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        scene.run.backend.vms["vm1"].crash()
        await scene.vm.wait()
        error = await failing(scene.setup.teardown, RPCError)
        assert "ConfigureNetworking" in str(error)
        assert dict(scene.proxy.agents) == {}
        await failing(scene.setup.teardown, NotAttachedError)


async def test_without_its_agent_a_network_is_torn_down_whatever_the_proxy_says() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        [listener] = [
            each for each in scene.run.backend.pipes._listeners.values() if each.service_id == AGENT
        ]
        listener.end(anyio.BrokenResourceError())
        await quiet()
        error = await failing(scene.setup.teardown, RPCError)
        assert "ConfigureNetworking" in str(error)
        scene.check_nothing_is_set_up()
        assert dict(scene.proxy.agents) == {}
        await scene.setup.setup(NAMESPACE)
        await scene.setup.teardown(NAMESPACE)


@pytest.mark.parametrize("turns", range(0, 200, 7))
async def test_what_the_proxy_may_have_set_up_is_torn_down_for_a_caller_who_is_cancelled(turns: int) -> None:
    async with staged() as scene:
        begun, gate = anyio.Event(), anyio.Event()

        async def wait(method: str) -> None:
            if method == "Setup":
                begun.set()
                await gate.wait()

        scene.proxy.before = wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.setup.setup, NAMESPACE)
            await begun.wait()
            gate.set()
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await scene.vm.settled()
        if scene.vm.network.namespaces:
            await scene.setup.teardown(NAMESPACE)
        scene.check_nothing_is_set_up()
        calls = [call for call, _ in scene.proxy.calls]
        assert calls == ["RegisterComputeAgent", "Setup", "Teardown", "UnregisterComputeAgent"]


# What is refused.


async def test_one_namespace_is_set_up_at_a_time() -> None:
    async with staged() as scene:
        await scene.setup.setup(NAMESPACE)
        await failing(scene.setup.setup, OptionsError)
        with pytest.raises(NotAttachedError):
            await scene.setup.teardown("99999999-0000-0000-0000-000000000000")
        assert [adapter.endpoint_name for adapter in scene.vm.network.adapters] == NAMES
        await scene.setup.teardown(NAMESPACE.upper())
        await failing(scene.setup.teardown, NotAttachedError)


async def test_a_namespace_that_is_not_there_is_refused() -> None:
    async with staged() as scene:
        with pytest.raises(HostError):
            await scene.setup.setup("99999999-0000-0000-0000-000000000000")
        assert scene.proxy.calls == []
        scene.check_nothing_is_set_up()


async def test_the_address_of_the_agent_must_be_free_and_a_pipe() -> None:
    async with staged() as scene:
        listener = await scene.run.backend.pipes.listen(AGENT)
        await failing(scene.setup.setup, HostError)
        await listener.aclose()
        scene.check_nothing_is_set_up()
        with pytest.raises(OptionsError, match="agent_address"):
            scene.vm.network_setup("pod1", agent_address=r"C:\agent")
        other = scene.vm.network_setup("pod1", agent_address=r"\\.\pipe\mine")
        await other.setup(NAMESPACE)
        assert scene.proxy.agents["pod1"].address == r"\\.\pipe\mine"
        await other.teardown(NAMESPACE)


async def test_a_vm_that_does_not_run_has_no_set_up() -> None:
    options = lcow(network_config_proxy=PROXY)
    async with uvm.UtilityVM.create(options, backend=host_backend()) as vm:
        with pytest.raises(uvm.VMStateError):
            vm.network_setup("pod1")


async def test_a_device_that_the_guest_refuses_leaves_nothing() -> None:
    async with staged(names=["vf1"]) as scene:
        scene.proxy.custom["vf1"] = CUSTOM
        scene.run.backend.faults.refuse(E_FAIL, operation="modify", resource="Network", request_type="Add")
        await failing(scene.setup.setup, RPCError)
        scene.check_nothing_is_set_up()


async def test_a_device_that_the_host_refuses_leaves_nothing() -> None:
    async with staged(names=["vf1"]) as scene:
        scene.proxy.custom["vf1"] = CUSTOM
        scene.run.backend.faults.refuse(E_FAIL, operation="modify", resource=PCI)
        await failing(scene.setup.setup, RPCError)
        scene.check_nothing_is_set_up()


# The internal kind.


async def test_without_a_proxy_each_endpoint_gets_an_adapter() -> None:
    async with running() as run:
        setup = run.vm.network_setup("ignored", agent_address="ignored")
        await setup.setup(NAMESPACE)
        assert [adapter.endpoint_name for adapter in run.vm.network.adapters] == NAMES
        await setup.teardown(NAMESPACE)
        assert (run.vm.network.namespaces, run.vm.network.adapters) == ((), ())
        await quiet()
        check_at_rest(run)
