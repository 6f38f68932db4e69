"""A request in a few words: its receiver, verb, resource and settings, without secrets. Pure.

A user may have sent it, or edited its recording: of each value it is checked what it is, and what is not as
hosts and guests take it is shown as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from attrs import frozen

from uvm._repr import format_size
from uvm._wire import ports
from uvm.schema.gcs import HOST_CONTAINER_ID
from uvm.schema.requests import ScsiAttachment, VPMemMapping, parse_resource_path
from uvm.schema.secrets import scrub

_GUID: Final = re.compile(r"([0-9a-f]{8})(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
#: As container engines make them.
_LONG_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_U64: Final = (1 << 64) - 1
_PREFIXES: Final = ("VirtualMachine/Devices/", "VirtualMachine/ComputeTopology/")

#: Settings that are shown without their name, or after a word.
_WORDS: Final = {
    **dict.fromkeys(("Filesystem", "HostPath", "Options", "Path", "path"), ""),
    **dict.fromkeys(("ContainerPath", "ContainerRootPath", "MountPath"), "at "),
    "NamespaceID": "namespace ",
    "ScratchPath": "scratch ",
}
#: Settings that the resource shows.
_PLACES: Final = {"AdapterId", "ContainerID", "Controller", "DeviceNumber", "DeviceOffsetInBytes", "ID"}
_NAMES: Final = {"Lun", "Name", "ShareName"}
_SECRETS: Final = {"EncodedSecurityPolicy", "Environment", "Fragment"}
#: Settings that say little to a reader.
_OF_NETWORKS: Final = {"DNSServerList", "DNSSuffix", "Dns", "Health", "Resources", "Routes", "SchemaVersion"}
_OF_SHARES: Final = {"AccessName", "CacheIo", "Flags", "Port", "PseudoOplocks", "ShareRead"}
_OF_POLICIES: Final = {"EncodedUVMHashEnvelopeReference", "EncodedUVMReference", "LaunchData"}
_OTHERS: Final = {"ImageFormat", "RequestType", "Type", "vm"}
_LEFT_OUT: Final = _PLACES | _NAMES | _SECRETS | _OF_NETWORKS | _OF_SHARES | _OF_POLICIES | _OTHERS
_ADDRESSES: Final = {"IPConfigs", "IpConfigurations"}
_SERVICES: Final = {
    ports.vsock_service_id(ports.LINUX_ENTROPY_PORT): "for the guest's entropy",
    ports.vsock_service_id(ports.LINUX_LOG_PORT): "for the guest's log",
    ports.vsock_service_id(ports.LINUX_GCS_PORT): "for the guest",
    ports.WINDOWS_LOG_SERVICE: "for the guest's log",
    ports.WINDOWS_GCS_SERVICE: "for the guest",
    ports.WINDOWS_SIDECAR_SERVICE: "for the guest",
}


@frozen
class Summary:
    """A request in a few words.

    :ivar to: ``host``, ``guest`` or ``grant``.
    :ivar verb: in lower case.
    :ivar resource: HCS's own name, with the place: ``Scsi 0:1``.
    :ivar settings: those of interest to a reader.
    """

    to: str
    verb: str
    resource: str
    settings: tuple[str, ...] = ()


def shorten(text: str) -> str:
    """Shorten each GUID, and each id of 64 digits, in a text to its first part."""
    return _LONG_ID.sub(r"\1", _GUID.sub(r"\1", text))


def offset(size_bytes: Any) -> str:
    """Return an offset as text."""
    return _size(size_bytes) if size_bytes else str(size_bytes)


def _size(size_bytes: Any) -> str:
    """Return a number of bytes as text, or what is there in its place."""
    is_size = isinstance(size_bytes, int) and 0 <= size_bytes <= _U64
    return format_size(size_bytes) if is_size else str(size_bytes)


def summarize(to: str, document: Any, operation: str = "modify") -> Summary:
    """Return the summary of a request to change something, or of another call, from its document.

    :param to: its receiver, as in the fake's request log.
    :param document: any JSON value.
    """
    # It is no deeper then, either.
    document = scrub(document)
    if to in ("grant", "revoke"):
        return Summary("grant", "access" if to == "grant" else "revoke", str(_at(document, "path")))
    if to == "guest" and operation != "modify":
        return _guest_call(document, operation)
    if operation != "modify" or not isinstance(document, dict):
        return Summary("host", operation, _service(document) or "VM", tuple(_topology(document)))
    settings = document.get("Settings")
    # The requests about a Windows guest's adapter have another one inside.
    verb = _at(settings, "RequestType") or document.get("RequestType") or "set"
    path = str(document.get("ResourcePath", ""))
    kind = document.get("ResourceType")
    resource = _host_resource(path, settings) if path else _guest_resource(kind, settings)
    return Summary(to, str(verb).lower(), shorten(resource), tuple(_shown(settings)))


def _guest_call(document: Any, operation: str) -> Summary:
    """Return the summary of a request to the guest's compute service that changes no settings."""
    verb, _, what = operation.partition(" ")
    container = str(_at(document, "ContainerId") or HOST_CONTAINER_ID)
    if container == HOST_CONTAINER_ID:
        resource = what or "VM"
    elif not what:
        resource = f"container {shorten(container)}"
    else:
        resource = f"{what}{' in' if what.endswith('process') else ','} {shorten(container)}"
    return Summary("guest", verb, resource, tuple(_command(document)))


def _command(document: Any) -> Iterator[str]:
    """Yield the command to run; the first process of a container is in its specification."""
    try:
        parameters = json.loads(_at(document, "Settings", "ProcessParameters") or "{}")
    except (TypeError, ValueError):
        return
    args = _at(parameters, "OciProcess", "args") or _at(parameters, "CommandArgs") or ""
    words = " ".join(map(str, args)) if isinstance(args, list) else args
    if command := _at(parameters, "CommandLine") or words:
        yield str(command)


def _service(document: Any) -> str:
    """Name the service that the host listens to."""
    service_id = str(_at(document, "ServiceId") or "")
    port = ports.vsock_port(service_id)
    return _SERVICES.get(service_id) or (f"vsock port {port}" if port is not None else shorten(service_id))


def _topology(document: Any) -> Iterator[str]:
    """Yield the size of a VM that is created."""
    topology = _at(document, "VirtualMachine", "ComputeTopology")
    processors, size_mb = _at(topology, "Processor", "Count"), _at(topology, "Memory", "SizeInMB")
    if isinstance(processors, int) and isinstance(size_mb, int):
        yield f"{processors} processor{'' if processors == 1 else 's'}"
        yield _size(size_mb << 20) if size_mb <= _U64 else f"{size_mb} MiB"


def _at(value: Any, *names: str) -> Any:
    """Return the value at a path of names in a JSON value; None if there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _host_resource(path: str, settings: Any) -> str:
    resource = parse_resource_path(path)
    if isinstance(resource, ScsiAttachment):
        number = resource.controller_number
        return f"Scsi {resource.controller if number is None else number}:{resource.lun}"
    if isinstance(resource, VPMemMapping):
        return f"VirtualPMem {resource.device} at {offset(resource.offset_bytes)}"
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    if path.endswith("/Shares"):
        return f"{path.removesuffix('/Shares')} {_at(settings, 'Name') or ''}"
    return path.replace("/Devices/", " ").replace("/", " ", 1)


def _guest_resource(kind: Any, settings: Any) -> str:
    # hcsshim removes a Windows guest's adapter without naming the resource.
    resource = str(kind or "Network")
    if resource.startswith("Network"):
        return f"{resource} {_at(settings, 'ID') or _at(settings, 'AdapterId') or ''}"
    if resource == "MappedDirectory":
        return f"{resource} {_at(settings, 'ShareName') or ''}"
    if "VPMem" in resource:
        mapped = _at(settings, "MappingInfo")
        at = f" at {offset(_at(mapped, 'DeviceOffsetInBytes') or 0)}" if mapped else ""
        return f"{resource} {_at(settings, 'DeviceNumber') or 0}{at}"
    if resource == "SCSIDevice" or resource.startswith("MappedVirtualDisk"):
        return f"{resource} {_at(settings, 'Controller') or 0}:{_at(settings, 'Lun') or 0}"
    return resource


def _shown(settings: Any, name: str = "") -> Iterator[str]:
    """Yield the settings to show, each in a few words."""
    if name in _LEFT_OUT or settings in (None, False, "", 0) or settings in ([], {}):
        return
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _shown(value, key)
    elif isinstance(settings, list) and name in _ADDRESSES:
        yield from ("/".join(map(str, each.values())) for each in settings if isinstance(each, dict))
    elif isinstance(settings, list) and name == "Layers":
        yield f"{len(settings)} layer{'' if len(settings) == 1 else 's'}"
    elif isinstance(settings, list):
        yield _word(name) + " ".join(shorten(" ".join(_shown(each, "Path"))) for each in settings)
    elif settings is True:
        yield _lower(name)
    elif name.endswith("InBytes"):
        yield _size(settings)
    else:
        yield _word(name) + shorten(str(settings))


def _word(name: str) -> str:
    return _WORDS.get(name, f"{name}=" if name else "")


def _lower(name: str) -> str:
    """Return ReadOnly as read-only."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
