"""The network of a VM, set up by a network configuration proxy.

How it works
------------

::

    setup                                        teardown
      put the VM into the namespace                ask the proxy to tear down; it calls the agent
      serve the compute agent                      unregister the agent
      register the agent with the proxy            stop serving
      ask the proxy to set up; it calls the agent  remove what the agent added, and the namespace

A step of the set-up that fails rolls back those before it, and itself if its outcome is unknown; a tear-down
that fails goes on, when it is asked for again, with the step that failed. Tasks of the VM do both, and serve
the agent, until the VM exits.

Source: hcsshim ``internal/uvm/network.go`` (``externalNetworkSetup``), which rolls nothing back, serves for
ever, and leaves the VM in the namespace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from attrs import define, field

from uvm._async import Flag
from uvm._buses.context import Context
from uvm._buses.lease import Releasable
from uvm._buses.link import Link
from uvm._buses.network import NamespaceLease, NetworkBus
from uvm._buses.vpci import VPCIBus
from uvm._log import Log
from uvm._names import guid_key
from uvm._ncproxy.agent import ComputeAgent
from uvm._ncproxy.messages import RequestType
from uvm._ncproxy.proxy import NetworkConfigProxy
from uvm._ncproxy.vm import VMOfAgent
from uvm._repr import brief
from uvm._ttrpc.server import serve
from uvm.backend import Listener
from uvm.errors import (
    NotAttachedError,
    OptionsError,
    RPCError,
    UVMError,
    VMExitedError,
    together,
)

_log = Log("uvm")


@define(eq=False)
class _SetUp:
    """What there is of a set-up, and has to be torn down.

    :ivar namespace_id: the namespace, by the host's id.
    :ivar owed: what the proxy is asked to undo it, the last first.
    :ivar serving: ends the service of the agent.
    :ivar served: that has ended; None before it begins.
    """

    vm: VMOfAgent
    namespace_id: str
    namespace: NamespaceLease | None = None
    owed: list[Callable[[], Awaitable[None]]] = field(factory=list)
    serving: anyio.CancelScope = field(factory=anyio.CancelScope)
    served: Flag | None = None

    @property
    def is_served_no_more(self) -> bool:
        """Whether the service of the agent has ended."""
        return self.served is not None and self.served.is_set()

    async def ask(self, call: Callable[[], Awaitable[None]], undo: Callable[[], Awaitable[None]]) -> None:
        """Make a call of the proxy that has to be undone, unless it is refused."""
        self.owed.append(undo)
        try:
            await call()
        except (RPCError, OptionsError):
            self.owed.pop()
            raise

    async def undo(self, *, all_of_it: bool) -> list[Exception]:
        """Undo what there is of it, the last first, and return what failed.

        :param all_of_it: go on after an error.
        """
        errors: list[Exception] = []
        for call in (*reversed(self.owed), self.remove):
            error = await _error_of(call)
            if error is None and call in self.owed:
                self.owed.remove(call)
            errors += [error] if error else []
            if errors and not all_of_it:
                break
        return errors

    async def remove(self) -> None:
        """Stop serving, and remove what the agent added and the namespace; again, what is left of it.

        A VM that has exited has none of it.
        """
        self.serving.cancel()
        if self.served is not None:
            await self.served.wait()
        # The namespace first: an adapter in the guest alone, which goes with it, is of a device.
        errors = [error for each in self._left() if (error := await _error_of(each.release))]
        if errors:
            raise together(f"removing the network {self.namespace_id}", errors)

    def leave(self) -> None:
        """Note that what stays of it has no caller: it is listed among the orphans of the VM."""
        for lease in self._left():
            lease._leave()

    def _left(self) -> list[Releasable]:
        if self.namespace is None or self.namespace.released:
            # Others may have removed it, while adapters were being added that keep it.
            return [*self.vm.outside("")]
        return [self.namespace, *self.vm.outside(self.namespace.id)]


async def _error_of(call: Callable[[], Awaitable[None]]) -> Exception | None:
    """Return what a call fails with; a VM that has exited has nothing that could be removed."""
    try:
        await call()
    except VMExitedError:
        return None
    except Exception as error:
        return error
    return None


@define(eq=False, repr=False)
class ExternalNetworkSetup:
    """Has a network configuration proxy set up the network of a VM, one namespace at a time.

    :ivar proxy: the proxy.
    :ivar agent_address: the pipe at which the compute agent of the VM is served meanwhile.
    :ivar container_id: the id under which the proxy knows the VM.
    """

    proxy: NetworkConfigProxy
    agent_address: str
    container_id: str
    _context: Context
    _network: NetworkBus
    _vpci: VPCIBus
    _up: _SetUp | None = field(default=None, init=False)
    _turn: anyio.Lock = field(factory=anyio.Lock, init=False)

    def __repr__(self) -> str:
        up = "nothing" if self._up is None else self._up.namespace_id
        return brief(
            f"<ExternalNetworkSetup of {self._context.vm_id}: {up} is set up by {self.proxy.path}"
            f" as {self.container_id}>"
        )

    @property
    def _link(self) -> Link:
        return self._context.link

    async def setup(self, namespace_id: str) -> None:
        """Put the VM into a namespace, and have the proxy add its adapters.

        If that fails, or the caller is cancelled, all of it is rolled back.

        :raises OptionsError: a namespace is set up already, or the VM is in this one.
        :raises NotAttachedError: the namespace was removed meanwhile; its adapters are removed as well.
        :raises RPCError: the proxy refused, or was not reached.
        :raises UnknownOutcomeError: the proxy did not answer.
        :raises HostError: there is no such namespace, or the address of the agent is in use.
        """
        guid_key(namespace_id)
        self._link.check_running()
        agent, leaving = VMOfAgent(self._context, self._network, self._vpci), anyio.CancelScope()
        up = _SetUp(agent, namespace_id)
        made = partial(self._set_up, up, leaving)
        try:
            await self._link.carry_out("set up network", made, lambda _: self._abandon(up))
        except BaseException as failure:
            leaving.cancel()
            if isinstance(failure, VMExitedError):
                # The tasks of the VM have ended.
                await self._roll_back(failure, up)
            raise

    async def teardown(self, namespace_id: str) -> None:
        """Have the proxy remove the adapters, and take the VM out of the namespace.

        A caller who is cancelled leaves at once, and it goes on. If it fails, it may be asked for again. Once
        the VM has exited, or serves its agent no more, the proxy may refuse to tear down: all else is done
        all the same, and it is torn down.

        :raises NotAttachedError: the namespace is not set up.
        :raises RPCError: the proxy refused, or was not reached.
        :raises UnknownOutcomeError: the proxy did not answer.
        """
        self._link.check_here()
        if self._up is None or guid_key(self._up.namespace_id) != guid_key(namespace_id):
            raise NotAttachedError(f"{self._context.vm_id}: the network {namespace_id} is not set up")
        try:
            await self._link.carry_out("tear down network", partial(self._tear_down, self._up))
        except VMExitedError:
            await self._tear_down(self._up)

    async def _set_up(self, up: _SetUp, leaving: anyio.CancelScope) -> None:
        async with self._turn:
            if self._up is not None:
                raise OptionsError(
                    f"{self._context.vm_id}: the network {self._up.namespace_id} is set up, and stays so;"
                    " tear it down first"
                )
            await self._though_it_exits(
                lambda: self._carry_out(up, leaving),
                lambda: self._roll_back(UVMError("the VM exits"), up),
            )

    async def _though_it_exits(
        self, call: Callable[[], Awaitable[None]], undo: Callable[[], Awaitable[None]]
    ) -> None:
        """Make a call; if the VM exits meanwhile, undo it within its grace: the proxy does not know of it."""
        try:
            await call()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(self._link.exit_grace_seconds, shield=True):
                await undo()
            raise

    async def _carry_out(self, up: _SetUp, leaving: anyio.CancelScope) -> None:
        try:
            with leaving:
                await self._carry_through(up)
                return
        except Exception as failure:
            await self._roll_back(failure, up)
            raise
        # Its caller has left.
        cancelled = UVMError(f"{self._context.vm_id}: the set-up of {up.namespace_id} was cancelled")
        await self._roll_back(cancelled, up)
        if hasattr(cancelled, "__notes__"):
            raise cancelled

    async def _carry_through(self, up: _SetUp) -> None:
        up.namespace = await self._network.add_namespace(up.namespace_id)
        await self._start_serving(up)
        await self._ask_proxy(up)
        self._link.check_running()
        if up.namespace.released:
            raise NotAttachedError(f"{up.namespace_id} was removed from {self._context.vm_id} meanwhile")
        self._up = up

    async def _start_serving(self, up: _SetUp) -> None:
        listener = await self._context.backend.pipes.listen(self.agent_address)
        assert self._link.tasks is not None
        up.served = Flag()
        self._link.tasks.start_soon(self._serve, listener, up, up.served)

    async def _serve(self, listener: Listener, up: _SetUp, served: Flag) -> None:
        """Serve the agent until that is ended, or the VM exits."""
        vm_id, seconds = self._context.vm_id, self.proxy.timeout_seconds
        services = ComputeAgent(self.container_id, up.vm).services
        try:
            with up.serving:
                await serve(listener, services, name="the compute agent", call_seconds=seconds, vm_id=vm_id)
        except Exception as error:
            _log.error(vm_id, "its compute agent is served no more: %r", error)
        finally:
            served.set()

    async def _ask_proxy(self, up: _SetUp) -> None:
        proxy, container_id = self.proxy, self.container_id
        unregister = partial(proxy.unregister, container_id)
        await up.ask(partial(proxy.register, self.agent_address, container_id), unregister)
        configure = partial(proxy.configure, container_id)
        await up.ask(partial(configure, RequestType.SETUP), partial(configure, RequestType.TEARDOWN))

    async def _roll_back(self, failure: BaseException, up: _SetUp) -> None:
        """Undo all of a set-up; what fails is noted, and stays without a caller."""
        for error in await up.undo(all_of_it=True):
            failure.add_note(f"and rolling the set-up of the network back failed: {error}")
        up.leave()

    def _abandon(self, up: _SetUp) -> None:
        """Tear down what was set up just as its caller was cancelled."""
        tear_down = partial(self._tear_down_quietly, up)
        self._link.start_soon(partial(self._though_it_exits, tear_down, tear_down))

    async def _tear_down_quietly(self, up: _SetUp) -> None:
        try:
            await self._tear_down(up, whatever_fails=True)
        except Exception as error:
            _log.warning(self._context.vm_id, "tearing its network down: %s", error)

    async def _tear_down(self, up: _SetUp, *, whatever_fails: bool = False) -> None:
        """Tear a set-up down; what fails is raised.

        :param whatever_fails: all of it, once, since no caller will ask for it again.
        """
        async with self._turn:
            if up is not self._up:
                return
            # Without its agent, which ends with the VM, the proxy may refuse for ever.
            unserved = bool(up.owed) and (self._link.exited.is_set() or up.is_served_no_more)
            once = whatever_fails or unserved
            errors = await up.undo(all_of_it=once)
            if once:
                up.leave()
            if once or not errors:
                self._up = None
            if errors:
                raise together(f"tearing the network {up.namespace_id} down", errors)
