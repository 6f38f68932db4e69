"""The client of a network configuration proxy."""

from __future__ import annotations

import anyio
from attrs import frozen

from uvm._ncproxy import messages
from uvm._ttrpc.client import connected
from uvm._ttrpc.protobuf import Message
from uvm.backend import ByteStream, HostPipes
from uvm.errors import HostError, RPCCode, RPCError


@frozen
class NetworkConfigProxy:
    """A proxy that listens at a pipe of the host. Each call has a connection of its own, as hcsshim's do.

    All calls raise RPCError if the proxy refused, or was not reached, and UnknownOutcomeError if its answer
    did not come, or could not be read.

    :ivar timeout_seconds: how long each call may take, with its connection.
    :ivar vm_id: the VM that it is asked for, for the log.
    """

    pipes: HostPipes
    path: str
    timeout_seconds: float
    vm_id: str

    async def register(self, agent_address: str, container_id: str) -> None:
        """Have the proxy dial a compute agent, and call it back for a container."""
        await self._call("RegisterComputeAgent", messages.RegisterComputeAgent(agent_address, container_id))

    async def unregister(self, container_id: str) -> None:
        """Have the proxy forget the agent of a container. Proxies of hcsshim v0.8.16 cannot, and keep it."""
        try:
            await self._call("UnregisterComputeAgent", messages.UnregisterComputeAgent(container_id))
        except RPCError as error:
            if error.code != RPCCode.UNIMPLEMENTED:
                raise

    async def configure(self, container_id: str, request_type: messages.RequestType) -> None:
        """Have the proxy set up, or tear down, the adapters of a container; it calls the agent meanwhile."""
        await self._call("ConfigureNetworking", messages.ConfigureNetworking(container_id, request_type))

    async def _call(self, method: str, request: Message) -> None:
        operation = f"{messages.NETWORK_CONFIG_PROXY}.{method}"
        deadline = anyio.current_time() + self.timeout_seconds
        stream = await self._dial(operation)
        left = deadline - anyio.current_time()
        name = f"the network configuration proxy at {self.path}"
        async with connected(stream, name, self.vm_id) as client:
            await client.call(
                messages.NETWORK_CONFIG_PROXY, method, request, messages.Empty, timeout_seconds=left
            )

    async def _dial(self, operation: str) -> ByteStream:
        stream: ByteStream | None = None
        why = f"it was busy for {self.timeout_seconds:g} s"
        cause: HostError | None = None
        with anyio.move_on_after(self.timeout_seconds):
            try:
                stream = await self.pipes.dial(self.path)
            except HostError as error:
                why, cause = str(error), error
        if stream is None:
            text = f"the network configuration proxy cannot be reached: {why}; nothing was sent"
            raise RPCError(operation, RPCCode.UNAVAILABLE, text) from cause
        return stream
