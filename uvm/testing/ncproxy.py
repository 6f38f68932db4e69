r"""A network configuration proxy for tests: it answers and calls back as hcsshim's ncproxy does.

It works on any backend whose host has pipes::

    async with FakeNetworkProxy(backend, r"\\.\pipe\ncproxy", {"pod1": ["pod1_eth0"]}):
        ...

Source: hcsshim ``cmd/ncproxy/ncproxy.go``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Self, TypeVar

import anyio
import anyio.abc

from uvm._async import BareTaskGroup
from uvm._ncproxy.messages import (
    COMPUTE_AGENT,
    NETWORK_CONFIG_PROXY,
    AddNIC,
    AssignedPCI,
    AssignPCI,
    ConfigureNetworking,
    DeleteNIC,
    Empty,
    Endpoint,
    IovSettings,
    ModifyNIC,
    RegisterComputeAgent,
    RemovePCI,
    RequestType,
    UnregisterComputeAgent,
    endpoint_field,
)
from uvm._repr import showing
from uvm._ttrpc.client import Client, connected
from uvm._ttrpc.protobuf import Message
from uvm._ttrpc.server import Method, Services, serve
from uvm.backend import Backend
from uvm.errors import HostError, RPCCode, RPCError
from uvm.schema.json import from_json
from uvm.schema.network import HostComputeEndpoint, ProxyEndpoint

__all__ = ["Agent", "FakeNetworkProxy"]

M = TypeVar("M", bound=Message)

_SECONDS = 60.0


@showing("container_id", "address")
class Agent:
    """A compute agent that is registered, as the proxy calls it. The names are those of endpoints.

    :ivar container_id: the container that it is registered for.
    :ivar address: the pipe at which it is served.
    """

    def __init__(self, proxy: FakeNetworkProxy, container_id: str, address: str) -> None:
        self.container_id: str = container_id
        self.address: str = address
        self._proxy = proxy
        self._client: Client | None = None
        self._left = anyio.Event()

    async def add_nic(self, name: str, nic_id: str) -> None:
        """Add an adapter; the device of an endpoint of the proxy is assigned first, under the same id."""
        endpoint = await self._proxy._endpoint(name)
        if isinstance(endpoint, ProxyEndpoint):
            details = endpoint.settings.device_details if endpoint.settings else None
            device = details.pci_device_details if details else None
            if device is None:
                raise RPCError("AddNIC", RPCCode.INVALID_ARGUMENT, "received empty field in request")
            await self.assign_pci(device.device_id, device.virtual_function_index, nic_id)
        await self._call("AddNIC", AddNIC(self.container_id, nic_id, endpoint_field(endpoint)), Empty)

    async def modify_nic(self, name: str, nic_id: str, weight: int, queues: int, moderation: int) -> None:
        """Change the SR-IOV settings of an adapter."""
        endpoint = await self._proxy._endpoint(name)
        if isinstance(endpoint, ProxyEndpoint):
            raise RPCError("ModifyNIC", RPCCode.UNIMPLEMENTED, f"cannot modify custom endpoints: {name}")
        settings = IovSettings(weight, queues, moderation)
        await self._call("ModifyNIC", ModifyNIC(nic_id, endpoint_field(endpoint), settings), Empty)

    async def delete_nic(self, name: str, nic_id: str) -> None:
        """Remove an adapter; the device of an endpoint of the proxy stays assigned."""
        field = endpoint_field(await self._proxy._endpoint(name))
        await self._call("DeleteNIC", DeleteNIC(self.container_id, nic_id, field), Empty)

    async def assign_pci(self, device_id: str, function: int = 0, nic_id: str = "") -> str:
        """Assign a PCI device; return its GUID on the VM's VMBus."""
        request = AssignPCI(self.container_id, device_id, function, nic_id)
        return (await self._call("AssignPCI", request, AssignedPCI)).id

    async def remove_pci(self, device_id: str, function: int = 0) -> None:
        """Remove an assigned PCI device."""
        await self._call("RemovePCI", RemovePCI(self.container_id, device_id, function), Empty)

    async def _call(self, method: str, request: Message, response: type[M]) -> M:
        assert self._client is not None
        return await self._client.call(COMPUTE_AGENT, method, request, response, timeout_seconds=_SECONDS)

    async def _stay_connected(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Hold a connection to the agent until it is left: the task of the proxy."""
        stream = await self._proxy._backend.pipes.dial(self.address)
        async with connected(stream, f"the compute agent at {self.address}") as self._client:
            task_status.started()
            await self._left.wait()


@showing("agents", "calls")
class FakeNetworkProxy:
    """A network configuration proxy at a pipe of a backend's host; it is served within ``async with``.

    :param path: the pipe.
    :param endpoints: for each container, the names of the endpoints that it gets adapters for.
    :ivar endpoints: these, which may change.
    :ivar custom: the endpoints that only the proxy knows, by name; all others are HCN's.
    :ivar calls: the calls that were made, in order, as method and container.
    :ivar before: awaited with the name of the method before each call is carried out; what it raises is the
        answer.
    """

    def __init__(
        self, backend: Backend, path: str, endpoints: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        self.endpoints: dict[str, list[str]] = {key: [*names] for key, names in (endpoints or {}).items()}
        self.custom: dict[str, ProxyEndpoint] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str], Awaitable[None]] = _nothing
        self._backend = backend
        self._path = path
        self._agents: dict[str, Agent] = {}
        self._nics: dict[tuple[str, str], str] = {}
        self._stack = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup | None = None

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The agents that are registered, by container."""
        return MappingProxyType(self._agents)

    async def __aenter__(self) -> Self:
        listener = await self._backend.pipes.listen(self._path)
        self._tasks = await self._stack.enter_async_context(BareTaskGroup(self._end))

        async def served() -> None:
            await serve(listener, self._services(), name="the fake proxy", call_seconds=_SECONDS)

        self._tasks.start_soon(served)
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._stack.__aexit__(*exc_info)

    async def _end(self, failure: BaseException | None) -> BaseException | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        return failure

    def _services(self) -> Services:
        methods: dict[str, Method[Any]] = {
            "RegisterComputeAgent": Method(RegisterComputeAgent, self._register),
            "UnregisterComputeAgent": Method(UnregisterComputeAgent, self._unregister),
            "ConfigureNetworking": Method(ConfigureNetworking, self._configure),
        }
        return {NETWORK_CONFIG_PROXY: methods}

    async def _begin(self, method: str, container_id: str) -> None:
        self.calls.append((method, container_id))
        await self.before(method)

    async def _register(self, request: RegisterComputeAgent) -> Message:
        await self._begin("RegisterComputeAgent", request.container_id)
        assert self._tasks is not None
        agent = Agent(self, request.container_id, request.agent_address)
        # One that is registered again may have another address.
        self._forget(request.container_id)
        try:
            await self._tasks.start(agent._stay_connected)
        except HostError as error:
            text = f"failed to connect to compute agent service: {error}"
            raise RPCError("RegisterComputeAgent", RPCCode.UNKNOWN, text) from error
        self._agents[request.container_id] = agent
        return Empty()

    async def _unregister(self, request: UnregisterComputeAgent) -> Message:
        await self._begin("UnregisterComputeAgent", request.container_id)
        self._forget(request.container_id)
        return Empty()

    def _forget(self, container_id: str) -> None:
        agent = self._agents.pop(container_id, None)
        if agent is not None:
            agent._left.set()

    async def _configure(self, request: ConfigureNetworking) -> Message:
        is_setup = request.request_type == RequestType.SETUP
        await self._begin("Setup" if is_setup else "Teardown", request.container_id)
        if not request.container_id:
            raise RPCError("ConfigureNetworking", RPCCode.INVALID_ARGUMENT, "ContainerID is empty")
        if request.container_id not in self.endpoints:
            text = "No NodeNetworkService client registered"
            raise RPCError("ConfigureNetworking", RPCCode.FAILED_PRECONDITION, text)
        agent = self._agents.get(request.container_id)
        if agent is None:
            text = f"No shim registered for namespace `{request.container_id}`"
            raise RPCError("ConfigureNetworking", RPCCode.FAILED_PRECONDITION, text)
        for name in self.endpoints[request.container_id]:
            await (self._add(agent, name) if is_setup else self._remove(agent, name))
        return Empty()

    async def _add(self, agent: Agent, name: str) -> None:
        nic_id = self._backend.new_id()
        await agent.add_nic(name, nic_id)
        self._nics[agent.container_id, name] = nic_id

    async def _remove(self, agent: Agent, name: str) -> None:
        nic_id = self._nics.pop((agent.container_id, name), "")
        if nic_id:
            await agent.delete_nic(name, nic_id)

    async def _endpoint(self, name: str) -> Endpoint:
        if name in self.custom:
            return self.custom[name]
        try:
            return from_json(HostComputeEndpoint, await self._backend.network.endpoint(name))
        except HostError as error:
            text = f"no endpoint with name `{name}` found"
            raise RPCError("endpoint", RPCCode.NOT_FOUND, text) from error


async def _nothing(method: str) -> None:
    pass
