"""Conformance of backends: the requirements on every backend, as scenarios for any test framework.

``docs/testing-a-backend.md`` is the manual. In short: make a :class:`Rig` of an entered backend and of
whatever control of its host there is; then, for each scenario and each event loop, skip it if
``scenario.lacks(rig)`` names something, and otherwise ``await scenario.play(rig)``.
"""

from __future__ import annotations

from uvm.testing.backends import calls, changes, faults, hosts, processes, requests, systems, vms
from uvm.testing.backends.fakehost import FakeHost
from uvm.testing.backends.rig import Control, HeldCalls, Host, HostCall, Network, ParkedCall, Rig
from uvm.testing.backends.scenario import Level, Scenario, scenarios_of

__all__ = [
    "SCENARIOS",
    "Control",
    "FakeHost",
    "HeldCalls",
    "Host",
    "HostCall",
    "Level",
    "Network",
    "ParkedCall",
    "Rig",
    "Scenario",
]

#: All scenarios: first of hosts and systems, last of VMs from creation to exit.
SCENARIOS: tuple[Scenario, ...] = (
    *scenarios_of(hosts, systems, calls, requests),
    *scenarios_of(processes, vms, changes, faults, answers=True),
)
