"""What the suite needs of a backend under test: the backend, and control of its host."""

from __future__ import annotations

import enum
import os
import secrets
from collections.abc import Sequence
from typing import Final, Protocol

from attrs import Factory, frozen

from uvm._repr import Value, showing
from uvm._vm.vm import UtilityVM
from uvm.backend import JSON, Backend, ByteStream
from uvm.errors import NotSupportedError
from uvm.hresult import HResult
from uvm.options import LCOWOptions, WCOWOptions

#: What the ids of all that any run makes begin with: see :attr:`Rig.run`.
RUNS: Final = "uvm-conformance-"


def new_run() -> str:
    """Return what the ids of a run begin with; no other run has it."""
    return f"{RUNS}{os.getpid()}-{secrets.token_hex(4)}"


class Control(enum.Enum):
    """What a rig can boot, or make the host do. A scenario states which of these it needs."""

    #: Linux VMs boot: ``Rig.linux`` has options for one.
    LINUX = "Linux VMs"
    #: Windows VMs boot: ``Rig.windows`` has options for one.
    WINDOWS = "Windows VMs"
    #: The guests have ``echo``, ``cat``, ``env``, ``sleep``, ``true`` and ``false`` on their path.
    PROGRAMS = "programs in the guests"
    #: The guests enforce security policies; they are given one that allows all.
    POLICIES = "guests with a security policy"
    #: :meth:`Host.put_file` and the methods like it.
    FILES = "files of the host"
    #: :meth:`Host.put_link`.
    LINKS = "links on the host"
    #: :meth:`Host.put_network`.
    NETWORKS = "networks of the host"
    #: :meth:`Host.pipe_path`.
    PIPES = "pipes of the host"
    #: :meth:`Host.put_device`.
    DEVICES = "PCI devices of the host"
    #: The processors of VMs are limited and in groups, and running containers have other resources.
    UPDATES = "updates of VMs and containers that run"
    #: :meth:`Host.crash`.
    EXIT = "a VM that exits by itself"
    #: :meth:`Host.dial`.
    DIAL = "a guest that connects"
    #: :meth:`Host.calls`, :meth:`Host.refuse`, :meth:`Host.hold` and :meth:`Host.undisturbed`.
    CALLS = "calls that are disturbed"
    #: :meth:`ParkedCall.lose`.
    LOSS = "answers that are lost"
    #: :meth:`Host.answer_twice`.
    TWICE = "calls that complete twice"
    #: :meth:`Host.leftovers` and :meth:`Host.differences`.
    AUDIT = "an audit of the host"


@frozen
class HostCall:
    """A call that reached the host.

    Only calls that HCS or HCN answers count: ``create``, ``open``, ``enumerate``, ``start``, ``shutdown``,
    ``terminate``, ``crash``, ``pause``, ``resume``, ``save``, ``modify``, ``properties``, ``grant``,
    ``revoke``, ``service properties``, ``modify service``; of processes ``create process``, ``open process``,
    ``process properties``, ``signal process``, ``terminate process`` and ``modify process``; and those of the
    network, which no scenario names. Closing a handle does not count, as the host cannot refuse it, nor does
    listening, which on HCS is the matter of a socket, nor requests to the guest that the host does not relay.

    :ivar resource: the resource path of a ``modify``, the type of a relayed request to the guest, or the path
        of a grant or revocation.
    :ivar request_type: the request type of a ``modify``.
    """

    operation: str
    system_id: str = ""
    resource: str = ""
    request_type: str = ""

    def __str__(self) -> str:
        words = (self.operation, self.request_type, self.resource)
        return " ".join(word for word in words if word)


class ParkedCall(Protocol):
    """A call that has reached the host and waits there. One of its methods is called, once."""

    def proceed(self) -> None:
        """Let the host carry it out and answer."""

    def refuse(self, code: int = HResult.E_FAIL) -> None:
        """Refuse it after it was accepted. On HCS, the operation completes with the error."""

    def lose(self, *, applied: bool) -> None:
        """Lose the answer, with or without the change: the caller gets an UnknownOutcomeError."""


class HeldCalls(Protocol):
    """Calls that are parked."""

    @property
    def pending(self) -> Sequence[ParkedCall]:
        """The waiting calls, in the order of their arrival."""

    async def wait(self, count: int = 1) -> Sequence[ParkedCall]:
        """Wait until so many calls wait, and return them."""

    def close(self) -> None:
        """Stop parking calls, and let the waiting ones proceed."""


@frozen(repr=False)
class Network(Value):
    """A network namespace of the host.

    :ivar endpoints: the HCN documents of its endpoints; each has an ``ID`` and a ``Name``.
    :ivar host_network: the id of an HCN network in which endpoints can be created.
    """

    id: str
    endpoints: tuple[JSON, ...]
    host_network: str


@showing("controls")
class Host:
    """Control of the host of the backend under test.

    If the backend is HCS over a stand-in for its DLLs, the host is what answers behind the stand-in, not the
    backend. Derive from this class, override what can be done, and state it in ``controls``; scenarios that
    need more are skipped.

    :ivar controls: what can be done.
    :ivar blocking: the operations (of :class:`HostCall`) whose caller waits for the answer even if cancelled:
        on HCS those that take no HCS operation, because a thread is in the function. They are not held for
        ever.
    """

    controls: frozenset[Control] = frozenset()
    blocking: frozenset[str] = frozenset()

    # Set-up.

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        """Put a file on the host, replacing what is there, and return its path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put files")

    def put_directory(self, name: str) -> str:
        """Make a directory on the host unless it exists, and return its path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put directories")

    def put_link(self, name: str, target: str) -> str:
        """Put a symbolic link, or a junction, to a path on the host, and return its path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put links")

    def path_of(self, name: str) -> str:
        """Return the path that a file of that name would have, without making it."""
        raise NotSupportedError(f"{type(self).__name__} has no paths of files")

    def pipe_path(self, name: str) -> str:
        """Return the path of a pipe of that name, at which nothing listens."""
        raise NotSupportedError(f"{type(self).__name__} has no paths of pipes")

    def put_network(self, endpoints: int) -> Network:
        """Put a namespace with so many endpoints on the host."""
        raise NotSupportedError(f"{type(self).__name__} cannot put networks")

    def put_device(self, name: str) -> str:
        """Put an assignable PCI device on the host, and return its instance path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put devices")

    # Events.

    def crash(self, system_id: str) -> None:
        """Have a system exit by itself, as if its worker process failed; nothing if it does not exist."""
        raise NotSupportedError(f"{type(self).__name__} cannot crash systems")

    async def dial(self, system_id: str, service_id: str) -> ByteStream:
        """Connect to a service of the host like the guest of a running system, and return the guest's end.

        :raises ConnectionRefusedError: the host does not listen on the service.
        """
        raise NotSupportedError(f"{type(self).__name__} cannot dial")

    def calls(self) -> Sequence[HostCall]:
        """Return the calls that have reached the host since the rig was made, oldest first."""
        raise NotSupportedError(f"{type(self).__name__} does not record calls")

    def refuse(self, code: int = HResult.E_FAIL, *, operation: str = "", nth: int = 0) -> None:
        """Have calls fail at once, without any change. On HCS, the function itself returns the code.

        :param operation: only calls of this operation; by default of any.
        :param nth: only the nth of them from now on, from 1; by default all.
        """
        raise NotSupportedError(f"{type(self).__name__} cannot refuse calls")

    def hold(self, *, operation: str = "", nth: int = 0) -> HeldCalls:
        """Park calls: they are accepted, and complete when the scenario lets them, or never.

        When a system exits, its parked calls proceed, and find it gone. A call whose caller was cancelled may
        or may not be carried out when it proceeds; it can always be refused.
        """
        raise NotSupportedError(f"{type(self).__name__} cannot hold calls")

    def answer_twice(self, *, operation: str = "", nth: int = 0) -> None:
        """Have calls complete twice: on HCS, the completion callback is called once more."""
        raise NotSupportedError(f"{type(self).__name__} cannot answer twice")

    def undisturbed(self) -> None:
        """Undo :meth:`refuse`, :meth:`hold` and :meth:`answer_twice` for future calls."""
        raise NotSupportedError(f"{type(self).__name__} cannot disturb calls")

    # Inspection.

    def leftovers(self) -> list[str]:
        """Return what systems have left on the host: systems, handles, access, devices, endpoints."""
        raise NotSupportedError(f"{type(self).__name__} cannot list leftovers")

    def differences(self, vm: UtilityVM) -> list[str]:
        """Return the differences between the ledgers of a VM at rest and its host and guest."""
        raise NotSupportedError(f"{type(self).__name__} cannot compare")


@frozen(repr=False)
class Rig(Value):
    """A backend under test, entered, and the means of a scenario. Make a new one for each scenario.

    :ivar backend: the backend.
    :ivar host: control of its host.
    :ivar linux: options of a Linux VM that boots there; a scenario sets ``id`` and the like.
    :ivar windows: options of a Windows VM.
    :ivar timeout_seconds: how long a scenario may take before it fails as hanging. Each step of closing a VM
        may take half of it.
    :ivar grace_seconds: how long each such step may take if a call hangs on purpose: the scenario waits that
        long.
    :ivar run: what the ids and owners of its systems begin with. It is of this rig alone, so that any number
        of runs may play on one host at once.
    """

    backend: Backend
    host: Host = Factory(Host)
    linux: LCOWOptions | None = None
    windows: WCOWOptions | None = None
    timeout_seconds: float = 30.0
    grace_seconds: float = 0.5
    run: str = Factory(new_run)

    def own(self, name: str) -> str:
        """Return an id, or an owner, that only systems of this rig have."""
        return f"{self.run}-{name}"

    @property
    def controls(self) -> frozenset[Control]:
        """What the rig can do."""
        boots = {Control.LINUX: self.linux, Control.WINDOWS: self.windows}
        return self.host.controls | {control for control, options in boots.items() if options is not None}
