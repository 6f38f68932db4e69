"""The guest inside a fake VM: its state, and its compute service, which speaks the GCS protocol in bytes.

``state.py``: what is mounted, and the like. ``programs.py`` and ``builtin.py``: what runs in the guest.
``processes.py``, ``containers.py``: its state. ``service.py``: the connection, and who answers which request.
``linux``, ``windows``: what differs. ``misbehaviour.py``: what goes wrong with it on demand.
"""

from __future__ import annotations

from uvm.backends.fake.guest.builtin import BUILT_IN
from uvm.backends.fake.guest.containers import Container, LinuxContainer
from uvm.backends.fake.guest.misbehaviour import Misbehaviour, Reply
from uvm.backends.fake.guest.processes import GuestProcess
from uvm.backends.fake.guest.programs import FakeProcess, Program, Programs
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.stdio import ProcessInput, ProcessOutput, Terminal

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
