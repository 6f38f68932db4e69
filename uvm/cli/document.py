"""The subcommand ``document``: the create document of the VM that a file describes."""

from __future__ import annotations

import json
from argparse import Namespace

import anyio

from uvm._vm.creation import build_plan
from uvm.backend import JSON, Backend
from uvm.cli.podfile import read_pod_file
from uvm.cli.podhost import open_host
from uvm.cli.terminal import Terminal
from uvm.options import LCOWOptions, WCOWOptions


def run(terminal: Terminal, given: Namespace) -> int:
    """Print the document as JSON.

    :raises UsageError: the file is wrong.
    """
    file = read_pod_file(given.file)
    document = anyio.run(_document, file.options, open_host(file, given.backend))
    terminal.write_text(json.dumps(document, indent=2))
    return 0


async def _document(options: LCOWOptions | WCOWOptions, backend: Backend) -> JSON:
    async with backend:
        return (await build_plan(options, backend, await backend.host())).document
