"""Containers in the guest, from OCI specifications, through crun or runc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvm.agent.agent import Agent
    from uvm.agent.containers.service import Containers
    from uvm.agent.network import Networks

_DIRECTORY: Final = "/run/uvm/commands"
_MOUNT_INFO: Final = "/proc/self/mountinfo"


def serve_containers(
    agent: Agent, networks: Networks, start: Callable[[Callable[[], int]], int]
) -> Containers:
    """Have an agent serve containers.

    :param start: starts each process of a runtime, by calling a function that returns its id.
    """
    from uvm.agent.containers.commands import Commands
    from uvm.agent.containers.runtime import Runtime, can_pivot, find
    from uvm.agent.containers.service import Containers
    from uvm.agent.spawning import PATH

    with open(_MOUNT_INFO, encoding="utf-8", errors="replace") as file:
        pivot = can_pivot(file.read())
    found = find(PATH.split(":"))
    runtime = None if found is None else Runtime(found, pivot=pivot)
    commands = Commands(runtime, agent.children, _DIRECTORY, start)
    return Containers(agent.service, agent.children, agent.port, commands, networks, agent.bridge.notify)
