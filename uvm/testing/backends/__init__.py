"""Conformance of backends: what every backend has to get right, as scenarios that anybody can play.

``docs/testing-a-backend.md`` is the manual. In short: make a :class:`Rig` of a backend, entered, and of
as much control of its host as there is; then, in any test framework, for each scenario and each event loop:
where ``scenario.lacks(rig)`` names something, skip it; else ``await scenario.play(rig)``.
"""

from __future__ import annotations

from uvm.testing.backends import calls, faults, hosts, processes, requests, systems, vms
from uvm.testing.backends.fakehost import FakeHost
from uvm.testing.backends.rig import Control, HeldCalls, Host, HostCall, Network, ParkedCall, Rig
from uvm.testing.backends.scenario import Scenario, scenarios_of

__all__ = [
    "SCENARIOS",
    "Control",
    "FakeHost",
    "HeldCalls",
    "Host",
    "HostCall",
    "Network",
    "ParkedCall",
    "Rig",
    "Scenario",
]

#: All scenarios: of hosts and systems first, of the whole lives of VMs last.
SCENARIOS: tuple[Scenario, ...] = (
    scenarios_of(hosts, systems, calls, requests, processes, vms) + faults.SCENARIOS
)
