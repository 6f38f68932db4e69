"""The command line: what can be typed after ``uvm``, and its help. Loads nothing of what a command needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from uvm import __version__

if TYPE_CHECKING:
    from uvm.cli.attachments import Attachment

T = TypeVar("T")

_BACKEND = "the backend (the one that runs real VMs on this machine)"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and suggest what is like a wrong word."""

    def error(self, message: str) -> NoReturn:
        """Print an error, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message.removeprefix('argument ')} (see: {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse what is given; each parser reports what it does not know itself."""
        given, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [each for each in self._option_string_actions if each.startswith("--")]
            self.error(f"{unknown[0]} is unknown here{_suggest(unknown[0].partition('=')[0], options)}")
        return given, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = [*action.choices]
            instead = _suggest(value, allowed) or f"; there are {', '.join(allowed)}"
            raise argparse.ArgumentError(action, f"there is no {value!r}{instead}")


def _suggest(word: str, words: Sequence[str]) -> str:
    """Return what to add to an error about a wrong word; nothing if no word is like it."""
    from difflib import get_close_matches

    close = get_close_matches(word, words, 2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[_Parser]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="uvm",
        description="Utility VMs: run a command or a shell in one, run a pod on an in-memory host, compare "
        "with recordings of hcsshim.",
        epilog="Exit status: 0 success, 1 failure, 2 a wrong command line or file, 130 interrupted; run, "
        "shell and pod -i have that of the command. On a terminal, tables are drawn by rich, which the extra "
        "utilityvm[cli] installs: in colours, which NO_COLOR=1 switches off, and to its width, which COLUMNS "
        "sets. Elsewhere they are plain text.",
    )
    parser.add_argument("--version", action="version", version=f"uvm {__version__}")
    parser.set_defaults(module=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for add in (_add_guest_commands, _add_files, _add_doctor, _add_replay, _add_conform, _add_image):
        add(commands)
    completion = commands.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Print what makes a shell complete the command uvm, its options, backends and files. "
        'Needs utilityvm[cli]. bash and zsh: eval "$(uvm completion bash)"; fish: uvm completion fish | '
        "source; PowerShell: uvm completion powershell | Out-String | Invoke-Expression.",
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish", "powershell"], help="the shell")
    return parser


def _add_files(commands: Commands) -> None:
    init = commands.add_parser(
        "init",
        help="write the sample pod files, to be edited",
        description="Write a pod file for a Linux guest and one for a Windows guest, which run on the "
        "in-memory host as they are. Files that are there stay: nothing is written then.",
    )
    init.add_argument(
        "directory", type=Path, nargs="?", default=Path(), metavar="DIRECTORY", help="where (.)"
    )
    init.add_argument("--force", action="store_true", help="overwrite them")
    init.set_defaults(module="samples")

    pod = commands.add_parser(
        "pod",
        help="run the pod that a file describes",
        description="Create a VM, attach all that the file describes, show it, and detach it all again, "
        "printing each request. 'uvm init' writes files to begin with.",
        epilog="Exit status 1 if an operation fails or anything is left on the host; with -i or -t that of "
        "the container's command.",
    )
    pod.add_argument("--json", action="store_true", help="print what happened as JSON, at the end")
    pod.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="bring up one container alone, whose command, or shell, has the streams of this one",
    )
    pod.add_argument("-t", "--terminal", action="store_true", help="as -i, and the command has a terminal")
    pod.add_argument("--container", metavar="ID", help="as -i, of this container (the first one)")

    document = commands.add_parser(
        "document",
        help="print the create document of a VM, without the VM",
        description="Print the document that is sent to create the VM of a file. It holds what the file "
        "holds, secrets included. Nothing is created.",
    )
    for parser in (pod, document):
        parser.add_argument(
            "file", type=Path, metavar="FILE", help="a pod file, TOML or JSON, for instance lcow-pod.toml"
        )
        parser.add_argument(
            "--backend",
            metavar="NAME",
            help="use this backend instead of the in-memory one (fake); the table [host] of the file "
            "has no effect there",
        )


def _add_replay(commands: Commands) -> None:
    replay = commands.add_parser(
        "replay",
        help="replay a recorded hcsshim script and compare the requests",
        description="Carry out a script of device operations on the in-memory host, and show each request "
        "beside the one that hcsshim was recorded to send. Exit status 1 if any differs.",
    )
    replay.add_argument("file", type=Path, metavar="FILE", help="for instance tests/data/traces.json")
    replay.add_argument("--script", metavar="NAME", help="which script; without it, they are listed")


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check what this machine can do and what is missing",
        description="Check this machine for what HCS or QEMU needs, and for optional features. "
        "Exit status 1 if the backend that is asked for, or would be chosen, cannot be used.",
    )
    doctor.add_argument("--backend", metavar="NAME", help="the backend that is wanted, for instance hcs")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")


def _said(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the type of an argument whose error says what `parse` says."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


@_said
def _size(text: str) -> int:
    from uvm.cli.sizes import parse_size

    return parse_size(text)


@_said
def _seconds(text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) > 0:  # nan is not
            return seconds
    raise ValueError(f"{text!r} is no number of seconds above 0")


@_said
def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number above 0")
    return int(text)


@_said
def _attachment(text: str) -> Attachment:
    from uvm.cli.attachments import Attachment

    return Attachment.parse(text)


@_said
def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return name, value


def _add_guest_commands(commands: Commands) -> None:
    status = (
        "Exit status: that of the command; 127 if it cannot be started, 124 if its time has run out, "
        "125 if the VM fails."
    )
    run = commands.add_parser(
        "run",
        help="run a command in a VM of its own",
        usage="uvm run [OPTION ...] [--] COMMAND [ARGUMENT ...]",
        description="Boot a Linux VM, run a command in it with the streams, the terminal and the signals of "
        "this one, and end the VM.",
        epilog=status,
    )
    words: dict[str, Any] = {"nargs": argparse.REMAINDER, "metavar": "COMMAND"}
    run.add_argument("words", help="the command and its arguments", **words)
    shell = commands.add_parser(
        "shell",
        help="open a shell in a VM of its own",
        usage="uvm shell [OPTION ...] [COMMAND [ARGUMENT ...]]",
        description="Boot a Linux VM, open a shell in it, and end the VM with it.",
        epilog=status,
    )
    shell.add_argument("words", help="the shell and its arguments (sh -l)", **words)
    for parser in (run, shell):
        _add_guest_arguments(parser)
    shell.set_defaults(module="run")
    ps = commands.add_parser("ps", help="list the VMs of this host", description="List the VMs of this host.")
    ps.add_argument("--json", action="store_true", help="print them as JSON, as the host describes them")
    ps.add_argument("--backend", metavar="NAME", help=_BACKEND)


def _add_guest_arguments(parser: argparse.ArgumentParser) -> None:
    place = "PATH[:GUEST_PATH][:ro]"
    add = parser.add_argument
    add("--backend", metavar="NAME", help=_BACKEND)
    add(
        "--memory",
        metavar="SIZE",
        type=_size,
        default="512M",
        help="of the VM, for instance 2G (512M)",
    )
    add("--cpus", metavar="COUNT", type=_count, default=1, help="of the VM (1)")
    add(
        "--disk",
        metavar=place,
        type=_attachment,
        action="append",
        default=[],
        help="attach a disk and mount it, at /mnt/NAME if no path in the guest is named; again for more",
    )
    add(
        "--share",
        metavar=place,
        type=_attachment,
        action="append",
        default=[],
        help="share a directory of the host, in the same manner",
    )
    add(
        "--network",
        metavar="NAME",
        help="add an adapter in this network of the host: with qemu 'restricted', 'open' or 'tap:NAME'",
    )
    add(
        "--env",
        metavar="NAME=VALUE",
        type=_variable,
        action="append",
        default=[],
        help="set a variable",
    )
    add("--cwd", metavar="PATH", help="the directory that the command begins in (/)")
    add("--timeout", metavar="SECONDS", type=_seconds, help="end it all after this many seconds")
    add(
        "--terminal",
        action=argparse.BooleanOptionalAction,
        help="give the command a terminal (as this one has one)",
    )


def _add_conform(commands: Commands) -> None:
    conform = commands.add_parser(
        "conform",
        help="check that a backend does what the library expects of one",
        description="Play the conformance suite on a backend, level by level, and list what holds, what "
        "fails and what cannot be played. Exit status 1 if anything fails.",
    )
    conform.add_argument("backend", metavar="BACKEND", help="its name, for instance fake")
    conform.add_argument(
        "--level",
        choices=["host", "vm", "guest", "everything"],
        default="everything",
        help="how far: without VMs, with VMs whose guests need not answer, with guests, with faults",
    )
    conform.add_argument(
        "--rig",
        metavar="MODULE:FUNCTION",
        help="what makes a uvm.testing.backends.Rig when it is called and entered, with control of the host",
    )
    conform.add_argument("--loop", choices=["asyncio", "trio"], default="asyncio", help="the event loop")
    conform.add_argument("--json", action="store_true", help="print it as JSON")


def _add_image(commands: Commands) -> None:
    image = commands.add_parser(
        "image",
        help="build, list or remove the guest images of the qemu backend",
        description="The guest images of the qemu backend: a kernel and a first root file system, built of "
        "this machine's own parts. A VM builds one itself if there is none yet.",
    )
    actions = image.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    made = actions.add_parser(
        "build",
        help="build one, unless there is one of the same",
        description="Build a guest image, and print its directory.",
    )
    kernel = made.add_mutually_exclusive_group()
    kernel.add_argument("--kernel", metavar="FILE", help="a vmlinuz or vmlinux, instead of one in /boot")
    kernel.add_argument(
        "--fetch",
        action="store_true",
        help="download the distribution's newest kernel with apt-get, without installing it",
    )
    made.add_argument("--modules", metavar="DIRECTORY", help="the modules of --kernel")
    made.add_argument("--python", metavar="PROGRAM", help="the guest's interpreter, instead of this one")
    made.add_argument("--busybox", metavar="PROGRAM", help="the guest's tools")
    made.add_argument("--runtime", metavar="PROGRAM", help="what runs containers: crun or runc")
    made.add_argument("--machine", metavar="ARCHITECTURE", help="as 'uname -m' prints it; this machine's own")
    made.add_argument("--guest-binary", metavar="PROGRAM", help="hcsshim's gcs, for comparison")
    actions.add_parser("list", help="list them, the newest first")
    pruned = actions.add_parser("prune", help="remove all but the newest")
    pruned.add_argument("--all", action="store_true", help="the newest too, and downloaded kernels")
