"""Guest start-up: the channels of the boot, the connection, and the first requests.

How it works
------------

The host listens to what a guest dials while it boots before the VM is started, so that no dial is missed::

    host                                             guest
      listen: entropy, output, compute service
      start the system  --------------------------->  boots
      512 random bytes  <-- dials the entropy port     Linux: seeds its kernel
      output handler    <-- dials the output port      Linux: its log; Windows: once asked to forward it
      negotiate         <-- dials the service port
      host create, start -------------------------->  Windows, unless the VM is a clone
      Hyper-V addresses --------------------------->  Windows
      security policy ----------------------------->  confidential VMs
      log sources, start of forwarding ------------>  Windows

Source: hcsshim internal/uvm/start.go.
"""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.abc
from attrs import define, field, frozen

from uvm._buses.context import Context
from uvm._gcs.boot import forward_output, give_entropy
from uvm._gcs.connection import GuestConnection
from uvm._guest.clock import GuestClock
from uvm._guest.logs import log_to
from uvm._guest.stdio import close_quietly
from uvm._guest.timeouts import GuestTimeouts
from uvm._log import Log
from uvm._vm.creation import security_policy_request
from uvm._wire import ports
from uvm.backend import ByteStream, Guest, Listener
from uvm.errors import UVMError
from uvm.options import LCOWOptions
from uvm.schema.guest import (
    RESOURCE_HV_SOCKET,
    RESOURCE_SUSPENSION,
    HvSocketAddress,
    LCOWResumption,
    SystemTime,
    TimeZoneInformation,
)
from uvm.schema.json import from_json
from uvm.schema.requests import REMOVE, UPDATE, ModificationRequest

if TYPE_CHECKING:
    from uvm.options import WCOWOptions

_log = Log("uvm")

#: Reads the output of a guest until its end.
OutputHandler: TypeAlias = Callable[[ByteStream], Awaitable[None]]

#: In the tasks of an output handler: the start-up of the guest whose output they read.
_reading: ContextVar[GuestStartup | None] = ContextVar("uvm_reading_output_of", default=None)

#: hcsshim internal/uvm/timezone.go.
_UTC = TimeZoneInformation(
    standard_name="Coordinated Universal Time",
    daylight_name="Coordinated Universal Time",
    standard_date=SystemTime(),
    daylight_date=SystemTime(),
)


@frozen(eq=False, repr=False)
class _Listening:
    """A listener of a boot, which is noted there while it is open."""

    _listener: Listener
    _noted: dict[_Listening, None]

    async def accept(self) -> ByteStream:
        """Wait for the next connection."""
        return await self._listener.accept()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()
        # Only now: if this call is cancelled, the next one closes it.
        self._noted.pop(self, None)


@define(eq=False, repr=False)
class GuestStartup:
    """The start-up of the guest of one VM, until it takes requests.

    :ivar output: reads the guest's output; by default each entry becomes a record of :mod:`logging`.
    :ivar channels: runs the tasks that serve the channels of the boot. They outlive the VM by a moment: its
        last output is still to be read.
    :ivar clock: measures every limit on what the guest does.
    """

    context: Context
    timeouts: GuestTimeouts
    output: OutputHandler | None
    channels: anyio.abc.TaskGroup | None = None
    clock: GuestClock = field(factory=GuestClock, init=False)
    _service: Listener | None = field(default=None, init=False)
    _listening: dict[_Listening, None] = field(factory=dict, init=False)

    async def listen(self) -> None:
        """Listen to what the guest dials, and serve the channels of the boot."""
        options = self.context.options
        if isinstance(options, LCOWOptions):
            service = ports.vsock_service_id(ports.LINUX_ENTROPY_PORT)
            await self._serve(service, partial(give_entropy, name=self.context.vm_id))
            if options.forward_stdout or options.forward_stderr:
                await self._serve(ports.vsock_service_id(ports.LINUX_LOG_PORT), self._forwards(again=False))
        elif options.log_forwarding:
            # A Windows guest dials again whenever its log service is restarted.
            await self._serve(ports.WINDOWS_LOG_SERVICE, self._forwards(again=True))
        if self._is_ours:
            self._service = await self._listen(_service_id(options))

    async def _serve(self, service_id: str, serve: Callable[[Listener], Coroutine[Any, Any, None]]) -> None:
        """Listen, and have a task serve what dials."""
        listener = await self._listen(service_id)
        assert self.channels is not None
        self.channels.start_soon(serve, listener)

    def _forwards(self, *, again: bool) -> Callable[[Listener], Coroutine[Any, Any, None]]:
        """Return what forwards the output of the guest to its handler."""
        name, handler = self.context.vm_id, self.output
        if handler is None:
            return partial(forward_output, handler=log_to(name), again=again, name=name, keeps_up=True)
        return partial(forward_output, handler=partial(self._read, handler), again=again, name=name)

    async def _read(self, handler: OutputHandler, stream: ByteStream) -> None:
        _reading.set(self)
        await handler(stream)

    @property
    def in_output_handler(self) -> bool:
        """True in the tasks of the handler of this guest's output."""
        return _reading.get() is self

    async def meet(self) -> Guest:
        """Wait for the guest of the started system, and send it the first requests.

        :raises BridgeClosedError: the guest hung up.
        :raises NotSupportedError: the guest speaks another version of the protocol.
        """
        return await (self._connect() if self._is_ours else self._relayed())

    async def _relayed(self) -> Guest:
        """Reach the guest through HCS, or not at all."""
        from uvm._hcsguest.access import RelayAccess
        from uvm._hcsguest.guest import NoGuest, RelayGuest

        context = self.context
        if not _uses_guest_connection(context.options):
            return NoGuest(context.vm_id)
        assert context.link.tasks is not None
        access = RelayAccess(
            name=context.vm_id,
            timeouts=self.timeouts,
            os=context.plan.os,
            clock=self.clock,
            system=context.link.system,
            create=context.backend.create,
            tasks=context.link.tasks,
            owner=context.options.owner,
            call=context.link.call_guest,
            states=context.link.states,
            processors=context.plan.processors,
            build=context.host.build,
        )
        guest = await RelayGuest.connect(access)
        await self._set_policy(guest)
        return guest

    async def stop_listening(self) -> None:
        """Stop listening to the guest."""
        while self._listening:
            await next(reversed(self._listening)).aclose()

    @property
    def _is_ours(self) -> bool:
        options = self.context.options
        return options.external_guest_connection and _uses_guest_connection(options)

    async def _listen(self, service_id: str) -> Listener:
        listener = _Listening(await self.context.link.system.listen(service_id), self._listening)
        self._listening[listener] = None
        return listener

    async def _connect(self) -> GuestConnection:
        link = self.context.link
        assert link.tasks is not None
        assert self._service is not None
        redials = self.timeouts.redial_seconds > 0

        connection = GuestConnection(
            link.listen,
            name=link.vm_id,
            timeouts=self.timeouts,
            clock=self.clock,
            redial=self._service.accept if redials else None,
            call=link.call_guest,
            states=link.states,
            processors=self.context.plan.processors,
            build=self.context.host.build,
        )
        stream = await self._service.accept()
        try:
            if not redials:
                # A later dial must not be mistaken for the guest.
                await self._service.aclose()
                self._service = None
            await link.tasks.start(connection.serve, stream)
            await self._introduce(connection)
        except BaseException:
            connection.close()
            # The task that serves it closes the stream too, but may never have begun.
            await close_quietly(stream, link.vm_id)
            raise
        return connection

    async def _introduce(self, connection: GuestConnection) -> None:
        """Send the first requests, most of them to Windows guests only; the guest of a clone has started."""
        context, options = self.context, self.context.options
        if isinstance(options, LCOWOptions):
            if options.clone_of is None:
                await connection.start_guest()
            else:
                await connection.modify(_resumption())
            await self._set_policy(connection)
            return
        if options.clone_of is None:
            await connection.start_guest(self._time_zone(options))
        # HCS does this itself if the connection is its own (uvm/start.go).
        addresses = HvSocketAddress(
            local_address=context.link.system.runtime_id, parent_address=ports.PARENT_ADDRESS
        )
        request = ModificationRequest(
            request_type=UPDATE, resource_type=RESOURCE_HV_SOCKET, settings=addresses
        )
        await connection.modify(request)
        await self._set_policy(connection)
        await self._forward_log(connection, options)

    def _time_zone(self, options: WCOWOptions) -> TimeZoneInformation:
        host_zone = self.context.host.time_zone if options.inherit_time_zone else None
        return _UTC if host_zone is None else from_json(TimeZoneInformation, dict(host_zone))

    async def _set_policy(self, guest: Guest) -> None:
        context = self.context
        policy = await security_policy_request(context.options, context.plan, context.backend, context.host)
        if policy is not None:
            await guest.modify(policy)

    async def _forward_log(self, connection: GuestConnection, options: WCOWOptions) -> None:
        """Have the guest forward its log; a failure is raised only if a policy may have forbidden it."""
        if not options.log_forwarding or not connection.features.log_forwarding:
            return
        from uvm._vm.logforwarding import LogForwarding

        forwarding = LogForwarding(connection, options)
        try:
            await forwarding.set_sources()
            await forwarding.start()
        except UVMError as error:
            # Without a connection the start cannot go on.
            if options.security_policy_enabled or connection.closed:
                raise
            _log.warning(self.context.vm_id, "the guest does not forward its log: %s", error)


def _resumption() -> ModificationRequest:
    """Return the request that resumes what runs in the Linux guest of a clone."""
    settings = LCOWResumption(
        entropy=b64encode(os.urandom(ports.ENTROPY_BYTES)).decode(), unix_nanoseconds=time.time_ns()
    )
    return ModificationRequest(request_type=REMOVE, resource_type=RESOURCE_SUSPENSION, settings=settings)


def _uses_guest_connection(options: LCOWOptions | WCOWOptions) -> bool:
    return not isinstance(options, LCOWOptions) or options.use_guest_connection


def _service_id(options: LCOWOptions | WCOWOptions) -> str:
    if isinstance(options, LCOWOptions):
        return ports.vsock_service_id(ports.LINUX_GCS_PORT)
    return ports.WINDOWS_SIDECAR_SERVICE if options.security_policy_enabled else ports.WINDOWS_GCS_SERVICE
