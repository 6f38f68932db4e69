"""Processes and containers in a running guest, and requests to its compute service."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from uvm._arguments import kind_of
from uvm._async import opens
from uvm._checks import checked, instance, optional
from uvm._gcs.connection import GuestConnection
from uvm._guest.access import GuestFeatures
from uvm._guest.clock import GuestClock
from uvm._guest.container import Container
from uvm._guest.process import Process
from uvm._guest.run import GuestHost, ProcessHost
from uvm._guest.specs import (
    Command,
    bundle_of,
    check_container_id,
    linux_container,
    windows_container,
    with_namespace,
)
from uvm._vm.base import Part
from uvm.errors import BridgeClosedError, NotSupportedError, OptionsError, VMExitedError
from uvm.options import LCOWOptions
from uvm.schema import container

if TYPE_CHECKING:
    from uvm._hcsguest.guest import RelayGuest
    from uvm._vm.layers import RootFileSystem
    from uvm._vm.logforwarding import LogForwarding


class GuestServices(Part, ProcessHost):
    """Requests to the guest of a VM. A part of :class:`~uvm._vm.vm.UtilityVM`.

    Processes and containers work over our own connection to the guest and through HCS; the rest needs our own
    connection, and raises :class:`~uvm.errors.NotSupportedError` if there is none. If the VM exits
    meanwhile, all of it raises :class:`~uvm.errors.VMExitedError`.
    """

    @property
    def guest(self) -> GuestConnection:
        """The connection to the guest's compute service.

        :raises VMStateError: the VM is not running.
        :raises VMExitedError: it has exited.
        :raises NotSupportedError: the guest is reached through HCS, or not at all.
        """
        guest = self._asked
        if not isinstance(guest, GuestConnection):
            raise NotSupportedError(
                f"{self._context.vm_id}: this needs our own connection to the guest; create the VM with "
                "external_guest_connection=True. Through HCS, processes and containers work"
            )
        return guest

    @property
    def features(self) -> GuestFeatures:
        """The features that the guest reports.

        :raises VMStateError: the VM is not running.
        :raises VMExitedError: it has exited.
        :raises NotSupportedError: the guest cannot be asked (``use_guest_connection=False``).
        """
        return self._asked.features

    @property
    def protocol_version(self) -> int:
        """The version of the protocol that is spoken with the guest; 0 if HCS speaks it and does not say.

        Errors as of :attr:`features`.
        """
        return self._asked.protocol_version

    @property
    def _asked(self) -> GuestConnection | RelayGuest:
        """The guest, over our own connection or through HCS."""
        self._link.check_running()
        guest: object = self._link.guest
        if not isinstance(guest, GuestHost):
            raise NotSupportedError(
                f"{self._context.vm_id}: there is no connection to the guest; create the VM with "
                "use_guest_connection=True"
            )
        return cast("GuestConnection | RelayGuest", guest)

    @property
    def _clock(self) -> GuestClock:
        return self._asked._clock

    @property
    def _guest_os(self) -> str:
        return self._context.plan.os

    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        return await self._asked._start(wanted, pipes)

    @opens
    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any] | container.HostedSystem | container.CWCOWHostedSystem,
        *,
        root: RootFileSystem | None = None,
    ) -> Container:
        """Create a container in the guest; it is not started. Await it, or enter it.

        Entered, it is ended at the end of the ``async with``, and its state deleted: at once, or while its
        layers are mounted, when they are released.

        :param spec: for a Linux guest an OCI runtime specification; for a Windows guest the HCS document, a
            :class:`~uvm.schema.container.HostedSystem` or the same as JSON; for a confidential Windows guest
            a :class:`~uvm.schema.container.CWCOWHostedSystem`, which has the specification too.
        :param root: its root file system, from ``mount_layers``. A Linux specification without ``root`` gets
            it from here, or the directory where hcsshim puts it.
        :raises OptionsError: the specification is invalid; a Windows guest was given a ``root``; there is a
            container of that id, or its state is kept while its layers are mounted.
        :raises GuestError: the guest refused.
        :raises HostError: through HCS, HCS refused, or the guest that it asked. The id is one of a compute
            system of the host then.
        """
        guest = self._asked
        if self._context.plan.os == "windows":
            if root is not None:
                raise OptionsError(
                    "the document of a Windows container names its layers itself; leave out root"
                )
            confidential = self._context.options.security_policy_enabled
            return await guest.create_container(
                container_id, windows_container(spec, confidential=confidential)
            )
        from uvm._vm.layers import RootFileSystem

        checked(root, optional(instance(RootFileSystem)), "root")
        if not isinstance(spec, Mapping):
            raise OptionsError(f"an OCI specification is a mapping, not {kind_of(spec)}")
        bundle = bundle_of(container_id)
        at = root.root if root is not None else f"{bundle}/rootfs"
        with_root = spec if spec.get("root") is not None else {**spec, "root": {"path": at}}
        document = linux_container(
            with_namespace(with_root, container_id),
            bundle_path=bundle,
            scratch_path=root.scratch_path if root is not None else f"{bundle}/scratch/{container_id}",
        )
        return await guest.create_container(container_id, document)

    async def delete_container_state(self, container_id: str) -> None:
        """Have the guest delete the state of a container that has ended, by its id alone.

        For one without a :class:`~uvm.Container`, which another connection to the guest has created, say.

        :raises OptionsError: it is no id of a container.
        :raises NotSupportedError: the guest cannot.
        :raises VMStateError: a container of that id is there, whose own ``delete_state`` is to be called; or
            something is mounted in its bundle. Nothing was sent.
        :raises GuestError: the guest refused: it runs, or there is none.
        """
        check_container_id(container_id)
        # It goes with its guest.
        with suppress(BridgeClosedError, VMExitedError):
            guest, states = self.guest, self._link.states
            await states.settled(container_id)
            kept = states.pending(container_id)
            directories = (bundle_of(container_id),) if kept is None else kept.directories
            states.check_unmounted(container_id, directories)
            await self._link.carry_out(
                "delete container state", lambda: self._link.call(guest.delete_container_state(container_id))
            )

    def open_container(self, container_id: str) -> Container:
        """Open a container that is in the guest already, by its id: that of a clone's template, for instance.

        No request is sent; what a container that is not there is asked is refused by the guest.

        :raises OptionsError: one of that id is open already.
        :raises NotSupportedError: HCS holds the connection to the guest.
        """
        return self.guest.open_container(container_id)

    # The compute service itself.

    async def dump_stacks(self) -> str:
        """Return the stacks of the guest's compute service, as text.

        :raises NotSupportedError: the guest cannot report them.
        """
        return await self._link.call(self.guest.dump_stacks())

    async def set_log_sources(self) -> None:
        """Set the log sources of a Windows guest again to those of the VM's options."""
        forwarding = self._forwarding()
        await self._link.carry_out("set log sources", lambda: self._link.call(forwarding.set_sources()))

    async def start_log_forwarding(self) -> None:
        """Have a Windows guest forward its log; the start of the VM does so if its options ask for it."""
        forwarding = self._forwarding()
        await self._link.carry_out("start log forwarding", lambda: self._link.call(forwarding.start()))

    async def stop_log_forwarding(self) -> None:
        """Have a Windows guest stop forwarding its log."""
        forwarding = self._forwarding()
        await self._link.carry_out("stop log forwarding", lambda: self._link.call(forwarding.stop()))

    def _forwarding(self) -> LogForwarding:
        self._context.need_guest("log forwarding", "windows")
        from uvm._vm.logforwarding import LogForwarding

        guest, options = self.guest, self._context.options
        assert not isinstance(options, LCOWOptions)
        if not guest.features.log_forwarding:
            raise NotSupportedError(
                f"{self._context.vm_id}: the guest does not report log forwarding (LogForwardingSupported)"
            )
        return LogForwarding(guest, options)
