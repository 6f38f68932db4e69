"""The pod file: a VM, its containers and the host that it finds, in TOML. Its manual is ``docs/pods.md``."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import attrs
from attrs import Factory, frozen

from uvm._vm.layers import LCOWLayer, WCOWLayer
from uvm.backend import JSON, HostInfo
from uvm.cli.tables import PodFileError, Table, make
from uvm.options import (
    BlockCIMBootFiles,
    HvSocketService,
    LCOWOptions,
    PCIDevice,
    RegistryValue,
    VmbFSBootFiles,
    WCOWOptions,
)

C = TypeVar("C", bound=attrs.AttrsInstance)
V = TypeVar("V")

_SYSTEMS: Final[dict[str, type[LCOWOptions] | type[WCOWOptions]]] = {
    "linux": LCOWOptions,
    "windows": WCOWOptions,
}
_ENDPOINT_KEYS: Final = ("id", "name", "namespace", "mac_address", "address", "gateway", "dns", "domain")


@frozen
class HostSetup:
    """What the in-memory host has.

    :ivar files: sizes in bytes by path.
    :ivar namespaces: HCN documents; :ivar endpoints: likewise.
    :ivar latency_ms: how long each of its answers takes.
    """

    info: HostInfo = Factory(HostInfo)
    files: dict[str, int] = Factory(dict)
    directories: tuple[str, ...] = ()
    namespaces: tuple[JSON, ...] = ()
    endpoints: tuple[JSON, ...] = ()
    latency_ms: int = 0


@frozen
class MappedDirectory:
    """A directory, or a single file, of the host that the guest sees."""

    host: str
    guest: str
    read_only: bool = False


@frozen
class Container:
    """A container.

    :ivar layers: names of the pod's layers, top-most first; :ivar scratch: its scratch disk on the host.
    :ivar command: what to run in it; where it is empty, nothing is, and only its root file system is made.
    """

    id: str
    layers: tuple[str, ...]
    scratch: str
    command: tuple[str, ...] = ()


@frozen
class PodFile:
    """All that a pod file says.

    :ivar layers: by name; :ivar namespace: the network namespace to join, empty for none.
    """

    file: str
    options: LCOWOptions | WCOWOptions
    host: HostSetup
    layers: dict[str, LCOWLayer | WCOWLayer]
    containers: tuple[Container, ...]
    mapped_directories: tuple[MappedDirectory, ...] = ()
    namespace: str = ""

    @property
    def os(self) -> str:
        """``"linux"`` or ``"windows"``."""
        return "linux" if isinstance(self.options, LCOWOptions) else "windows"


def read_pod_file(path: Path) -> PodFile:
    """Read a pod file and check all of it that can be checked without a host.

    :raises PodFileError: the file cannot be read, is not TOML, or says what is not allowed.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PodFileError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PodFileError(f"{path}: is not TOML: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise PodFileError(f"{path}: is not TOML: {error}") from None
    top = Table.of(
        str(path), "", values, ("vm", "host", "layers", "containers", "mapped_directories", "network")
    )
    options = _options(top)
    layers = _layers(top, isinstance(options, LCOWOptions))
    network = top.table("network", ("namespace",))
    return PodFile(
        str(path),
        options,
        _host(top.table("host", _HOST_KEYS)),
        layers,
        _containers(top, layers),
        tuple(map(_mapped, top.tables("mapped_directories", ("host", "guest", "read_only")))),
        _guid(network, "namespace") if network.values else "",
    )


# The VM.


def _options(top: Table) -> LCOWOptions | WCOWOptions:
    if "vm" not in top.values:
        raise top.error('the table [vm] is missing; it says os = "linux" or "windows", and options of the VM')
    given = top.open_table("vm")
    if "os" not in given.values:
        raise given.error("os is missing; it is 'linux' or 'windows'")
    os = given.text("os")
    if os not in _SYSTEMS:
        raise given.error(f"os must be 'linux' or 'windows', not {os!r}")
    cls = _SYSTEMS[os]
    names = [field.name for field in attrs.fields(cls)]
    table = top.table("vm", ("os", *names))
    values = {name: value for name, value in table.values.items() if name != "os"}
    for name, read in _NESTED.items():
        if name in values:
            values[name] = read(table)
    return make(cls, table, values)


def _several(name: str, cls: type[C]) -> Callable[[Table], list[C]]:
    def read(vm: Table) -> list[C]:
        return [make(cls, table, table.values) for table in vm.tables(name, _names(cls))]

    return read


def _one(parent: Table, name: str, cls: type[C]) -> C:
    table = parent.table(name, _names(cls))
    return make(cls, table, table.values)


def _services(vm: Table) -> dict[str, HvSocketService]:
    services = vm.open_table("hvsocket_services")
    return {guid: _one(services, guid, HvSocketService) for guid in services.values}


def _boot_files(vm: Table) -> VmbFSBootFiles | BlockCIMBootFiles:
    given = vm.open_table("boot_files")
    if "boot_cim_vhd_path" in given.values:
        return _one(vm, "boot_files", BlockCIMBootFiles)
    return _one(vm, "boot_files", VmbFSBootFiles)


#: The options that are tables themselves.
_NESTED: Final[dict[str, Callable[[Table], Any]]] = {
    "assigned_devices": _several("assigned_devices", PCIDevice),
    "registry_values": _several("registry_values", RegistryValue),
    "hvsocket_services": _services,
    "boot_files": _boot_files,
}


def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(cls))


# The host.

_HOST_KEYS: Final = (
    "build",
    "processors",
    "memory_mb",
    "machine",
    "latency_ms",
    "files",
    "directories",
    "namespaces",
    "endpoints",
)


def _host(table: Table) -> HostSetup:
    facts = HostInfo()
    machine = table.text("machine", "amd64")
    if machine not in ("amd64", "arm64"):
        raise table.error(f"machine must be 'amd64' or 'arm64', not {machine!r}")
    files = table.open_table("files")
    return HostSetup(
        HostInfo(
            build=table.whole("build", facts.build, 1),
            processors=table.whole("processors", facts.processors, 1),
            memory_mb=table.whole("memory_mb", facts.memory_mb, 1),
            machine="arm64" if machine == "arm64" else "amd64",
        ),
        {path: files.size(path) for path in files.values},
        tuple(table.texts("directories", ())),
        tuple({"ID": _guid(each, "id"), "Type": each.text("type", "Host")} for each in _namespaces(table)),
        tuple(map(_endpoint, table.tables("endpoints", _ENDPOINT_KEYS))),
        table.whole("latency_ms", 0),
    )


def _namespaces(host: Table) -> list[Table]:
    return host.tables("namespaces", ("id", "type"))


def _endpoint(table: Table) -> JSON:
    """Make the HCN document of an endpoint."""
    document: JSON = {
        "ID": _guid(table, "id"),
        "Name": table.text("name", ""),
        "MacAddress": table.text("mac_address", ""),
        "Dns": {"Domain": table.text("domain", ""), "ServerList": table.texts("dns", ())},
    }
    if "namespace" in table.values:
        document["HostComputeNamespace"] = _guid(table, "namespace")
    if "address" in table.values:
        address = _network_value(table, "address", ipaddress.ip_interface)
        prefix_length = address.network.prefixlen
        document["IpConfigurations"] = [{"IpAddress": str(address.ip), "PrefixLength": prefix_length}]
    if "gateway" in table.values:
        gateway = _network_value(table, "gateway", ipaddress.ip_address)
        everything = "0.0.0.0/0" if gateway.version == 4 else "::/0"
        document["Routes"] = [{"NextHop": str(gateway), "DestinationPrefix": everything}]
    return document


def _network_value(table: Table, key: str, read: Callable[[str], V]) -> V:
    text = table.text(key)
    try:
        return read(text)
    except ValueError:
        example = "10.0.0.4/24" if key == "address" else "10.0.0.1"
        raise table.error(f"{key} must be an IP address such as {example!r}, not {text!r}") from None


def _guid(table: Table, key: str) -> str:
    text = table.text(key)
    try:
        return str(UUID(text))
    except ValueError:
        example = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
        raise table.error(f"{key} must be a GUID such as {example!r}, not {text!r}") from None


# What is in the VM.


def _layers(top: Table, linux: bool) -> dict[str, LCOWLayer | WCOWLayer]:
    layers: dict[str, LCOWLayer | WCOWLayer] = {}
    for table in top.tables("layers", ("name", "path", "partition" if linux else "id")):
        name, path = table.text("name"), table.text("path")
        if name in layers:
            raise table.error(f"name {name!r} is that of another layer")
        layers[name] = (
            LCOWLayer(path, table.whole("partition", 0)) if linux else WCOWLayer(path, _guid(table, "id"))
        )
    return layers


def _containers(top: Table, layers: dict[str, LCOWLayer | WCOWLayer]) -> tuple[Container, ...]:
    containers: dict[str, Container] = {}
    for table in top.tables("containers", ("id", "layers", "scratch", "command")):
        command = tuple(table.texts("command")) if "command" in table.values else ()
        container = Container(table.text("id"), tuple(table.texts("layers")), table.text("scratch"), command)
        if not container.id or container.id in containers:
            raise table.error(f"id {container.id!r} is empty, or that of another container")
        if not container.layers:
            raise table.error("layers is empty; a container has one layer at least")
        for name in container.layers:
            if name not in layers:
                known = ", ".join(layers) or "none"
                raise table.error(f"layers: there is no layer {name!r}; there are {known}")
        containers[container.id] = container
    return tuple(containers.values())


def _mapped(table: Table) -> MappedDirectory:
    return MappedDirectory(table.text("host"), table.text("guest"), table.flag("read_only"))
