"""What a suite needs of a backend under test: the backend, and control of the host that answers it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from attrs import Factory, frozen

from uvm._vm.vm import UtilityVM
from uvm.backend import JSON, Backend, ByteStream
from uvm.errors import NotSupportedError
from uvm.hresult import HResult
from uvm.options import LCOWOptions, WCOWOptions


class Control(enum.Enum):
    """What a rig can make happen, or boot. A scenario says which of these it needs."""

    #: Linux VMs boot: ``Rig.linux`` has options for one.
    LINUX = "Linux VMs"
    #: Windows VMs boot: ``Rig.windows`` has options for one.
    WINDOWS = "Windows VMs"
    #: The guests have ``echo``, ``cat``, ``env``, ``sleep``, ``true`` and ``false`` on their path.
    PROGRAMS = "programs in the guests"
    #: :meth:`Host.put_file` and its kind.
    FILES = "files of the host"
    #: :meth:`Host.put_link`.
    LINKS = "links on the host"
    #: :meth:`Host.put_network`.
    NETWORKS = "networks of the host"
    #: :meth:`Host.put_device`.
    DEVICES = "PCI devices of the host"
    #: :meth:`Host.crash`.
    EXIT = "a VM that exits by itself"
    #: :meth:`Host.dial`.
    DIAL = "a guest that dials"
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

    What counts as one is what HCS or HCN answers: ``create``, ``open``, ``enumerate``, ``start``,
    ``shutdown``, ``terminate``, ``crash``, ``pause``, ``resume``, ``save``, ``modify``, ``properties``,
    ``grant``, ``revoke``, ``service properties``; of processes ``create process``, ``open process``,
    ``process properties``, ``signal process``, ``terminate process`` and ``modify process``; and those of the
    network, whose names no scenario gives. Closing a handle and listening are none:
    the host cannot refuse the one, and the other is a socket's affair on HCS. Nor are requests to the guest,
    but those that the host relays.

    :ivar resource: the resource path of a ``modify``, the type of a request to the guest that is relayed, or
        the path that access is about.
    :ivar request_type: its request type.
    """

    operation: str
    system_id: str = ""
    resource: str = ""
    request_type: str = ""

    def __str__(self) -> str:
        words = (self.operation, self.request_type, self.resource)
        return " ".join(word for word in words if word)


class ParkedCall(Protocol):
    """A call that has reached the host and waits there. One of these is called, once."""

    def proceed(self) -> None:
        """Let the host carry it out and answer."""

    def refuse(self, code: int = HResult.E_FAIL) -> None:
        """Refuse it: it fails later, after it had been accepted. On HCS, the operation completes with it."""

    def lose(self, *, applied: bool) -> None:
        """Lose the answer, with the change made or not: who waits gets an UnknownOutcomeError."""


class HeldCalls(Protocol):
    """The calls that are parked."""

    @property
    def pending(self) -> Sequence[ParkedCall]:
        """Those that wait, in the order in which they came."""

    async def wait(self, count: int = 1) -> Sequence[ParkedCall]:
        """Wait until so many wait, and give them."""

    def close(self) -> None:
        """Park no more, and let go on what waits."""


@frozen
class Network:
    """A network namespace of the host.

    :ivar endpoints: the HCN documents of the endpoints that are in it; each has an ``ID`` and a ``Name``.
    """

    id: str
    endpoints: tuple[JSON, ...]


class Host:
    """Control of the host that answers the backend under test.

    Where the backend is HCS over a stand-in for its DLLs, that is whoever answers behind the stand-in, not
    the backend. Derive from it, override what can be done, and name that in ``controls``; scenarios that
    need more are skipped.

    :ivar controls: what can be done.
    :ivar blocking: operations (of :class:`HostCall`) whose caller waits for the answer though it is
        cancelled: on HCS those that take no operation, as a thread is in the function. They are
        not held for ever.
    """

    controls: frozenset[Control] = frozenset()
    blocking: frozenset[str] = frozenset()

    # Putting things there.

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        """Put a file on the host, over what is there, and give its path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put files")

    def put_directory(self, name: str) -> str:
        """Put a directory on the host and give its path; nothing happens where it exists."""
        raise NotSupportedError(f"{type(self).__name__} cannot put directories")

    def put_link(self, name: str, target: str) -> str:
        """Put a symbolic link, or a junction, to a path on the host, and return its path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put links")

    def path_of(self, name: str) -> str:
        """Give the path that a file of that name would have; nothing is put there."""
        raise NotSupportedError(f"{type(self).__name__} has no place for files")

    def put_network(self, endpoints: int) -> Network:
        """Put a namespace with so many endpoints on the host."""
        raise NotSupportedError(f"{type(self).__name__} cannot put networks")

    def put_device(self, name: str) -> str:
        """Put a PCI device on the host that can be assigned, and give its instance path."""
        raise NotSupportedError(f"{type(self).__name__} cannot put devices")

    # Making things happen.

    def crash(self, system_id: str) -> None:
        """Have a system exit by itself, as when its worker process fails; nothing where it is not there."""
        raise NotSupportedError(f"{type(self).__name__} cannot crash systems")

    async def dial(self, system_id: str, service_id: str) -> ByteStream:
        """Connect to a service of the host as the guest of a running system does; give the guest's end.

        :raises ConnectionRefusedError: nobody listens.
        """
        raise NotSupportedError(f"{type(self).__name__} cannot dial")

    def calls(self) -> Sequence[HostCall]:
        """Give the calls that reached the host, all since the rig was made, oldest first."""
        raise NotSupportedError(f"{type(self).__name__} does not tell calls")

    def refuse(self, code: int = HResult.E_FAIL, *, operation: str = "", nth: int = 0) -> None:
        """Have calls fail at once, with no change made. On HCS, the function itself returns the code.

        :param operation: only calls of this kind; any by default.
        :param nth: only this one of them, counted from 1 and from now; all by default.
        """
        raise NotSupportedError(f"{type(self).__name__} cannot refuse calls")

    def hold(self, *, operation: str = "", nth: int = 0) -> HeldCalls:
        """Park calls: they are accepted, and complete when the scenario says so, or never.

        When a system exits, calls to it that are parked go on, and find it gone. One whose caller is
        cancelled may or may not be carried out when it is let go on; it can always be refused.
        """
        raise NotSupportedError(f"{type(self).__name__} cannot hold calls")

    def answer_twice(self, *, operation: str = "", nth: int = 0) -> None:
        """Have calls complete twice: on HCS, the completion callback is called once more."""
        raise NotSupportedError(f"{type(self).__name__} cannot answer twice")

    def undisturbed(self) -> None:
        """Take back what :meth:`refuse`, :meth:`hold` and :meth:`answer_twice` said of calls to come."""
        raise NotSupportedError(f"{type(self).__name__} cannot disturb calls")

    # Looking.

    def leftovers(self) -> list[str]:
        """Say what is left on the host that systems had: the systems, handles, access, devices, endpoints."""
        raise NotSupportedError(f"{type(self).__name__} cannot tell what is left")

    def differences(self, vm: UtilityVM) -> list[str]:
        """Compare what the ledgers of a VM at rest say with what its machine and its guest have."""
        raise NotSupportedError(f"{type(self).__name__} cannot compare")


@frozen
class Rig:
    """A backend under test, entered, and what a scenario can do around it. Make a new one for each scenario.

    :ivar backend: the backend.
    :ivar host: control of the host that answers.
    :ivar linux: options of a Linux VM that boots there; ``id`` and the like are the scenario's.
    :ivar windows: those of a Windows VM.
    :ivar patience_seconds: how long a scenario may take. It fails then: something hangs. Closing a VM may
        take half of it for each of its steps.
    :ivar grace_seconds: the same where a call hangs on purpose that the closing waits for: the scenario takes
        as long. What does not hang there has to be done in it.
    """

    backend: Backend
    host: Host = Factory(Host)
    linux: LCOWOptions | None = None
    windows: WCOWOptions | None = None
    patience_seconds: float = 30.0
    grace_seconds: float = 0.5

    @property
    def controls(self) -> frozenset[Control]:
        """What it can do."""
        boots = {Control.LINUX: self.linux, Control.WINDOWS: self.windows}
        return self.host.controls | {control for control, options in boots.items() if options is not None}
