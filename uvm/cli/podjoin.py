"""One container of a pod file at this terminal: ``uvm pod -it``. The pod ends with its command."""

from __future__ import annotations

import anyio

from uvm._vm.pods.pod import Pod
from uvm.backend import JSON, Backend
from uvm.cli.errors import OutputError, UsageError, in_one_line, leaves
from uvm.cli.passthrough import pass_through
from uvm.cli.podfile import Container, PodFile
from uvm.cli.progress import Progress
from uvm.cli.run import FAILURE, NOT_STARTED, exit_status, say
from uvm.errors import GuestError, UVMError

_SHELLS = {"linux": ("sh", "-l"), "windows": ("cmd",)}


def join(pod: PodFile, backend: Backend, container_id: str | None, *, terminal: bool) -> int:
    """Run the command of a container, or a shell, with the streams of this process; return its exit status.

    :param container_id: by default the first one.
    :param terminal: it has a terminal.
    :raises UsageError: there is no such container.
    """
    ids = [each.id for each in pod.containers]
    if not ids:
        raise UsageError(f"{pod.file}: there is no container to join")
    if container_id is not None and container_id not in ids:
        raise UsageError(f"{pod.file}: there is no container {container_id}; there are {', '.join(ids)}")
    wanted = pod.containers[0 if container_id is None else ids.index(container_id)]
    try:
        return exit_status(anyio.run(_join, pod, backend, wanted, terminal))
    except (ExceptionGroup, UVMError) as failure:
        error = next(leaves(failure))
        if not isinstance(error, UVMError | OutputError):
            raise
    say(in_one_line(error))
    return FAILURE


async def _join(pod: PodFile, backend: Backend, wanted: Container, terminal: bool) -> int:
    process: JSON = {"args": [*(wanted.command or _SHELLS[pod.os])], "cwd": "/", "terminal": terminal}
    layers = [pod.layers[name] for name in wanted.layers]
    creating = Pod.create(pod.options, backend=backend, network=pod.namespace)
    with Progress("the pod comes up") as progress:
        async with backend, creating as made:
            for mapped in pod.mapped_directories:
                await made.vm.share(mapped.host, mapped.guest, read_only=mapped.read_only)
            spec = {"process": process, "linux": {}}
            try:
                container = await made.create_container(spec, layers, wanted.scratch, id=wanted.id)
                init = await container.start(stdin=True, stderr=not terminal)
            except GuestError as error:
                progress.end()
                say(in_one_line(error))
                return NOT_STARTED
            assert init is not None, "the specification has a process"
            progress.end()
            return await pass_through(init, terminal=terminal)
