"""The VM as its guest sees it."""

from __future__ import annotations

from typing import Literal, Protocol

from uvm._names import GuestOS
from uvm.backend import JSON
from uvm.backends.fake.calls import Machine
from uvm.backends.fake.guest.state import FakeGuest
from uvm.backends.fake.streams import FakeStream


class GuestMachine(Machine, Protocol):
    """The VM, as its own guest sees it (:class:`~uvm.backends.fake.FakeVM`)."""

    @property
    def id(self) -> str:
        """The id of the VM."""

    @property
    def os(self) -> GuestOS:
        """The operating system of the guest."""

    @property
    def architecture(self) -> Literal["amd64", "arm64"]:
        """The architecture of the processors."""

    @property
    def relays(self) -> bool:
        """Whether HCS itself is connected to the guest."""

    @property
    def state(self) -> str:
        """Whether its processors run: ``Running``, or something else."""

    @property
    def guest(self) -> FakeGuest:
        """The state of the guest."""

    async def until_running(self) -> None:
        """Wait until its processors run; for ever if it has exited."""

    async def until_listening(self, service_id: str) -> None:
        """Wait until the host listens to a service."""

    def dial(self, service_id: str) -> FakeStream:
        """Connect to a service of the host; ConnectionRefusedError if the host does not listen."""

    async def dial_when_listening(self, service_id: str) -> FakeStream:
        """Connect to a service of the host once it listens."""

    def apply_in_guest(self, request: JSON) -> None:
        """Carry out a request that has reached the guest."""

    def shutdown(self) -> None:
        """Exit in order."""
