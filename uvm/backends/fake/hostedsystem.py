"""Containers that HCS hosts in a fake VM: compute systems of their own, carried out by the VM's guest.

HCS asks the guest for them in the same messages as anybody else does who is connected to it, and the guest
tells HCS of their exit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, Literal, NoReturn

from attrs import define, field

from uvm._async import Flag
from uvm._wire.frames import Procedure, parse
from uvm.backend import JSON
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.backends.fake.hosted import HostedProcess, find_hosted, relayed, start_hosted
from uvm.backends.fake.vm import FakeVM
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult
from uvm.schema import properties as schema
from uvm.schema.gcs import (
    ContainerCreateRequest,
    ContainerModifySettingsRequest,
    GetPropertiesRequest,
    GetPropertiesResponse,
    RequestBase,
)
from uvm.schema.json import dumps, from_json, to_json
from uvm.schema.system import ComputeSystem

State = Literal["Created", "Running", "Stopped"]

#: The properties that the guest is asked for.
_OF_THE_GUEST: Final = frozenset({schema.PROPERTY_STATISTICS, schema.PROPERTY_PROCESS_LIST})


@define(eq=False)
class HostedSystem:
    """A container that HCS hosts in a VM. Every method is one atomic step, and raises HostError if refused.

    :ivar vm: the VM that hosts it.
    :ivar ends_with_last_handle: it is terminated when its last handle is closed.
    :ivar handles: how many handles are open.
    :ivar exit_status: how it ended; None while it has not.
    :ivar over: it has ended.
    """

    vm: FakeVM = field(repr=False)
    id: str
    owner: str
    ends_with_last_handle: bool
    _forget: Callable[[HostedSystem], None] = field(repr=False)
    state: State = field(default="Created", init=False)
    handles: int = field(default=0, init=False)
    exit_status: ExitStatus | None = field(default=None, init=False)
    over: Flag = field(factory=Flag, init=False, repr=False)

    @classmethod
    def create(
        cls, vm: FakeVM, system_id: str, document: ComputeSystem, forget: Callable[[HostedSystem], None]
    ) -> HostedSystem:
        """Have the guest create it.

        :param forget: called when it has ended and no handle is open.
        :raises HostError: HCS_E_INVALID_JSON, HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION, HCS_E_INVALID_STATE,
            or what the guest refuses with.
        """
        operation = f"create {system_id}"
        vm.require_relay("create a container in")
        if not isinstance(document.hosted_system, dict):
            raise HostError(operation, HResult.HCS_E_INVALID_JSON, "HostedSystem should be an object")
        hosted = cls(vm, system_id, document.owner, document.should_terminate_on_last_handle_closed, forget)
        config = dumps(document.hosted_system)
        request = ContainerCreateRequest(container_id=system_id, container_config=config)
        hosted._ask(Procedure.CREATE, request, "create")
        vm.service.watchers[system_id] = hosted.exited
        vm.add_exit_hook(hosted._vm_exited)
        return hosted

    def __str__(self) -> str:
        return f"container {self.id} of {self.vm.id} ({self.state})"

    def require(self, operation: str, *states: State) -> None:
        """Refuse in other states, as :meth:`FakeVM.require` does."""
        if self.state in states:
            return
        if self.state == "Stopped":
            text = f"exit: {self.exit_status}"
            raise HostError(f"{operation} {self.id}", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, text)
        raise HostError(f"{operation} {self.id}", HResult.HCS_E_INVALID_STATE, f"it is {self.state}")

    def start(self) -> None:
        """Start it: Created to Running."""
        self.require("start", "Created")
        self._ask(Procedure.START, RequestBase(container_id=self.id), "start")
        self.state = "Running"

    def shutdown(self) -> None:
        """Have the guest end it in order; it has ended when the guest says so."""
        self.require("shut down", "Running")
        self._end(Procedure.SHUTDOWN_GRACEFUL, "shut down")

    def terminate(self) -> None:
        """Have the guest end it at once; it has ended when the guest says so."""
        self.require("terminate", "Created", "Running")
        self._end(Procedure.SHUTDOWN_FORCED, "terminate")

    def modify(self, request: Any) -> None:
        """Have the guest carry out a ``ModificationRequest`` on it."""
        self.require("modify", "Created", "Running")
        message = ContainerModifySettingsRequest(container_id=self.id, request=request)
        self._ask(Procedure.MODIFY_SETTINGS, message, "modify")

    def summary(self) -> JSON:
        """Return what an enumeration and a query without types tell of it."""
        properties = schema.Properties(
            id=self.id,
            system_type="Container",
            runtime_os_type=self.vm.os.capitalize(),
            name=self.id,
            owner=self.owner,
            hosting_system_id=self.vm.id,
            state=self.state,
            stopped=self.state == "Stopped",
            exit_type=self.exit_status.exit_type if self.exit_status is not None else "",
        )
        return to_json(properties)

    def query(self, types: tuple[str, ...]) -> JSON:
        """Return properties: those that the guest has, on top of the summary.

        :raises HostError: HCS_E_INVALID_JSON for a type that is not known; or what the guest refuses with.
        """
        for name in types:
            if name not in _OF_THE_GUEST:
                text = f"the fake knows no property {name!r} of a container"
                raise HostError(f"query {self.id}", HResult.HCS_E_INVALID_JSON, text)
        if not types:
            return self.summary()
        self.require("query", "Created", "Running")
        wanted = dumps(schema.PropertyQuery(property_types=list(types)))
        message = GetPropertiesRequest(container_id=self.id, query=wanted)
        answer = from_json(GetPropertiesResponse, self._ask(Procedure.GET_PROPERTIES, message, "query"))
        return {**parse(answer.properties.encode()), **self.summary()}

    def create_process(self, document: JSON) -> HostedProcess:
        """Start a process in it (``ProcessParameters``, in a Linux container with ``OciProcess``)."""
        self.require("create a process in", "Running")
        return start_hosted(self.vm, document, self.id)

    def open_process(self, pid: int) -> HostedProcess:
        """Find a process of it to open; ERROR_NOT_FOUND where there is none."""
        self.require(f"open process {pid} of", "Running")
        return find_hosted(self.vm, pid, self.id)

    def refuse(self, *arguments: object) -> NoReturn:
        """Refuse what only virtual machines do."""
        raise HostError(
            f"ask {self.id}", HResult.ERROR_NOT_SUPPORTED, "it is a container, not a virtual machine"
        )

    crash_guest: ClassVar[Callable[..., NoReturn]] = refuse
    pause: ClassVar[Callable[..., NoReturn]] = refuse
    resume: ClassVar[Callable[..., NoReturn]] = refuse
    save: ClassVar[Callable[..., NoReturn]] = refuse
    listen: ClassVar[Callable[..., NoReturn]] = refuse

    def opened(self) -> None:
        """Take note of a handle."""
        self.handles += 1

    def closed(self) -> None:
        """Take note of a handle that was closed."""
        self.handles -= 1
        if self.handles:
            return
        if self.state != "Stopped" and self.ends_with_last_handle:
            # Nobody is there to be told of a refusal.
            self._try(self.terminate)
        self._forget_if_unused()

    def exited(self, exit_type: str) -> None:
        """The guest says that it has exited."""
        self._stop(ExitStatus(exit_type))

    def _vm_exited(self) -> None:
        self._stop(ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT))

    def _stop(self, status: ExitStatus) -> None:
        self.vm.remove_exit_hook(self._vm_exited)
        self.exit_status = status
        self.state = "Stopped"
        self.over.set()
        self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        if self.state != "Stopped" or self.handles or self.vm.service.watchers.get(self.id) != self.exited:
            return
        del self.vm.service.watchers[self.id]
        self._forget(self)
        if self.vm.state == "Running":
            message = RequestBase(container_id=self.id)
            self._try(partial(self._ask, Procedure.DELETE_CONTAINER_STATE, message, "delete the state of"))

    def _try(self, step: Callable[[], object]) -> None:
        try:
            step()
        except HostError as e:
            self.vm.service.log.line(f"HCS: {e}", level="warning")

    def _end(self, procedure: Procedure, verb: str) -> None:
        self._ask(procedure, RequestBase(container_id=self.id), verb)
        container = self.vm.service.containers.get(self.id)
        if isinstance(container, LinuxContainer) and not container.init.started:
            # The guest tells of the exit only of what has run.
            self.exited(container.exit_type)

    def _ask(self, procedure: Procedure, message: object, verb: str) -> JSON:
        operation = f"{verb} {self.id}"
        self.vm.require_relay(f"{verb} container {self.id} of")
        return relayed(operation, lambda: self.vm.service.ask(procedure, message, operation))
