"""One compute system of the fake host: its state, its devices, its guest, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal

import anyio
import anyio.lowlevel

from uvm.backend import JSON
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.guest.linux.mounts import LINUX_CAPABILITIES, LinuxGuest
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.state import FakeGuest
from uvm.backends.fake.guest.windows.mounts import WINDOWS_CAPABILITIES, WindowsGuest
from uvm.backends.fake.host import Host
from uvm.backends.fake.streams import FakeListener, FakeStream, Switchboard
from uvm.backends.fake.tree import DeviceTree
from uvm.errors import ExitStatus, HostError, RefusedError, VMExitedError
from uvm.hresult import HResult
from uvm.schema.system import ComputeSystem, VirtualMachine

State = Literal["Created", "Running", "Paused", "SavedAsTemplate", "Stopped"]


class FakeVM:
    """A compute system. Any number of handles (:class:`~uvm.backends.fake.FakeSystem`) are open on it.

    Every method is one atomic step, and raises HostError where HCS refuses it in this state.

    :ivar document: the document it was created with. It belongs to the request log: do not change it.
    :ivar os: the operating system of the guest, judged from how the document boots it.
    :ivar owner: who the document says that it belongs to.
    :ivar ends_with_last_handle: it is terminated when its last handle is closed.
    :ivar exit_status: how it ended; None while it has not.
    :ivar started_ticks: when it was started, by the backend's clock; None before.
    :ivar handles: how many handles are open.
    :ivar exited_ticks: when it ended.
    :ivar service: the compute service inside the guest, which speaks with the host over connections.
    :ivar relays: HCS itself is connected to the guest, as its document says.
    :ivar hosted: the processes that HCS started over that connection and keeps, by process id.
    """

    __slots__ = (
        "_clock",
        "_exit_hooks",
        "_forget",
        "_guest",
        "_guest_capabilities",
        "_host",
        "_state_hooks",
        "_switchboard",
        "_tree",
        "document",
        "ends_with_last_handle",
        "exit_status",
        "exited_ticks",
        "handles",
        "hosted",
        "id",
        "os",
        "owner",
        "relays",
        "runtime_id",
        "service",
        "started_ticks",
        "state",
    )

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
    ) -> None:
        self.id: str = system_id
        self.runtime_id: str = runtime_id
        # The model itself would be a tenth of all that an idle VM takes.
        self.document: JSON = document
        machine = checked.virtual_machine
        assert machine is not None
        self.os: Literal["linux", "windows"] = "windows" if _boots_windows(machine) else "linux"
        self.owner: str = checked.owner
        self.ends_with_last_handle: bool = checked.should_terminate_on_last_handle_closed
        self.relays: bool = machine.guest_connection is not None
        self.state: State = "Created"
        self.exit_status: ExitStatus | None = None
        self.started_ticks: int | None = None
        self.exited_ticks: int | None = None
        self.handles: int = 0
        self.service: GuestService
        self.hosted: dict[int, object] = {}
        self._forget = forget
        self._host = host
        self._clock = clock
        self._guest_capabilities = guest_capabilities
        _require_boot_files(system_id, machine, host)
        self._tree = DeviceTree(system_id, host, machine)
        self._guest: FakeGuest | None = None
        self._switchboard: Switchboard | None = None
        self._exit_hooks: list[Callable[[], None]] = []
        self._state_hooks: list[anyio.Event] = []

    @property
    def tree(self) -> DeviceTree:
        """The devices that the host has attached; none once it has exited."""
        return self._tree

    @property
    def guest(self) -> FakeGuest:
        """The guest; it runs from the start to the exit, and can be looked at afterwards."""
        if self._guest is None:
            raise HostError(
                f"connect to the guest of {self.id}", HResult.HCS_E_INVALID_STATE, "it was not started"
            )
        return self._guest

    @property
    def architecture(self) -> Literal["amd64", "arm64"]:
        """The architecture of its processors, the host's."""
        return self._host.info.machine

    # The life of the VM

    def start(self) -> None:
        """Start it: Created to Running."""
        self.require("start", "Created")
        self.started_ticks = self._clock.ticks
        kind, own = (
            (WindowsGuest, WINDOWS_CAPABILITIES) if self.os == "windows" else (LinuxGuest, LINUX_CAPABILITIES)
        )
        stated = self._guest_capabilities
        self._guest = kind(self._tree, self._host.checks, own if stated is None else stated)
        self._become("Running")

    def shutdown(self) -> None:
        """Have the guest shut down; it does so at once."""
        self.require("shut down", "Running")
        self._exit(ExitStatus("GracefulExit"))

    def terminate(self) -> None:
        """End it, in any state."""
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
        """End unexpectedly, as when the worker process fails; nothing happens where it has ended."""
        if self.state != "Stopped":
            detail = {"ExitType": "UnexpectedExit", "Attribution": [{"WorkerExit": {"ExitCode": 1}}]}
            self._exit(ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT, detail))

    def pause(self) -> None:
        """Running to Paused."""
        self.require("pause", "Running")
        self._become("Paused")

    def resume(self) -> None:
        """Paused to Running."""
        self.require("resume", "Paused")
        self._become("Running")

    def save(self, save_type: str, path: str) -> None:
        """Save a paused VM to a file, where one is named; ``AsTemplate`` makes it a template."""
        self.require("save", "Paused")
        if path:
            self._host.files.add(path, size=self._tree.topology.size_in_mb << 20)
        if save_type == "AsTemplate":
            self._become("SavedAsTemplate")

    def require(self, operation: str, *states: State) -> None:
        """Refuse in other states: HCS_E_SYSTEM_ALREADY_STOPPED once it has exited, or HCS_E_INVALID_STATE."""
        if self.state in states:
            return
        if self.state == "Stopped":
            raise HostError(
                f"{operation} {self.id}", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, f"exit: {self.exit_status}"
            )
        raise HostError(f"{operation} {self.id}", HResult.HCS_E_INVALID_STATE, f"it is {self.state}")

    async def until_running(self) -> None:
        """Wait until its processors run; for ever where it has exited."""
        while self.state != "Running":
            changed = anyio.Event()
            self._state_hooks.append(changed)
            try:
                await changed.wait()
            finally:
                if changed in self._state_hooks:
                    self._state_hooks.remove(changed)

    def _become(self, state: State) -> None:
        self.state = state
        hooks, self._state_hooks = self._state_hooks, []
        for changed in hooks:
            changed.set()

    # Changes while it runs

    def modify(self, path: str, request_type: str, settings: Any) -> None:
        """Change the devices."""
        self.require("modify", "Running")
        with self._refusals():
            self._tree.modify(path, request_type, settings)

    def apply_in_guest(self, request: JSON) -> None:
        """Have the guest carry out a request that has reached it; GuestError where it refuses."""
        with self._refusals():
            self.guest.modify(request)

    def _refusals(self) -> AbstractContextManager[None]:
        """Let refusals of changes out, unless every request is to be accepted."""
        return nullcontext() if self._host.checks.requests else suppress(RefusedError)

    def require_relay(self, operation: str = "modify") -> None:
        """Check that HCS can ask the guest for something."""
        self.require(operation, "Running")
        if not self.relays:
            raise HostError(
                f"{operation} {self.id}",
                HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION,
                "HCS is not connected to the guest",
            )

    # Connections of the guest

    def listen(self, service_id: str) -> FakeListener:
        """Listen for connections of the guest; before the start too, so that none is missed."""
        self.require("listen on", "Created", "Running", "Paused")
        return self._connections().listen(service_id)

    def dial(self, service_id: str) -> FakeStream:
        """Connect as the guest does; ConnectionRefusedError where nobody listens."""
        if self.state != "Running" or self._switchboard is None:
            raise ConnectionRefusedError(f"nobody listens to service {service_id} of VM {self.id}")
        return self._switchboard.dial(service_id)

    async def until_listening(self, service_id: str) -> None:
        """Wait until somebody listens to a service."""
        await self._connections().wait_for_listener(service_id)

    async def dial_when_listening(self, service_id: str) -> FakeStream:
        """Connect as the guest does, once the VM runs and somebody listens; for ever where it has exited."""
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

    # The exit

    def add_exit_hook(self, hook: Callable[[], None]) -> None:
        """Have the hook called at the exit, or now where that was before."""
        if self.state == "Stopped":
            hook()
        else:
            self._exit_hooks.append(hook)

    def remove_exit_hook(self, hook: Callable[[], None]) -> None:
        """Forget a hook; nothing happens where it was called."""
        if hook in self._exit_hooks:
            self._exit_hooks.remove(hook)

    def _exit(self, status: ExitStatus) -> None:
        self.exit_status = status
        self.exited_ticks = self._clock.ticks
        self._become("Stopped")
        self._tree.close()
        if self._guest is not None:
            self._guest.end()
        if self._switchboard is not None:
            self._switchboard.close(VMExitedError(f"VM {self.id} has exited", status))
        hooks, self._exit_hooks = self._exit_hooks, []
        for hook in hooks:
            hook()
        self._forget_if_unused()

    def opened(self) -> None:
        """Count a handle."""
        self.handles += 1

    def closed(self) -> None:
        """Count a handle that was closed; with the last one the VM ends if its document says so."""
        self.handles -= 1
        if not self.handles and self.ends_with_last_handle and self.state != "Stopped":
            self.terminate()
        else:
            self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        if self.state == "Stopped" and not self.handles:
            self._forget(self)


def _require_boot_files(system_id: str, vm: VirtualMachine, host: Host) -> None:
    """Check that what the firmware loads is there: ERROR_FILE_NOT_FOUND."""
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
