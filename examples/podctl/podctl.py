r"""Bring up a pod of containers in a VM, run commands in it, list its devices: a tool on ``uvm.sync``.

A pod is described by a JSON file::

    {"vm": {"memory_mb": 1024},
     "containers": {"web": {"layers": ["C:\\layers\\web.vhd"], "scratch": "C:\\scratch\\web.vhdx",
                            "spec": {"process": {"args": ["sleep", "3600"], "cwd": "/"}, "linux": {}}}}}

It exists as long as the command runs. All that must not outlive it is held by a ``with``, so that ctrl-C, an
error and the end of the program have one path. ``test_podctl.py`` tests it without a hypervisor.
"""

from __future__ import annotations

import json
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvm
import uvm.sync

INTERRUPTED = 130


class PodFileError(Exception):
    """The file of a pod cannot be used."""


@contextmanager
def running(path: Path, backend: uvm.Backend | str) -> Iterator[uvm.sync.Pod]:
    """Bring up the pod of a file, with all of its containers, and end it with the block."""
    document = read(path)
    options = uvm.LCOWOptions(**document.get("vm", {}))
    with uvm.sync.Pod.create(options, backend=backend) as pod, ExitStack() as containers:
        for name, each in document["containers"].items():
            container = pod.run_container(each["spec"], each["layers"], each["scratch"], id=name)
            containers.enter_context(container)
        yield pod


def read(path: Path) -> dict[str, Any]:
    """Return what a file says of a pod.

    :raises PodFileError: it cannot be read, or lacks what each container has.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        for name, each in document["containers"].items():
            if missing := {"spec", "layers", "scratch"} - each.keys():
                raise PodFileError(f"{path}: container {name} has no {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise PodFileError(f"{path} is no file of a pod: {error!r}") from error
    return dict(document)


def up(pod: uvm.sync.Pod, arguments: Namespace) -> int:
    """Wait until every container has ended; return the highest exit code."""
    print(f"{pod.id} runs {', '.join(pod.containers)}; ctrl-C ends it", flush=True)
    codes = {name: each.init.wait() for name, each in pod.containers.items() if each.init is not None}
    for name, code in codes.items():
        print(f"{name} has exited with {code}")
    return max(codes.values(), default=0)


def execute(pod: uvm.sync.Pod, arguments: Namespace) -> int:
    """Run a command in a container, with its output as it comes; return its exit code."""
    container = pod.containers.get(arguments.container)
    if container is None:
        raise PodFileError(f"the pod has no container {arguments.container}, but {', '.join(pod.containers)}")

    def to(stream: Any) -> Any:
        return lambda chunk: (stream.buffer.write(chunk), stream.flush())

    done = container.run(arguments.command, on_stdout=to(sys.stdout), on_stderr=to(sys.stderr))
    return done.exit_code


def devices(pod: uvm.sync.Pod, arguments: Namespace) -> int:
    """Print what is attached to the VM."""
    attached = pod.vm.devices()
    print(json.dumps(attached.as_json(), indent=2) if arguments.json else attached)
    return 0


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    commands = ArgumentParser(prog="podctl", description="containers in a VM, from a file")
    commands.add_argument(
        "--backend", default="", help="hcs, qemu or fake; by default, what this machine has"
    )
    adding = commands.add_subparsers(required=True, metavar="COMMAND")
    for name, function in (("up", up), ("exec", execute), ("devices", devices)):
        command = adding.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("file", type=Path, help="the pod, as JSON")
        if function is execute:
            command.add_argument("container")
            command.add_argument("command", nargs=REMAINDER, metavar="ARGUMENT")
        elif function is devices:
            command.add_argument("--json", action="store_true")
    return commands


def main(argv: Sequence[str] | None = None, *, backend: uvm.Backend | None = None) -> int:
    """Run a command; return the exit code of the program.

    :param backend: in place of the one that is named.
    """
    arguments = parser().parse_args(argv)
    try:
        host = backend or uvm.open_backend(arguments.backend or None)
        with running(arguments.file, host) as pod:
            code: int = arguments.function(pod, arguments)
            return code
    except KeyboardInterrupt:
        print("podctl: interrupted; the pod has ended", file=sys.stderr)
        return INTERRUPTED
    except (PodFileError, uvm.UVMError) as error:
        print(f"podctl: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
