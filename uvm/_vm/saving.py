"""Pausing a VM, and saving it as a template.

How it works
------------

A template is saved with the memory of its guest, and each clone starts from that. What one VM alone can have
has to go first::

    RUNNING --- its adapters are removed, one after another; what fails is reported, and the VM runs on
       |
       |------- the connection to the guest is closed: no request reaches the guest any more
       |
    PAUSED ---- the host saves it; if that is refused, it is resumed
       |
    SAVED ----- it stays for its clones, with its devices, until it is closed

The connection cannot be made again, so that from there on another call of ``save_template`` goes on with what
is left. An answer that is lost is settled by the state that the host reports.

Source: hcsshim v0.8.16 ``internal/uvm/clone.go`` (``SaveAsTemplate``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from uvm._buses.context import Context
from uvm._gcs.connection import GuestConnection
from uvm._log import Log
from uvm._vm.creation import HostArtifacts
from uvm._vm.ending import Ending, VMState
from uvm._vm.startup import GuestStartup
from uvm.backend import System
from uvm.devices.scsi import DiskType
from uvm.errors import UVMError, VMExitedError, VMStateError
from uvm.options.template import SAVED_AS_TEMPLATE, Template, given_options
from uvm.schema.guest import RESOURCE_SUSPENSION
from uvm.schema.json import from_json, to_json
from uvm.schema.requests import ADD, SCSI_CONTROLLER_GUIDS, ModificationRequest, SaveOptions
from uvm.schema.system import ComputeSystem
from uvm.schema.template import TEMPLATE_VERSION, TemplateDisk, TemplateDocument

_log = Log("uvm")

_UNCONNECTED = (
    "its connection to the guest was closed to save it as a template, which failed; save it again or close it"
)
_SAVED = "it was saved as a template, of which clones are made, until it is closed"


class Saving(Ending):
    """Pausing and saving a VM. A part of :class:`~uvm._vm.vm.UtilityVM`."""

    def __init__(
        self, context: Context, system: System, artifacts: HostArtifacts, startup: GuestStartup
    ) -> None:
        super().__init__(context, system, artifacts, startup)
        self._template: Template | None = None
        #: What is to be saved of a VM whose connection to the guest was closed.
        self._unsaved: TemplateDocument | None = None
        self._one_saves: anyio.Lock | None = None

    async def pause(self) -> None:
        """Pause the VM: its processors stop, and so do the time limits on its guest."""
        self._link.check_running()
        await self._link.carry_out("pause", self._pause)

    async def _pause(self) -> None:
        clock = self._startup.clock
        was_paused = clock.paused
        # The guest may stop before the host answers.
        clock.pause()
        try:
            await self._link.call(self._system.pause())
        except BaseException:
            if not was_paused:
                clock.resume()
            raise
        self._unless_gone(VMState.PAUSED)

    async def resume(self) -> None:
        """Resume the paused VM: its processors go on, and so do the time limits on its guest."""
        self._link.check_running()
        await self._link.carry_out("resume", self._resume)

    async def _resume(self) -> None:
        await self._link.call(self._system.resume())
        self._startup.clock.resume()
        self._unless_gone(VMState.RUNNING)

    def _unless_gone(self, state: VMState) -> None:
        """Note a state, unless the VM exited or was closed meanwhile."""
        if not self._link.exited.is_set() and not self._closing.is_set():
            self._state = state

    # Templates and clones.

    @property
    def is_clone(self) -> bool:
        """Whether the VM was made from a template."""
        return self._context.options.clone_of is not None

    @property
    def template_id(self) -> str:
        """The id of the VM that was saved as the template of this one; empty if it is no clone."""
        template = self._context.options.clone_of
        return "" if template is None else template.vm_id

    async def save_template(self) -> Template:
        """Save the running VM as a template, from which others start (``clone_of``).

        Its network adapters are removed, and its connection to the guest is closed: containers and processes
        go on in the clones, and what waits for them here ends with BridgeClosedError. The saved VM stays,
        with its devices, until it is closed: after the last clone was made. A lease of it is released
        quietly, and its device stays; everything else that needs a running VM raises VMStateError.

        A second call returns the same template; one that follows a failure goes on from there. A caller that
        is cancelled leaves at once, and the saving goes on.

        :raises VMStateError: the VM was created without the option ``template``, does not run, or something
            is attached, or in flight, that cannot be saved. Nothing was sent.
        :raises HostError: the host refused. The VM runs on, but if its connection was closed it can only be
            saved, or closed.
        :raises GuestError: the guest did not let an adapter go. The VM runs on.
        """
        self._link.check_open()
        if self._template is None:
            self._check_saveable()
            await self._link.carry_out("save template", self._save_template)
        assert self._template is not None
        return self._template

    async def _save_template(self) -> None:
        self._one_saves = self._one_saves or anyio.Lock()
        async with self._one_saves:
            if self._template is not None:
                return
            self._check_saveable()
            if self._unsaved is None:
                await self._remove_adapters()
                self._check_saveable()
                await self._disconnect()
            assert self._unsaved is not None
            await self._reach("Paused", self._pause)
            self._unless_gone(VMState.PAUSED)
            options = to_json(SaveOptions(save_type="AsTemplate"))
            try:
                await self._reach(SAVED_AS_TEMPLATE, lambda: self._link.call(self._system.save(options)))
            except Exception as error:
                await self._resume_after(error)
                raise
            self._link.saved, self._link.why_not_running = True, _SAVED
            self._unless_gone(VMState.SAVED)
            self._template = Template(self._unsaved)
            _log.info(self.id, "saved as a template")

    def _check_saveable(self) -> None:
        """Refuse what cannot be saved.

        :raises VMStateError: the VM cannot be saved.
        """
        if why := self._why_not():
            raise VMStateError(f"save {self.id} as a template: {why}; nothing was sent")

    def _why_not(self) -> str:
        if not self._context.options.template:
            return "it was created with template=False, so that what it shares cannot be saved"
        if self._unsaved is not None:
            return ""
        self._link.check_running()
        if self._state is not VMState.RUNNING:
            return f"it is {self._state.value}, and has to run"
        link, found = self._link, self.devices()
        if link.in_flight or link.states.any_closing or link.work.owed:
            return "something is being attached, released or ended; wait for that with settled()"
        own = [disk for disk in found.disks if disk.type is not DiskType.VIRTUAL_DISK and not disk.read_only]
        for what, there in (
            ("PCI devices", found.pci_devices),
            ("mapped pipes", found.pipes),
            ("block CIMs", found.block_cims),
            ("shared directories (vm.share)", found.shared),
            ("directories mounted in containers (vm.mount_in_container)", [*link.mounts]),
            ("writable disks that are no files, which cannot be copied", own),
            ("orphans", found.orphans),
            ("devices whose state is unknown (vm.quarantined)", found.quarantined),
        ):
            if there:
                return f"it has {what}: {there[0]}"
        return ""

    async def _remove_adapters(self) -> None:
        if "network" in self.__dict__:
            await self.network.remove_all_adapters()

    async def _disconnect(self) -> None:
        """Note what is to be saved, and close the connection to the guest, for good.

        What runs in a Linux guest is suspended first: it goes on in the clones, once each has random numbers
        and a clock of its own. A Windows guest sees to that itself.
        """
        link = self._link
        assert isinstance(link.guest, GuestConnection)
        if self._context.plan.os == "linux":
            await link.guest.modify(ModificationRequest(request_type=ADD, resource_type=RESOURCE_SUSPENSION))
        self._unsaved = self._document()
        link.why_not_running = _UNCONNECTED
        link.disconnected = link.guest_went_alone = True
        await link.guest.aclose()
        await link.call(self._startup.stop_listening())

    async def _reach(self, state: str, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call that leads to a state of the host's; one that failed has not if the host says so."""
        try:
            await call()
        except VMExitedError:
            raise
        except UVMError as error:
            try:
                found = (await self._link.properties()).get("State")
            except UVMError as unknown:
                error.add_note(f"and the state of the VM is unknown: {unknown}")
                raise error from None
            if found != state:
                raise

    async def _resume_after(self, failure: Exception) -> None:
        """Resume a VM that could not be saved; an error becomes a note of the failure."""
        try:
            await self._reach("Running", self._resume)
        except UVMError as error:
            failure.add_note(f"and resuming the VM failed: {error}")
        else:
            self._startup.clock.resume()
            self._unless_gone(VMState.RUNNING)

    def _document(self) -> TemplateDocument:
        shares, named = self.vsmb._saved()
        return TemplateDocument(
            version=TEMPLATE_VERSION,
            system_id=self.id,
            os=self._context.plan.os,
            options=given_options(self._context.options),
            boot_disks=[*self._boot_disks()],
            disks=self.scsi._saved(),
            layers=self.vpmem._saved(),
            shares=shares,
            shares_named=named,
            roots=self.layers._saved(),
            namespace=self.network._saved() if "network" in self.__dict__ else None,
        )

    def _boot_disks(self) -> list[TemplateDisk]:
        """Return the disks that the VM was created with, by its document."""
        plan = self._context.plan
        machine = from_json(ComputeSystem, plan.document).virtual_machine
        scsi = machine.devices.scsi if machine is not None and machine.devices is not None else {}
        disks = []
        for controller, lun in plan.reserved_scsi:
            attached = scsi[SCSI_CONTROLLER_GUIDS[controller]].attachments[str(lun)]
            disk = TemplateDisk(
                controller=controller,
                lun=lun,
                path=attached.path,
                type=attached.type,
                extensible_virtual_disk_type=attached.extensible_virtual_disk_type,
                read_only=attached.read_only,
            )
            disks.append(disk)
        return disks
