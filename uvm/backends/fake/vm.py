"""One VM of the fake host: its state, its devices, its guest, and its exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import anyio.lowlevel

from uvm._async import Line
from uvm._names import GuestOS
from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.computesystem import FakeComputeSystem, Opened, State
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.state import FakeGuest
from uvm.backends.fake.host import Host
from uvm.backends.fake.streams import FakeListener, FakeStream, Switchboard
from uvm.backends.fake.tree import DeviceTree
from uvm.errors import ExitStatus, HostError, RefusedError, VMExitedError
from uvm.hresult import HResult
from uvm.schema.properties import Properties
from uvm.schema.system import ComputeSystem, VirtualMachine


@showing("id", "os", "state")
class FakeVM(FakeComputeSystem):
    """A virtual machine. Any number of handles (:class:`~uvm.backends.fake.FakeSystem`) are open on it.

    Every method is one atomic step, and raises HostError if HCS refuses it in this state.

    :ivar document: the document it was created with. It belongs to the request log: do not change it.
    :ivar os: the operating system of the guest, from how the document boots it.
    :ivar started_ticks: when it was started, by the backend's clock; None before.
    :ivar exited_ticks: when it exited.
    :ivar tree: the devices that the host has attached; none after the exit.
    :ivar service: the compute service inside the guest, which the host is connected to.
    :ivar relays: HCS itself is connected to the guest, as its document says.
    :ivar hosted: the processes that HCS started over that connection and keeps, by process id.
    """

    def __init__(
        self,
        system_id: str,
        runtime_id: str,
        document: JSON,
        checked: ComputeSystem,
        host: Host,
        clock: FakeClock,
        forget: Callable[[FakeVM], None],
        guest_capabilities: Mapping[str, Any] | None = None,
        template: FakeVM | None = None,
    ) -> None:
        super().__init__(system_id, checked.owner, checked.should_terminate_on_last_handle_closed)
        self.runtime_id: str = runtime_id
        # The model itself would be a tenth of all that an idle VM takes.
        self.document: JSON = document
        machine = checked.virtual_machine
        assert machine is not None
        self.os: GuestOS = "windows" if _boots_windows(machine) else "linux"
        self.relays: bool = machine.guest_connection is not None
        security = machine.security_settings
        self.isolated: bool = security is not None and security.isolation is not None
        self.started_ticks: int | None = None
        self.exited_ticks: int | None = None
        self.service: GuestService
        self.hosted: dict[int, Opened] = {}
        self._forget = forget
        self._host = host
        self._clock = clock
        self._guest_capabilities = guest_capabilities
        _require_boot_files(system_id, machine, host)
        self.tree: DeviceTree = DeviceTree(system_id, host, machine)
        self._guest: FakeGuest | None = None
        #: The guest of a clone, until it starts.
        self._restored: FakeGuest | None = None
        self._template_id = "" if template is None else template.id
        if template is not None:
            self._restored = self._guest_of(template)
        self._switchboard: Switchboard | None = None
        self._exit_hooks: dict[Callable[[], None], None] = {}
        self._state_changes: Line = Line()

    @property
    def guest(self) -> FakeGuest:
        """The guest, which runs from the start to the exit, and can be inspected afterwards."""
        if self._guest is None:
            operation = f"connect to the guest of {self.id}"
            raise HostError(operation, HResult.HCS_E_INVALID_STATE, "it was not started")
        return self._guest

    @property
    def architecture(self) -> Literal["amd64", "arm64"]:
        """The architecture of its processors, the host's."""
        return self._host.info.machine

    def start(self) -> None:
        """Start the VM: Created to Running."""
        self.require("start", "Created")
        self.started_ticks = self._clock.ticks
        self._guest, self._restored = self._restored or self._new_guest(), None
        self._become("Running")

    def _new_guest(self) -> FakeGuest:
        kind = self.service.guest_kind
        stated = self._guest_capabilities
        capabilities = kind.own_capabilities if stated is None else stated
        return kind(self.tree, self._host.checks, capabilities, self.isolated)

    def _guest_of(self, template: FakeVM) -> FakeGuest:
        """Return the guest of a template, on the devices of this VM, which have to be there."""
        try:
            template.tree.check_restorable(self.tree)
        except HostError:
            self.tree.close()
            raise
        return template.guest.copied(self.tree)

    def shutdown(self) -> None:
        """Have the guest shut down, at once."""
        self.require("shut down", "Running")
        self._exit(ExitStatus("GracefulExit"))

    def terminate(self) -> None:
        """Terminate the VM, in any state."""
        self.require("terminate", "Created", "Running", "Paused", "SavedAsTemplate")
        self._exit(ExitStatus("ForcedExit"))

    def crash_guest(self) -> None:
        """Have the guest crash, as HcsCrashComputeSystem does."""
        self.require("crash", "Running", "Paused")
        detail = {
            "ExitType": "UnexpectedExit",
            "Attribution": [{"GuestCrash": {"CrashParameters": [0, 0, 0, 0, 0]}}],
        }
        self._exit(ExitStatus("UnexpectedExit", HResult.HCS_E_GUEST_CRITICAL_ERROR, detail))

    def crash(self) -> None:
        """Exit unexpectedly, as if the worker process failed; do nothing if the VM has exited."""
        if self.state != "Stopped":
            detail = {"ExitType": "UnexpectedExit", "Attribution": [{"WorkerExit": {"ExitCode": 1}}]}
            self._exit(ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT, detail))

    def pause(self) -> None:
        """Pause the VM: Running to Paused."""
        self.require("pause", "Running")
        self._become("Paused")

    def resume(self) -> None:
        """Resume the VM: Paused to Running."""
        self.require("resume", "Paused")
        self._become("Running")

    def save(self, save_type: str, path: str) -> None:
        """Save a paused VM to a file, if one is named; ``AsTemplate`` makes it a template.

        A template may have no network adapters, and no connection between the host and its guest.
        """
        self.require("save", "Paused")
        if save_type == "AsTemplate":
            self._check_saveable()
        if path:
            self._host.files.add(path, size=self.tree.topology.size_in_mb << 20)
        if save_type == "AsTemplate":
            self._become("SavedAsTemplate")

    def _check_saveable(self) -> None:
        operation = f"save {self.id}"
        if self.tree.adapters.count:
            raise HostError(operation, HResult.HCS_E_INVALID_STATE, "it has network adapters")
        if self.relays or self.service.connected:
            raise HostError(operation, HResult.HCS_E_INVALID_STATE, "the host is connected to its guest")

    def describe(self, properties: Properties) -> None:
        """Set the properties that only a VM has."""
        properties.system_type = "VirtualMachine"
        properties.runtime_os_type = self.os.capitalize()
        properties.runtime_id = self.runtime_id
        properties.runtime_template_id = self._template_id

    async def until_running(self) -> None:
        """Wait until the VM runs; for ever if it has exited."""
        while self.state != "Running":
            await self._state_changes.wait()

    def _become(self, state: State) -> None:
        super()._become(state)
        self._state_changes.wake()

    def modify(self, path: str, request_type: str, settings: Any) -> None:
        """Change the devices."""
        self.require("modify", "Running")
        try:
            self.tree.modify(path, request_type, settings)
        except RefusedError:
            if self._host.checks.requests:
                raise

    def apply_in_guest(self, request: JSON) -> None:
        """Have the guest carry out a request; GuestError if it refuses."""
        try:
            self.guest.modify(request)
        except RefusedError:
            if self._host.checks.requests:
                raise

    def require_relay(self, operation: str = "modify") -> None:
        """Refuse if HCS is not connected to the guest, or the VM does not run."""
        self.require(operation, "Running")
        if not self.relays:
            code = HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION
            raise HostError(f"{operation} {self.id}", code, "HCS is not connected to the guest")

    def listen(self, service_id: str) -> FakeListener:
        """Listen for connections of the guest; before the start too."""
        self.require("listen on", "Created", "Running", "Paused")
        return self._connections().listen(service_id)

    def dial(self, service_id: str) -> FakeStream:
        """Connect as the guest does; ConnectionRefusedError if the host does not listen."""
        if self.state != "Running" or self._switchboard is None:
            raise ConnectionRefusedError(f"VM {self.id} does not run, or has no listener")
        return self._switchboard.dial(service_id)

    async def until_listening(self, service_id: str) -> None:
        """Wait until the host listens to a service."""
        await self._connections().wait_for_listener(service_id)

    async def dial_when_listening(self, service_id: str) -> FakeStream:
        """Connect as the guest does, once the VM runs and the host listens; for ever if it has exited."""
        await anyio.lowlevel.checkpoint()
        while True:
            await self.until_running()
            try:
                return self.dial(service_id)
            except ConnectionRefusedError:
                await self.until_listening(service_id)

    def _connections(self) -> Switchboard:
        if self._switchboard is None:
            self._switchboard = Switchboard(self.id)
        return self._switchboard

    def add_exit_hook(self, hook: Callable[[], None]) -> None:
        """Call a hook at the exit, or at once if the VM has exited."""
        if self.state == "Stopped":
            hook()
        else:
            self._exit_hooks[hook] = None

    def remove_exit_hook(self, hook: Callable[[], None]) -> None:
        """Remove a hook; do nothing if it was called."""
        self._exit_hooks.pop(hook, None)

    def _exit(self, status: ExitStatus) -> None:
        self.exited_ticks = self._clock.ticks
        self._ended(status)
        self.tree.close()
        if self._guest is not None:
            self._guest.end()
        if self._switchboard is not None:
            self._switchboard.close(VMExitedError(f"VM {self.id} has exited", status))
        self.service.end()
        hooks, self._exit_hooks = self._exit_hooks, {}
        for hook in hooks:
            hook()
        self._forget_if_unused()

    def last_closed(self) -> None:
        """Terminate the VM if its document demands that; forget it if it has exited."""
        if self.ends_with_last_handle and self.state != "Stopped":
            self.terminate()
        else:
            self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        if self.state == "Stopped" and not self.handles:
            self._forget(self)


def _require_boot_files(system_id: str, vm: VirtualMachine, host: Host) -> None:
    """Check that what the firmware loads exists: ERROR_FILE_NOT_FOUND."""
    chipset = vm.chipset
    if chipset is None or not host.checks.host_files:
        return
    paths: list[str] = []
    if chipset.linux_kernel_direct is not None:
        paths += [chipset.linux_kernel_direct.kernel_file_path, chipset.linux_kernel_direct.initrd_path]
    entry = chipset.uefi.boot_this if chipset.uefi is not None else None
    if entry is not None and entry.vmbfs_root_path:
        paths += [entry.vmbfs_root_path, entry.vmbfs_root_path + entry.device_path]
    for path in paths:
        if path and host.files.look(path) is None:
            raise HostError(f"create {system_id}", HResult.ERROR_FILE_NOT_FOUND, path)


def _boots_windows(vm: VirtualMachine) -> bool:
    chipset = vm.chipset
    if chipset is not None and chipset.linux_kernel_direct is not None:
        return False
    if vm.registry_changes is not None:
        return True
    entry = chipset.uefi.boot_this if chipset is not None and chipset.uefi is not None else None
    return entry is not None and entry.device_path.lower().endswith(".efi")
