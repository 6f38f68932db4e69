"""The subcommand ``ps``: the VMs of a host."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Final

import anyio

from uvm._drawing.blocks import table
from uvm.backend import JSON, Backend
from uvm.backends import open_backend
from uvm.cli.terminal import Terminal

_COLUMNS: Final = ("Id", "Owner", "State", "RuntimeId")


def run(terminal: Terminal, given: Namespace) -> int:
    """List the VMs that a backend's host runs."""
    systems = anyio.run(_systems, open_backend(given.backend))
    if given.json:
        terminal.write_text(json.dumps(systems, indent=2))
    elif systems:
        rows = [[str(system.get(each) or "-") for each in _COLUMNS] for system in systems]
        terminal.write(table(("id", "owner", "state", "runtime id"), rows))
    else:
        terminal.write("no VM runs")
    return 0


async def _systems(backend: Backend) -> list[JSON]:
    async with backend:
        return await backend.enumerate({"Types": ["VirtualMachine"]})
