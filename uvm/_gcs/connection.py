"""The connection to the compute service of a guest.

How it works
------------

The states of a connection::

    NEW -- serve --> GREETING -- the guest speaks our version --> CONNECTED -- close, or the end --> CLOSED
                        |                                          |     ^
                        | it does not, or breaks the protocol      |     | it dialled again, and was greeted
                        v                                          v     |
                      CLOSED <-- it did not dial in time ------ WAITING for it to dial again

One task of the owner, :meth:`GuestConnection.serve`, serves it. Where the owner can be dialled again
(``redial``) and says for how long to wait (``GuestTimeouts.redial_seconds``), a connection that broke is
resumed on the next one: what was not sent yet is sent then, waits for processes go on, and whatever else was
asked and not answered ends with :class:`~uvm.errors.UnknownOutcomeError`.

No caller is bound to the guest: one who is cancelled leaves at once, and what was begun for it is finished or
undone by the tasks of the connection (:mod:`uvm._guest.starts`).

Source: hcsshim internal/gcs/guestconnection.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel

from uvm._async import Flag, opens
from uvm._checks import checked, instance, optional, text
from uvm._gcs.bridge import Bridge
from uvm._gcs.containers import Containers
from uvm._gcs.link import GuestLink
from uvm._gcs.process import start_process
from uvm._guest.access import Caller, GuestFeatures, as_it_is
from uvm._guest.clock import GuestClock, GuestLimit
from uvm._guest.container import Container
from uvm._guest.process import Launch, Process
from uvm._guest.run import GuestHost
from uvm._guest.specs import check_container_id, check_writable
from uvm._guest.states import ContainerStates
from uvm._guest.timeouts import GuestTimeouts
from uvm._log import Log
from uvm._names import GuestOS
from uvm._wire.frames import Procedure
from uvm.backend import JSON, ByteStream, Listener
from uvm.errors import BridgeClosedError, GuestError, NotSupportedError, VMStateError, WireError
from uvm.hresult import HResult
from uvm.schema import gcs
from uvm.schema.container import HostedSystem
from uvm.schema.guest import TimeZoneInformation
from uvm.schema.requests import ModificationRequest
from uvm.schema.secrets import printable

_log = Log("uvm.gcs")

_DEFAULT_TIMEOUTS: Final = GuestTimeouts()


class GuestConnection(GuestHost):
    """The compute service of one guest (:class:`~uvm.backend.Guest`). It belongs to one event loop.

    :param listen: listens for the guest to dial a service id (:meth:`uvm.backend.System.listen`).
    :param name: whose guest it is, for messages.
    :param redial: waits until the guest has dialled again; without it, a connection that broke is closed.
    :param clock: measures the limits on what the guest does; its owner pauses it with the VM.
    :param call: awaits each call of a process or a container, and says what its errors mean.
    :param states: the states of its containers that have ended.
    :param processors: how many its VM has; 0 if that is not known.
    :param build: the build of Windows on the host; 0 if that is not known.
    :param taken_ports: returns the ports that are not to be used for streams: what connects there is not new.
    """

    def __init__(
        self,
        listen: Callable[[str], Awaitable[Listener]],
        *,
        name: str,
        timeouts: GuestTimeouts = _DEFAULT_TIMEOUTS,
        redial: Callable[[], Awaitable[ByteStream]] | None = None,
        clock: GuestClock | None = None,
        call: Caller = as_it_is,
        states: ContainerStates | None = None,
        processors: int = 0,
        build: int = 0,
        taken_ports: Callable[[], Collection[int]] = tuple,
    ) -> None:
        clock = clock or GuestClock()
        bridge = Bridge(name, notify=self._notify, rpc_timeout_seconds=timeouts.rpc_seconds, clock=clock)
        self._guest = self._link = GuestLink(
            name=name,
            timeouts=timeouts,
            clock=clock,
            bridge=bridge,
            listen=listen,
            taken_ports=taken_ports,
            call=call,
            states=states or ContainerStates(name=name),
            processors=processors,
            build=build,
        )
        self._bridge = bridge
        self._redial = redial
        self._agreed: gcs.GcsCapabilities | None = None
        self._closed = Flag()
        # Set while it is not served.
        self._idle = Flag()
        self._idle.set()
        self._task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
        self._redialling: GuestLimit | None = None
        # Until when a guest that went has to be back and greeted; one that only dials would be waited for
        # without end.
        self._return_by: float | None = None
        # A guest that was asked to shut down does not dial again.
        self._shutting_down = 0
        bridge.on_resume[self] = self._resumed
        self._containers = Containers(self._link)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self._bridge.connected else "not connected"
        return f"<GuestConnection {self._link.name} ({state})>"

    # What the guest said of itself.

    @property
    def os(self) -> str:
        """The guest's operating system: ``"linux"`` or ``"windows"``. Errors as of :attr:`capabilities`."""
        self._capabilities()
        return self._link.os

    @property
    def protocol_version(self) -> int:
        """The version of the protocol that is spoken. Errors as of :attr:`capabilities`."""
        self._capabilities()
        return gcs.PROTOCOL_VERSION

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What it said of itself, as it said it (``GuestDefinedCapabilities``).

        :raises VMStateError: it has not been connected yet.
        """
        return self._capabilities().guest_defined_capabilities

    @property
    def features(self) -> GuestFeatures:
        """What of that uvm knows of. Errors as of :attr:`capabilities`."""
        self._capabilities()
        return self._link.features

    def _capabilities(self) -> gcs.GcsCapabilities:
        if self._agreed is None:
            raise VMStateError(f"{self._link.name}: the guest has not been connected yet")
        return self._agreed

    # From its start to its end.

    async def serve(
        self, stream: ByteStream, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the connection until it is closed: ``await tasks.start(connection.serve, stream)``.

        It has started once the guest was greeted. After that it raises nothing; :meth:`wait_closed` and
        the error of any call says why the connection closed.

        :param stream: the connection that the guest has made; it is closed at the end.
        :raises NotSupportedError: the guest speaks another version of the protocol.
        :raises BridgeClosedError: the connection closed before the guest was greeted.
        """
        self._idle = Flag()
        self._task_status = task_status
        try:
            async with anyio.create_task_group() as self._link.tasks:
                await self._serve(stream)
                self._link.tasks.cancel_scope.cancel()
        finally:
            self._link.tasks = None
            self.close()
            self._idle.set()
        if self._agreed is None:
            error = self._link.closed_error()
            raise error.__cause__ if isinstance(error.__cause__, NotSupportedError) else error

    async def start_guest(self, time_zone: TimeZoneInformation | None = None) -> None:
        """Set the guest up, after its VM was started and not on a later connection, as far as it wants that.

        :param time_zone: the time zone of a Windows guest.
        :raises GuestError: it refused.
        """
        checked(time_zone, optional(instance(TimeZoneInformation)), "time_zone")
        agreed = self._capabilities()
        if not agreed.send_host_create_message:
            return
        config = gcs.UvmConfig(time_zone_information=time_zone if self._link.os == "windows" else None)
        create = gcs.ContainerCreateRequest(
            container_id=gcs.HOST_CONTAINER_ID,
            container_config=check_writable("the configuration of the guest", config),
        )
        seconds = self._link.timeouts.container_seconds
        call = partial(self._bridge.call, timeout_seconds=seconds)
        await call(Procedure.CREATE, create, gcs.ResponseBase, operation="set up the guest")
        if agreed.send_host_start_message:
            start = gcs.RequestBase(container_id=gcs.HOST_CONTAINER_ID)
            await call(Procedure.START, start, gcs.ResponseBase, operation="start the guest")

    async def shutdown(self) -> None:
        """Ask the guest to shut down. It has when its VM has exited.

        A Linux guest never answers: it ends the connection, which is as good. Where the connection is
        closed already, nothing happens.

        :raises GuestError: it refused.
        """
        self._shutting_down += 1
        try:
            request = gcs.RequestBase(container_id=gcs.HOST_CONTAINER_ID)
            operation = "shut the guest down"
            await self._bridge.call(
                Procedure.SHUTDOWN_GRACEFUL, request, gcs.ResponseBase, operation=operation
            )
        except BridgeClosedError as error:
            _log.debug(self._link.name, "shutting down: %s", error)
        finally:
            self._shutting_down -= 1

    @property
    def closed(self) -> bool:
        """True once it is closed, for good."""
        return self._bridge.closed

    async def wait_closed(self) -> None:
        """Wait until it is closed, by either side."""
        await self._closed.wait()

    def close(self, cause: BaseException | None = None) -> None:
        """Close it for good: whatever was asked ends with BridgeClosedError. Again, it does nothing.

        :param cause: why, for those errors.
        """
        checked(cause, optional(instance(BaseException)), "cause")
        self._bridge.close(cause)
        self._containers.lose()
        if self._redialling is not None:
            self._redialling.scope.cancel()
        self._closed.set()

    async def aclose(self) -> None:
        """Close it for good, and wait until its service has ended."""
        self.close()
        await self._idle.wait()

    async def _serve(self, stream: ByteStream) -> None:
        cause: Exception | None = None
        try:
            following: ByteStream | None = stream
            while following is not None:
                cause = await self._bridge.run(following, self._greet)
                following = await self._next_stream(cause)
        finally:
            self.close(cause or EOFError("the guest has ended it"))

    async def _next_stream(self, cause: Exception | None) -> ByteStream | None:
        """Wait for the guest to dial again; None where that is not waited for, or it does not."""
        seconds = self._link.timeouts.redial_seconds
        over = self._bridge.closed or self._agreed is None or self._shutting_down
        if over or self._redial is None or seconds <= 0:
            return None
        _log.warning(self._link.name, "the connection to the guest broke (%r); it may dial again", cause)
        if self._return_by is None:
            self._return_by = self._link.clock.now() + seconds
        with self._link.clock.limit(self._return_by) as self._redialling:
            try:
                return await self._redial()
            except Exception as error:
                self.close(error)
                return None
            finally:
                self._redialling = None
        late = TimeoutError(f"it broke, and the guest did not dial again within {seconds:g} s")
        late.__cause__ = cause
        self.close(late)
        return None

    async def _greet(self) -> None:
        answer = await self._negotiate()
        agreed = answer.capabilities or gcs.GcsCapabilities()
        os = agreed.runtime_os_type.lower() or "windows"
        if os not in ("linux", "windows"):
            raise NotSupportedError(
                f"{self._link.name}: uvm does not know the guest's system {printable(os)!r}"
            )
        if self._agreed is not None and os != self._link.os:
            raise WireError(f"a guest that ran {self._link.os} dialled again as one that runs {os}")
        self._agreed = agreed
        self._link.os = os
        self._link.features = GuestFeatures.of(agreed.guest_defined_capabilities)
        self._task_status.started()
        # Only the first of all greetings is the start.
        self._task_status = anyio.TASK_STATUS_IGNORED

    async def _negotiate(self) -> gcs.NegotiateProtocolResponse:
        ours = f"{self._link.name}: uvm speaks version {gcs.PROTOCOL_VERSION} of the protocol"
        try:
            answer = await self._bridge.call(
                Procedure.NEGOTIATE_PROTOCOL,
                gcs.NegotiateProtocolRequest(),
                gcs.NegotiateProtocolResponse,
                operation="negotiate the protocol",
                urgent=True,
            )
        except GuestError as error:
            if error.hresult != HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION:
                raise
            raise NotSupportedError(f"{ours}, and the guest only others: {error}") from error
        if answer.version != gcs.PROTOCOL_VERSION:
            raise NotSupportedError(f"{ours}, and the guest version {answer.version}")
        return answer

    def _notify(self, notification: gcs.ContainerNotification) -> None:
        self._containers.notify(notification)

    def _resumed(self) -> None:
        self._return_by = None

    # What it can be asked.

    async def modify(self, request: JSON | ModificationRequest) -> None:
        """Have the guest carry out a request.

        The guest may carry it out also for a caller who is cancelled, and leaves at once.

        :raises GuestError: it refused.
        :raises UnknownOutcomeError: the answer was lost, or did not come in time.
        :raises VMStateError: the guest owes too many answers.
        :raises BridgeClosedError: the connection is closed.
        """
        checked(request, instance(dict, ModificationRequest), "request")
        if isinstance(request, ModificationRequest):
            operation = f"{request.request_type} {request.resource_type}"
        else:
            operation = f"{request.get('RequestType', 'modify')} {request.get('ResourceType', 'the guest')}"
        body = gcs.ContainerModifySettingsRequest(container_id=gcs.HOST_CONTAINER_ID, request=request)
        modify = Procedure.MODIFY_SETTINGS
        await self._link.call(self._bridge.call(modify, body, gcs.ResponseBase, operation=operation))

    async def modify_service(self, property_type: str, settings: object) -> None:
        """Change a service of a Windows guest (``LogForwardService``).

        :param settings: a model, or a JSON value.
        :raises NotSupportedError: the guest does not say that it can.
        :raises GuestError: it refused.
        """
        operation = f"change the service {checked(property_type, text, 'property_type')}"
        supported = self._capabilities().modify_service_settings_supported or self.features.log_forwarding
        self._link.needs(supported, operation, "ModifyServiceSettingsSupported")
        body = gcs.ServiceModificationRequest(
            container_id=gcs.HOST_CONTAINER_ID, property_type=property_type, settings=settings
        )
        modify = Procedure.MODIFY_SERVICE_SETTINGS
        await self._link.call(self._bridge.call(modify, body, gcs.ResponseBase, operation=operation))

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Update a container by a request of its own (hcsshim v0.8.16 ``UtilityVM.UpdateContainer``).

        No known guest says that it can; :meth:`uvm.Container.update` is for those. Without the capability,
        hcsshim v0.8.16 does nothing, and newer versions have no such request.

        :param resources: OCI resources, as for :meth:`uvm.Container.update`.
        :raises NotSupportedError: the guest does not say that it can (``UpdateContainerSupported``).
        :raises OptionsError: the resources are none; nothing was sent.
        :raises GuestError: it refused.
        """
        from uvm._guest.resources import read_resources

        check_container_id(container_id)
        operation = f"update container {container_id}"
        os: GuestOS = "windows" if self.os == "windows" else "linux"
        text = check_writable("the resources", read_resources(resources, os))
        self._link.needs(self.features.update_container, operation, "UpdateContainerSupported")
        request = gcs.UpdateContainerRequest(container_id=container_id, resources=text)
        call = self._bridge.call(Procedure.UPDATE_CONTAINER, request, gcs.ResponseBase, operation=operation)
        await self._link.call(call)

    async def dump_stacks(self) -> str:
        """Ask for the stacks of the guest's compute service, as text of the guest's.

        :raises NotSupportedError: the guest does not say that it can.
        :raises GuestError: it refused.
        """
        operation = "dump the stacks of the guest's service"
        self._link.needs(self.features.dump_stacks, operation, "DumpStacksSupported")
        request = gcs.RequestBase(container_id=gcs.HOST_CONTAINER_ID)
        call = self._bridge.call(Procedure.DUMP_STACKS, request, gcs.DumpStacksResponse, operation=operation)
        answer = await self._link.call(call)
        return answer.guest_stacks

    @opens
    async def create_container(
        self, container_id: str, document: gcs.LinuxHostedSystem | HostedSystem | Mapping[str, Any]
    ) -> Container:
        """Create a container in the guest. It is not started. Await it, or enter it.

        Entered, it is ended and forgotten at the end of the ``async with``.

        A cancelled caller leaves at once; a container that is created all the same is ended and forgotten.

        :param document: for a Linux guest a :class:`~uvm.schema.gcs.LinuxHostedSystem`, which
            :func:`~uvm._guest.specs.linux_container` makes of an OCI runtime specification; for a Windows
            guest a :class:`~uvm.schema.container.HostedSystem`; or the same as a JSON object.
        :raises OptionsError: there is a container of that id already, or the document is none.
        :raises GuestError: the guest refused.
        :raises UnknownOutcomeError: the answer was lost, or did not come in time; a container that is there
            is ended and forgotten, and the id stays taken until then.
        :raises VMStateError: the guest owes too many answers.
        :raises BridgeClosedError: the connection is closed.
        """
        self._capabilities()
        return await self._link.call(self._containers.create(container_id, document))

    async def delete_container_state(self, container_id: str) -> None:
        """Have the guest delete the state of a container that has ended, by its id alone.

        :raises OptionsError: it is no id of a container.
        :raises NotSupportedError: the guest cannot.
        :raises VMStateError: a container of that id is there, whose own ``delete_state`` is to be called.
        :raises GuestError: the guest refused: it runs, or there is none.
        :raises UnknownOutcomeError: the answer was lost, or did not come in time.
        :raises BridgeClosedError: the connection is closed.
        """
        self._capabilities()
        await self._link.call(self._containers.delete_state(container_id))

    def open_container(self, container_id: str) -> Container:
        """Open a container that is in the guest already, by its id: that of a clone's template, for instance.

        No request is sent; what a container that is not there is asked is refused by the guest.

        :raises OptionsError: one of that id is open already.
        :raises BridgeClosedError: the connection is closed.
        """
        self._capabilities()
        return self._containers.open(container_id)

    async def _launch(self, launch: Launch) -> Process:
        self._capabilities()
        return await start_process(self._link, gcs.HOST_CONTAINER_ID, launch)
