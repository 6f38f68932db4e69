"""The subcommands ``run`` and ``shell``: one command in a VM of its own, which ends with it.

Exit status: that of the command; 127 if it cannot be started, 124 on a timeout, 125 if the VM fails.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from contextlib import AsyncExitStack

import anyio

from uvm._guest.specs import LINUX_ENVIRONMENT
from uvm._names import host_path
from uvm._vm.hostnamespaces import create_namespace
from uvm._vm.vm import UtilityVM
from uvm.backend import Backend
from uvm.backends import open_backend
from uvm.cli.attachments import Attachment
from uvm.cli.errors import UsageError, in_one_line, leaves
from uvm.cli.passthrough import has_terminal, pass_through
from uvm.cli.progress import Progress
from uvm.cli.terminal import Terminal
from uvm.devices.scsi import Mount
from uvm.errors import GuestError, HostPathError
from uvm.options import LCOWOptions

#: The exit status if uvm itself fails, as that of docker.
FAILURE = 125
_TIMED_OUT, NOT_STARTED = 124, 127


def run(terminal: Terminal, given: Namespace) -> int:
    """Run the command, or a shell, in a VM; return its exit status."""
    command = given.words[given.words[:1] == ["--"] :]
    if not command and given.command == "run":
        raise UsageError("run: the command is missing; for a shell: uvm shell")
    try:
        status = anyio.run(_run, open_backend(given.backend), command or ["sh", "-l"], given)
    except ExceptionGroup as group:
        # The first failure is what ended the others.
        raise next(leaves(group)) from None
    return exit_status(status)


def exit_status(status: int) -> int:
    """Return the exit status for that of a guest, which may be larger; failure stays failure."""
    return status & 0xFF or bool(status)


async def _run(backend: Backend, command: list[str], given: Namespace) -> int:
    options = LCOWOptions(memory_mb=max(given.memory >> 20, 1), processors=given.cpus, owner="uvm run")
    # A namespace of the host ends after its VM.
    async with backend, AsyncExitStack() as namespaces:
        await _look_for(backend, [*given.disk, *given.share])
        with anyio.move_on_after(given.timeout), Progress("the VM boots") as progress:
            async with UtilityVM.create(options, backend=backend) as vm:
                await vm.start()
                await _attach(vm, given)
                if given.network:
                    namespace = await namespaces.enter_async_context(create_namespace(backend))
                    await namespace.create_endpoint(given.network)
                    await vm.network.setup(namespace.id)
                progress.end()
                return await _execute(vm, command, given)
    say(f"the command was ended: its {given.timeout:g} seconds have run out")
    return _TIMED_OUT


async def _look_for(backend: Backend, attachments: list[Attachment]) -> None:
    """Look for what will be attached, before a VM boots for a path that was misspelt.

    :raises HostPathError: it is not there.
    """
    host = await backend.host()
    for each in attachments:
        path = host_path(each.on(host), host.paths)
        if await backend.files.stat(path) is None:
            raise HostPathError(path, "no such file or directory on the host")


async def _attach(vm: UtilityVM, given: Namespace) -> None:
    """Attach what the command line names; it all ends with the VM."""
    for disk in given.disk:
        mount = Mount(guest_path=disk.place(vm.host), options=("ro",) if disk.read_only else ())
        await vm.scsi.attach(disk.on(vm.host), read_only=disk.read_only, mount=mount)
    for share in given.share:
        await vm.plan9.add(share.on(vm.host), share.place(vm.host), read_only=share.read_only)


async def _execute(vm: UtilityVM, command: list[str], given: Namespace) -> int:
    terminal = has_terminal() if given.terminal is None else given.terminal
    try:
        process = await vm.open_process(
            command,
            env={**LINUX_ENVIRONMENT, **_term(terminal), **dict(given.env)},
            cwd=given.cwd,
            terminal=terminal,
            stderr=not terminal,
        )
    except GuestError as error:
        say(in_one_line(error))
        return NOT_STARTED
    async with process:
        return await pass_through(process, terminal=terminal)


def _term(terminal: bool) -> dict[str, str]:
    return {"TERM": os.environ.get("TERM", "linux")} if terminal else {}


def say(message: str) -> None:
    """Write a message on the error stream: the output is the command's."""
    Terminal.of(sys.stderr).write(f"uvm: {message}")
