"""Containers that HCS hosts in a fake VM: compute systems of their own, carried out by the VM's guest.

HCS asks the guest for them in the same messages as every other host, and the guest reports their exit to HCS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, NoReturn

from uvm._async import Flag
from uvm._wire.frames import Procedure, parse
from uvm.backend import JSON
from uvm.backends.fake.computesystem import FakeComputeSystem
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.backends.fake.hosted import ask_guest
from uvm.backends.fake.vm import FakeVM
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult
from uvm.schema import gcs
from uvm.schema import properties as schema
from uvm.schema.json import dumps, from_json
from uvm.schema.system import ComputeSystem

#: The properties that the guest is asked for.
_OF_THE_GUEST: Final = frozenset({schema.PROPERTY_STATISTICS, schema.PROPERTY_PROCESS_LIST})


class HostedSystem(FakeComputeSystem):
    """A container that HCS hosts in a VM. Every method is one atomic step, and raises HostError if refused.

    :ivar vm: the VM that hosts it.
    :ivar over: set when it has exited.
    """

    def __init__(
        self, vm: FakeVM, system_id: str, document: ComputeSystem, forget: Callable[[HostedSystem], None]
    ) -> None:
        """Have the guest create the container.

        :param forget: called when it has exited and no handle is open.
        :raises HostError: HCS_E_INVALID_JSON, HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION, HCS_E_INVALID_STATE,
            or the guest's refusal.
        """
        super().__init__(system_id, document.owner, document.should_terminate_on_last_handle_closed)
        self.vm: FakeVM = vm
        self.over: Flag = Flag()
        self._forget = forget
        vm.require_relay("create a container in")
        if not isinstance(document.hosted_system, dict):
            text = "HostedSystem should be an object"
            raise HostError(f"create {system_id}", HResult.HCS_E_INVALID_JSON, text)
        config = dumps(document.hosted_system)
        request = gcs.ContainerCreateRequest(container_id=system_id, container_config=config)
        self._ask(Procedure.CREATE, request, "create")
        vm.service.watchers[system_id] = self.exited
        vm.add_exit_hook(self._vm_exited)

    def __str__(self) -> str:
        return f"container {self.id} of {self.vm.id} ({self.state})"

    def start(self) -> None:
        """Start the container: Created to Running."""
        self.require("start", "Created")
        self._ask(Procedure.START, gcs.RequestBase(container_id=self.id), "start")
        self._become("Running")

    def shutdown(self) -> None:
        """Have the guest shut the container down; it exits when the guest reports that."""
        self.require("shut down", "Running")
        self._end(Procedure.SHUTDOWN_GRACEFUL, "shut down")

    def terminate(self) -> None:
        """Have the guest kill the container; it exits when the guest reports that."""
        self.require("terminate", "Created", "Running")
        self._end(Procedure.SHUTDOWN_FORCED, "terminate")

    def modify(self, request: Any) -> None:
        """Have the guest carry out a ``ModificationRequest`` on the container."""
        self.require("modify", "Created", "Running")
        message = gcs.ContainerModifySettingsRequest(container_id=self.id, request=request)
        self._ask(Procedure.MODIFY_SETTINGS, message, "modify")

    def describe(self, properties: schema.Properties) -> None:
        """Set the properties that only a container has."""
        properties.system_type = "Container"
        properties.runtime_os_type = self.vm.os.capitalize()
        properties.hosting_system_id = self.vm.id

    def query(self, types: tuple[str, ...]) -> JSON:
        """Return the summary, and properties that the guest has.

        :raises HostError: HCS_E_INVALID_JSON for an unknown type; or the guest's refusal.
        """
        for name in types:
            if name not in _OF_THE_GUEST:
                text = f"unknown property {name!r} of a container"
                raise HostError(f"query {self.id}", HResult.HCS_E_INVALID_JSON, text)
        if not types:
            return self.summary()
        self.require("query", "Created", "Running")
        wanted = dumps(schema.PropertyQuery(property_types=list(types)))
        message = gcs.GetPropertiesRequest(container_id=self.id, query=wanted)
        answer = from_json(gcs.GetPropertiesResponse, self._ask(Procedure.GET_PROPERTIES, message, "query"))
        return {**parse(answer.properties.encode()), **self.summary()}

    def refuse(self, *arguments: object) -> NoReturn:
        """Refuse what only virtual machines do."""
        text = "it is a container, not a virtual machine"
        raise HostError(f"ask {self.id}", HResult.ERROR_NOT_SUPPORTED, text)

    crash_guest: ClassVar[Callable[..., NoReturn]] = refuse
    pause: ClassVar[Callable[..., NoReturn]] = refuse
    resume: ClassVar[Callable[..., NoReturn]] = refuse
    save: ClassVar[Callable[..., NoReturn]] = refuse
    listen: ClassVar[Callable[..., NoReturn]] = refuse

    def last_closed(self) -> None:
        """Terminate the container if its document demands that; forget it if it has exited."""
        if self.state != "Stopped" and self.ends_with_last_handle:
            self._try(self.terminate)
        self._forget_if_unused()

    def exited(self, exit_type: str) -> None:
        """Stop the container: the guest reports its exit."""
        self._stop(ExitStatus(exit_type))

    def _vm_exited(self) -> None:
        self._stop(ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT))

    def _stop(self, status: ExitStatus) -> None:
        self.vm.remove_exit_hook(self._vm_exited)
        self._ended(status)
        self.over.set()
        self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        if self.state != "Stopped" or self.handles or self.vm.service.watchers.get(self.id) != self.exited:
            return
        del self.vm.service.watchers[self.id]
        self._forget(self)
        if self.vm.state == "Running":
            message = gcs.RequestBase(container_id=self.id)
            self._try(lambda: self._ask(Procedure.DELETE_CONTAINER_STATE, message, "delete the state of"))

    def _try(self, step: Callable[[], object]) -> None:
        """Log a refusal, which has no caller."""
        try:
            step()
        except HostError as e:
            self.vm.service.log.line(f"HCS: {e}", level="warning")

    def _end(self, procedure: Procedure, verb: str) -> None:
        self._ask(procedure, gcs.RequestBase(container_id=self.id), verb)
        container = self.vm.service.containers.get(self.id)
        if isinstance(container, LinuxContainer) and not container.init.started:
            # The guest reports the exit only of what has run.
            self.exited(container.exit_type)

    def _ask(self, procedure: Procedure, message: object, verb: str) -> JSON:
        self.vm.require_relay(f"{verb} container {self.id} of")
        return ask_guest(self.vm, procedure, message, f"{verb} {self.id}")
