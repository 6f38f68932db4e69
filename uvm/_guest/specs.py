"""What the caller wants to run, checked, as the documents that a guest takes. Pure.

Three forms of one command: a process of the guest itself, or of a Windows container, is HCS's
``ProcessParameters``; one in a Linux container is an OCI process in ``LinuxProcessParameters``; the first
process of a Linux container is in the specification that its container was created with.

Whatever cannot work is an :class:`~uvm.errors.OptionsError` here, before anything is sent.

Source: hcsshim internal/cmd/cmd.go and internal/hcsoci/hcsdoc_lcow.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from attrs import field, frozen

from uvm._arguments import kind_of, refuse_twice
from uvm._checks import checked, flag
from uvm._names import guest_path_key, guid_text, windows_upper
from uvm._repr import Value
from uvm._wire.ports import vsock_service_id
from uvm.errors import NotSupportedError, OptionsError
from uvm.schema.container import CWCOWHostedSystem, HostedSystem
from uvm.schema.gcs import (
    ExecuteProcessSettings,
    LinuxHostedSystem,
    LinuxProcessParameters,
    StdioRelaySettings,
    VsockStdioRelaySettings,
)
from uvm.schema.json import dumps, to_json
from uvm.schema.process import ProcessParameters

#: The environment of a Linux process that was given none (hcsshim internal/cmd).
LINUX_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
LINUX_DIRECTORY: Final = "/"
WINDOWS_DIRECTORY: Final = "C:\\"

#: Terminal sizes are 16-bit numbers on both guests.
MAX_TERMINAL_SIZE: Final = 0xFFFF

#: Sources of hcsshim's ``ParseAnnotationsBool``: what Go's ``strconv.ParseBool`` takes for true.
_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")
_PRIVILEGED: Final = "io.microsoft.virtualmachine.lcow.privileged"
_DEFAULT_CPU_PERIOD: Final = 100_000
_NO_CPU_QUOTA: Final = -1
#: What the Linux guest does not support; it keeps its own hierarchy of cgroups.
_UNSUPPORTED_RESOURCES: Final = ("devices", "pids", "blockIO", "hugepageLimits", "network")


def _arguments(args: object) -> tuple[str, ...]:
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise OptionsError(f"a command is a list of strings, not {kind_of(args)}")
    if not args:
        raise OptionsError("the command is empty")
    for each in args:
        check_text("an argument of the command", each)
    if not args[0]:
        raise OptionsError("the command names no program")
    return tuple(args)


def _environment(env: object) -> Mapping[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise OptionsError(f"an environment is a mapping of names to values, not {kind_of(env)}")
    for name, value in env.items():
        check_text("a name in the environment", name)
        # Not quoted: what stands behind the "=" may be secret.
        if not name or "=" in name:
            raise OptionsError('a name in the environment is empty or holds "="')
        check_text(f"{name} in the environment", value)
    return dict(env)


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise OptionsError("the size of a terminal is its height and its width")
    return size[0], size[1]


@frozen(repr=False)
class Command(Value):
    """What to run. None leaves the choice to where it runs: the guest's defaults, or the container's own.

    :raises OptionsError: the command is no list of strings, or is empty; a name in the environment is no
        name; a string holds NUL or what UTF-8 has no form for; a size without a terminal.
    """

    args: tuple[str, ...] = field(converter=_arguments)
    env: Mapping[str, str] | None = field(default=None, converter=_environment, repr=False)
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    #: Height and width of the terminal, in characters.
    size: tuple[int, int] | None = field(default=None, converter=_pair)
    #: What a Windows program gets for its arguments as it is.
    command_line: str | None = None

    def __attrs_post_init__(self) -> None:
        texts = ("the working directory", self.cwd), ("the user", self.user)
        for what, text in (*texts, ("the command line", self.command_line)):
            if text is not None:
                check_text(what, text)
        if self.size is not None:
            if not self.terminal:
                raise OptionsError("a size was given for a terminal, but no terminal was asked for")
            check_size(*self.size)


def check_text(what: str, text: object) -> None:
    """Check that something is text that a guest can be sent.

    :raises OptionsError: it is not.
    """
    if not isinstance(text, str):
        raise OptionsError(f"{what} is {kind_of(text)}, not a string")
    if "\0" in text:
        raise OptionsError(f"{what} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise OptionsError(f"{what} cannot be written as UTF-8: {e.reason} at character {e.start}") from None


def check_container_id(container_id: object) -> None:
    """Check the id of a container, of which directories of the guest are named; raises OptionsError."""
    check_text("the id of a container", container_id)
    if container_id in ("", ".", "..") or "/" in str(container_id):
        raise OptionsError(f"the id of a container is {container_id!r}, which is no name of a directory")


def bundle_of(container_id: str) -> str:
    """Return the directory of a container in a Linux guest (hcsshim internal/guestpath)."""
    return f"/run/gcs/c/{container_id}"


def pipes_of(terminal: bool, **asked_for: bool) -> dict[str, bool]:
    """Return which streams a process has, by name; on a terminal it has no error output of its own.

    :raises OptionsError: what was asked for is neither True nor False.
    """
    pipes = {name: checked(there, flag, name) for name, there in asked_for.items()}
    pipes["stderr"] &= not terminal
    return pipes


def check_size(height: object, width: object) -> None:
    """Check the size of a terminal, in characters; raises OptionsError."""
    for what, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TERMINAL_SIZE:
            raise OptionsError(f"the {what} of a terminal is 1 to {MAX_TERMINAL_SIZE}, not {value!r}")


# Processes.


def host_process(wanted: Command, os: str) -> ProcessParameters:
    """Return a command as a process of the guest itself, or of a Windows container; without its pipes.

    :raises NotSupportedError: a Linux guest runs its own processes as root and takes no other user.
    """
    parameters = ProcessParameters(
        emulate_console=wanted.terminal,
        console_size=list(wanted.size or ()),
        user=wanted.user or "",
    )
    if os == "windows":
        from subprocess import list2cmdline

        parameters.command_line = wanted.command_line or list2cmdline(wanted.args)
        parameters.working_directory = wanted.cwd or WINDOWS_DIRECTORY
        refuse_twice("the environment", map(windows_upper, wanted.env or ()))
        # hcsshim sends no empty values: a Windows variable that is empty is not there.
        parameters.environment = {k: v for k, v in (wanted.env or {}).items() if v}
        return parameters
    if wanted.user:
        raise NotSupportedError(
            f"run {wanted.args[0]!r} as {wanted.user!r}: a Linux guest runs the processes outside of its "
            "containers as root; nothing was started"
        )
    parameters.command_args = list(wanted.args)
    parameters.working_directory = wanted.cwd or LINUX_DIRECTORY
    parameters.environment = dict(LINUX_ENVIRONMENT if wanted.env is None else wanted.env)
    return parameters


def container_process(wanted: Command, own: Mapping[str, Any]) -> LinuxProcessParameters:
    """Return a command as one more process of a Linux container; without its pipes.

    :param own: the container's own, first process (``process`` of its specification), whose environment,
        directory, user, capabilities and limits hold where the command says nothing.
    :raises OptionsError: the user is not ``uid`` or ``uid:gid``.
    """
    process = _copy("the process of the container's specification", own)
    process |= {"args": list(wanted.args), "terminal": wanted.terminal}
    process.pop("commandLine", None)
    process.pop("consoleSize", None)
    if wanted.env is not None:
        process["env"] = [f"{name}={value}" for name, value in wanted.env.items()]
    process.setdefault("env", [f"{name}={value}" for name, value in LINUX_ENVIRONMENT.items()])
    process["cwd"] = wanted.cwd or process.get("cwd") or LINUX_DIRECTORY
    if wanted.user:
        process["user"] = _oci_user(wanted.user)
    process.setdefault("user", {"uid": 0, "gid": 0})
    if wanted.size is not None:
        process["consoleSize"] = {"height": wanted.size[0], "width": wanted.size[1]}
    return LinuxProcessParameters(oci_process=process)


_STREAM_FIELDS: Final = {"stdin": "std_in", "stdout": "std_out", "stderr": "std_err"}


def execute_settings(os: str, parameters: str, ports: Mapping[str, int]) -> ExecuteProcessSettings:
    """Return what to run, as JSON text, together with the ports that the guest dials for its streams.

    :param ports: by ``stdin``, ``stdout`` and ``stderr``; a stream without a port is not there.
    """
    named = {_STREAM_FIELDS[name]: port for name, port in ports.items()}
    if os == "windows":
        services = StdioRelaySettings(**{name: vsock_service_id(port) for name, port in named.items()})
        return ExecuteProcessSettings(process_parameters=parameters, stdio_relay_settings=services)
    relay = VsockStdioRelaySettings(**named)
    return ExecuteProcessSettings(process_parameters=parameters, vsock_stdio_relay_settings=relay)


_USER: Final = re.compile(r"(\d{1,10})(?::(\d{1,10}))?", re.ASCII)


def _oci_user(user: str) -> dict[str, int]:
    match = _USER.fullmatch(user)
    ids = [int(each or 0) for each in match.groups()] if match else [-1]
    if not all(0 <= each <= 0xFFFFFFFF for each in ids):
        raise OptionsError(f"a user of a Linux container is 'uid' or 'uid:gid' in numbers, not {user!r}")
    return {"uid": ids[0], "gid": ids[1]}


# Containers.


def linux_container(
    spec: Mapping[str, Any], *, bundle_path: str, scratch_path: str = ""
) -> LinuxHostedSystem:
    """Return an OCI runtime specification as the document of a Linux container.

    The specification is copied, and cleaned of what is the host's or what the guest does not support: hooks,
    the path of its cgroup, limits of devices, pids, block I/O, huge pages and network, all of Windows but
    the network namespace and the devices; a privileged container has no seccomp filter.

    :param bundle_path: the container's directory in the guest.
    :param scratch_path: the directory in the guest that holds its scratch space.
    :raises OptionsError: it is no specification of a Linux container.
    """
    clean = _copy("the specification", spec)
    spec_of({"OciSpecification": clean})
    _clean_windows(clean)
    _clean_resources(clean)
    clean.pop("hooks", None)
    clean["linux"].pop("cgroupsPath", None)
    if part(clean, "annotations").get(_PRIVILEGED) in _TRUE:
        clean["linux"].pop("seccomp", None)
    return LinuxHostedSystem(
        oci_bundle_path=bundle_path, oci_specification=clean, scratch_dir_path=scratch_path
    )


def windows_container(
    document: HostedSystem | CWCOWHostedSystem | Mapping[str, Any], *, confidential: bool
) -> HostedSystem | Mapping[str, Any]:
    """Return the document of a Windows container; that of a confidential VM has its specification.

    :raises OptionsError: it is that of another VM; or the specification lacks what the guest's service
        refuses to go without (``ociVersion``), or is known to crash on (``process``).
    """
    given: Any = document
    if isinstance(document, CWCOWHostedSystem):
        given = to_json(document)
    if (isinstance(given, Mapping) and "CWCOWHostedSystem" in given) is not confidential:
        wanted = "CWCOWHostedSystem, which has the OCI specification too" if confidential else "HostedSystem"
        raise OptionsError(
            f"a Windows container of a {'confidential' if confidential else 'plain'} VM is created from a "
            f"{wanted}; nothing was sent"
        )
    if confidential:
        spec, hosted = given.get("Spec"), given["CWCOWHostedSystem"]
        if not isinstance(hosted, Mapping) or not isinstance(hosted.get("Container"), Mapping):
            raise OptionsError("the CWCOWHostedSystem of the container has no Container; nothing was sent")
        if (
            not isinstance(spec, Mapping)
            or not spec.get("ociVersion")
            or not isinstance(spec.get("process"), Mapping)
        ):
            raise OptionsError("the Spec of the container needs ociVersion and process; nothing was sent")
    return given  # type: ignore[no-any-return]


#: Who a container belongs to, and of which kind it is, in a pod (hcsshim pkg/annotations).
_POD: Final = ("io.kubernetes.cri.container-type", "io.microsoft.virtualmachine.lcow.virtual-pod-id")


def with_namespace(spec: Mapping[str, Any], container_id: str) -> Mapping[str, Any]:
    """Return a specification with a network namespace of the container's own, if it names none.

    The Linux guest knows namespaces by name, gives each to one container, and drops the one that has the
    name of the container whose state is deleted. Without a name all containers have the same, which is
    never dropped, so that it refuses the second container (hcsshim internal/guest/runtime/hcsv2/network.go;
    hcsshim runs no two such containers in a VM). The containers of a pod have its namespace.
    """
    windows = spec.get("windows") or {}
    network = windows.get("network") if isinstance(windows, Mapping) else None
    annotations = spec.get("annotations") or {}
    parts = (windows, network or {}, annotations)
    if not all(isinstance(each, Mapping) for each in parts) or any(name in annotations for name in _POD):
        return spec
    network = {**(network or {})}
    network["networkNamespace"] = network.get("networkNamespace") or container_id
    return {**spec, "windows": {**windows, "network": network}}


def spec_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the OCI specification in the document of a Linux container (:class:`LinuxHostedSystem` as JSON).

    :raises OptionsError: it has none, or one that the Linux guest's service is known to crash on: without
        a ``process``, without ``linux`` or without ``root``.
    """
    spec = document.get("OciSpecification")
    if not isinstance(spec, Mapping):
        raise OptionsError(f"the document of a Linux container has no OCI specification, but {kind_of(spec)}")
    for name in ("process", "linux", "root"):
        if not isinstance(spec.get(name), Mapping):
            raise OptionsError(
                f"the OCI specification of a Linux container has no {name!r}, which is a mapping"
            )
    return spec


def paths_in(document: object, os: str) -> Iterator[str]:
    """Yield the keys of all absolute paths of a guest that a JSON value names."""
    if isinstance(document, str):
        with suppress(OptionsError):
            yield guest_path_key(document, "windows" if os == "windows" else "linux")
    elif isinstance(document, Mapping | list):
        for each in document.values() if isinstance(document, Mapping) else document:
            yield from paths_in(each, os)


def _clean_resources(spec: dict[str, Any]) -> None:
    resources = part(spec, "linux.resources")
    for name in _UNSUPPORTED_RESOURCES:
        resources.pop(name, None)
    cpu = part(spec, "linux.resources.cpu")
    if cpu.get("period") == 0:
        cpu["period"] = _DEFAULT_CPU_PERIOD
    if cpu.get("quota") == 0:
        cpu["quota"] = _NO_CPU_QUOTA


def _clean_windows(spec: dict[str, Any]) -> None:
    devices = part(spec, "windows").get("devices")
    namespace = part(spec, "windows.network").get("networkNamespace")
    spec.pop("windows", None)
    if namespace:
        # The guest compares it with the ids of adapters' namespaces, which have no braces.
        plain = guid_text(namespace) if isinstance(namespace, str) else namespace
        spec["windows"] = {"network": {"networkNamespace": plain}}
    if devices is not None:
        spec.setdefault("windows", {})["devices"] = devices


def part(spec: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a part of a specification by its path, such as ``windows.network``; an empty one if it has none.

    :raises OptionsError: it is no JSON object.
    """
    found: dict[str, Any] = {**spec}
    for name in path.split("."):
        inner: Any = found.get(name)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise OptionsError(f"{path} of the specification is {kind_of(inner)}, not a JSON object")
        found = inner
    return found


def _copy(what: str, document: object) -> dict[str, Any]:
    """Copy a JSON object, deeply, through JSON; so that all of it is known to be JSON."""
    if not isinstance(document, Mapping):
        raise OptionsError(f"{what} is {kind_of(document)}, not a JSON object")
    return json.loads(check_writable(what, dict(document)))  # type: ignore[no-any-return]


def check_writable(what: str, document: object) -> str:
    """Return a model or a JSON value as JSON text.

    :raises OptionsError: it holds what JSON has no form for.
    """
    try:
        return dumps(document)
    except RecursionError:
        raise OptionsError(f"{what} cannot be written as JSON: it nests too deeply") from None
    except (TypeError, ValueError) as e:
        raise OptionsError(f"{what} cannot be written as JSON: {e}") from None
