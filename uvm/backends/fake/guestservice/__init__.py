"""The compute service inside a fake VM, which speaks the GCS protocol with the host in bytes.

``programs.py`` and ``builtin.py``: what runs in the guest. ``processes.py``, ``containers.py``: its state.
``linux.py``, ``windows.py``: how requests are answered. ``service.py``: the connection. ``misbehaviour.py``:
what goes wrong with it on demand.
"""

from __future__ import annotations

from uvm.backends.fake.guestservice.builtin import BUILT_IN
from uvm.backends.fake.guestservice.containers import Container, LinuxContainer
from uvm.backends.fake.guestservice.misbehaviour import Misbehaviour, Reply
from uvm.backends.fake.guestservice.processes import GuestProcess
from uvm.backends.fake.guestservice.programs import FakeProcess, Program, Programs
from uvm.backends.fake.guestservice.service import GuestService
from uvm.backends.fake.guestservice.stdio import ProcessInput, ProcessOutput, Terminal

__all__ = [
    "BUILT_IN",
    "Container",
    "FakeProcess",
    "GuestProcess",
    "GuestService",
    "LinuxContainer",
    "Misbehaviour",
    "ProcessInput",
    "ProcessOutput",
    "Program",
    "Programs",
    "Reply",
    "Terminal",
]
