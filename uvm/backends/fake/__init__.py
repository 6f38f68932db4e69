"""The in-memory backend: a faithful fake of the Host Compute Service and of the guests of its VMs.

It is meant for tests, of this library and of what is built on it; ``docs/fake.md`` is its manual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvm._lazy import names_from
from uvm.backends.fake.backend import FakeBackend
from uvm.backends.fake.calls import Call
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.exchange import Latency
from uvm.backends.fake.faults import Faults
from uvm.backends.fake.files import FakeFiles
from uvm.backends.fake.gates import Gate, Parked
from uvm.backends.fake.guest.containers import Container, LinuxContainer
from uvm.backends.fake.guest.misbehaviour import Misbehaviour
from uvm.backends.fake.guest.processes import GuestProcess
from uvm.backends.fake.guest.programs import FakeProcess, Program, Programs
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.state import FakeGuest, Mount
from uvm.backends.fake.host import Checks
from uvm.backends.fake.hostedsystem import HostedSystem
from uvm.backends.fake.hostprocess import FakeHostProcess
from uvm.backends.fake.network import FakeNetwork
from uvm.backends.fake.pipes import FakePipes
from uvm.backends.fake.request_log import Entry, RequestLog
from uvm.backends.fake.rules import Rule
from uvm.backends.fake.streams import FakeListener, FakeStream
from uvm.backends.fake.system import FakeHostedSystem, FakeSystem
from uvm.backends.fake.tree import DeviceTree
from uvm.backends.fake.vm import FakeVM

if TYPE_CHECKING:
    from uvm.backends.fake.guest.linux.mounts import LinuxGuest
    from uvm.backends.fake.guest.windows.mounts import WindowsGuest
else:
    __getattr__, __dir__ = names_from(
        __name__,
        {
            "uvm.backends.fake.guest.linux.mounts": "LinuxGuest",
            "uvm.backends.fake.guest.windows.mounts": "WindowsGuest",
        },
    )

__all__ = [
    "Call",
    "Checks",
    "Container",
    "DeviceTree",
    "Entry",
    "FakeBackend",
    "FakeClock",
    "FakeFiles",
    "FakeGuest",
    "FakeHostProcess",
    "FakeHostedSystem",
    "FakeListener",
    "FakeNetwork",
    "FakePipes",
    "FakeProcess",
    "FakeStream",
    "FakeSystem",
    "FakeVM",
    "Faults",
    "Gate",
    "GuestProcess",
    "GuestService",
    "HostedSystem",
    "RequestLog",
    "Latency",
    "LinuxContainer",
    "LinuxGuest",
    "Misbehaviour",
    "Mount",
    "Parked",
    "Program",
    "Programs",
    "Rule",
    "WindowsGuest",
]
