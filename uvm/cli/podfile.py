"""The pod file: a VM, its containers and the host that it finds, as TOML or JSON (``docs/pod-files.md``)."""

from __future__ import annotations

import ipaddress
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import field, frozen

from uvm import _checks as checks
from uvm._vm.layers import LCOWLayer, WCOWLayer
from uvm.backend import JSON, HostInfo
from uvm.cli.errors import UsageError, read_text
from uvm.cli.sizes import parse_size
from uvm.cli.tables import Table
from uvm.options import (
    BlockCIMBootFiles,
    HvSocketService,
    LayerBootFiles,
    LCOWOptions,
    PCIDevice,
    RegistryValue,
    VmbFSBootFiles,
    WCOWOptions,
)

_SYSTEMS: Final[dict[str, type[LCOWOptions | WCOWOptions]]] = {"linux": LCOWOptions, "windows": WCOWOptions}
_TOP: Final = ("vm", "host", "layers", "containers", "mapped_directories", "network")
_FACTS: Final = HostInfo()


def _key(check: checks.Check, **settings: Any) -> Any:
    """Return a field that :func:`check_fields` checks."""
    return field(metadata=checks.go(None, check), **settings)


def _guid(**settings: Any) -> Any:
    return _key(checks.guid, converter=checks.plain_guid, **settings)


def _texts(**settings: Any) -> Any:
    return _key(checks.each(checks.text), converter=checks.items_or_value, **settings)


def _network(read: Callable[[str], object], example: str) -> checks.Check:
    """Allow what a function of :mod:`ipaddress` reads."""

    def check(value: Any) -> str | None:
        try:
            good = isinstance(value, str) and read(value) is not None
        except ValueError:
            good = False
        return None if good else f"an IP address such as {example!r}"

    return check


@frozen
class Namespace(checks.Checked):
    """A network namespace of the in-memory host."""

    id: str = _guid()
    type: str = _key(checks.text, default="Host")

    def document(self) -> JSON:
        """Return its HCN document."""
        return {"ID": self.id, "Type": self.type}


@frozen
class Endpoint(checks.Checked):
    """An endpoint of the in-memory host."""

    id: str = _guid()
    name: str = _key(checks.text, default="")
    namespace: str = _guid(default="")
    mac_address: str = _key(checks.text, default="")
    address: str = _key(_network(ipaddress.ip_interface, "10.0.0.4/24"), default="")
    gateway: str = _key(_network(ipaddress.ip_address, "10.0.0.1"), default="")
    dns: tuple[str, ...] = _texts(default=())
    domain: str = _key(checks.text, default="")

    def document(self) -> JSON:
        """Return its HCN document."""
        document: JSON = {
            "ID": self.id,
            "Name": self.name,
            "MacAddress": self.mac_address,
            "Dns": {"Domain": self.domain, "ServerList": list(self.dns)},
        }
        if self.namespace:
            document["HostComputeNamespace"] = self.namespace
        if self.address:
            address = ipaddress.ip_interface(self.address)
            document["IpConfigurations"] = [
                {"IpAddress": str(address.ip), "PrefixLength": address.network.prefixlen}
            ]
        if self.gateway:
            gateway = ipaddress.ip_address(self.gateway)
            everything = "0.0.0.0/0" if gateway.version == 4 else "::/0"
            document["Routes"] = [{"NextHop": str(gateway), "DestinationPrefix": everything}]
        return document


@frozen
class HostSetup(checks.Checked):
    """The in-memory host.

    :ivar files: sizes in bytes by path.
    :ivar latency_ms: the time until each of its answers.
    """

    build: int = _key(checks.whole(checks.U32, 1), default=_FACTS.build)
    processors: int = _key(checks.whole(checks.U32, 1), default=_FACTS.processors)
    memory_mb: int = _key(checks.whole(checks.U32, 1), default=_FACTS.memory_mb)
    machine: Any = _key(checks.choice("amd64", "arm64"), default="amd64")
    files: dict[str, int] = _key(checks.items(checks.text, checks.whole(checks.U64)), factory=dict)
    directories: tuple[str, ...] = _texts(default=())
    namespaces: tuple[Namespace, ...] = _key(checks.each(checks.instance(Namespace)), default=())
    endpoints: tuple[Endpoint, ...] = _key(checks.each(checks.instance(Endpoint)), default=())
    latency_ms: int = _key(checks.whole(checks.U32), default=0)

    @property
    def info(self) -> HostInfo:
        """The facts of the host."""
        return HostInfo(
            build=self.build, processors=self.processors, memory_mb=self.memory_mb, machine=self.machine
        )


@frozen
class MappedDirectory(checks.Checked):
    """A directory, or a single file, of the host that the guest sees."""

    host: str = _key(checks.text)
    guest: str = _key(checks.text)
    read_only: bool = _key(checks.flag, default=False)


@frozen
class Container(checks.Checked):
    """A container.

    :ivar layers: names of the pod's layers, top-most first.
    :ivar scratch: its scratch disk on the host.
    :ivar command: the command to run in it; if it is empty, only its root file system is mounted.
    """

    id: str = _key(checks.text)
    layers: tuple[str, ...] = _texts()
    scratch: str = _key(checks.text)
    command: tuple[str, ...] = _texts(default=())


@frozen
class _LinuxLayer(checks.Checked):
    name: str = _key(checks.text)
    path: str = _key(checks.text)
    partition: int = _key(checks.whole(checks.U32), default=0)

    def layer(self) -> LCOWLayer:
        return LCOWLayer(self.path, self.partition)


@frozen
class _WindowsLayer(checks.Checked):
    name: str = _key(checks.text)
    path: str = _key(checks.text)
    id: str = _guid()

    def layer(self) -> WCOWLayer:
        return WCOWLayer(self.path, self.id)


@frozen
class PodFile:
    """The contents of a pod file.

    :ivar layers: by name.
    :ivar namespace: the network namespace to join, empty for none.
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
    """Read a pod file, and check all that can be checked without a host.

    :raises UsageError: the file cannot be read, is not the TOML or JSON that its name says, or has a value
        that is not allowed.
    """
    values = _values(path)
    top = Table(str(path), "", values)
    top.check_keys(_TOP)
    options = _options(top)
    layers = _layers(top, isinstance(options, LCOWOptions))
    return PodFile(
        str(path),
        options,
        _host(top.table("host")),
        layers,
        _containers(top, layers),
        tuple(each.make(MappedDirectory) for each in top.tables("mapped_directories")),
        _namespace(top.table("network")) if "network" in values else "",
    )


def _values(path: Path) -> dict[str, Any]:
    kind, read = ("JSON", json.loads) if path.suffix.lower() == ".json" else ("TOML", tomllib.loads)
    try:
        values = read(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not {kind}: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must be an object with {', '.join(_TOP)}, not {type(values).__name__}")
    return values


def _options(top: Table) -> LCOWOptions | WCOWOptions:
    given = top.table("vm")
    os = given.values.get("os", "missing")
    if not isinstance(os, str) or os not in _SYSTEMS:
        raise given.error(f"os must be 'linux' or 'windows', not {os!r}")
    table = attrs.evolve(given, values={key: value for key, value in given.values.items() if key != "os"})
    nested = {name: read(table) for name, read in _NESTED.items() if name in table.values}
    return table.make(_SYSTEMS[os], **nested)


def _services(vm: Table) -> dict[str, HvSocketService]:
    services = vm.table("hvsocket_services")
    return {service_id: services.table(service_id).make(HvSocketService) for service_id in services.values}


def _boot_files(vm: Table) -> VmbFSBootFiles | LayerBootFiles | BlockCIMBootFiles:
    table = vm.table("boot_files")
    if "layers" in table.values:
        return table.make(LayerBootFiles)
    if "boot_cim_vhd_path" in table.values or vm.values.get("security_policy_enabled") is True:
        return table.make(BlockCIMBootFiles)
    return table.make(VmbFSBootFiles)


#: The options that are tables themselves.
_NESTED: Final[dict[str, Callable[[Table], Any]]] = {
    "assigned_devices": lambda vm: [each.make(PCIDevice) for each in vm.tables("assigned_devices")],
    "registry_values": lambda vm: [each.make(RegistryValue) for each in vm.tables("registry_values")],
    "hvsocket_services": _services,
    "boot_files": _boot_files,
}


def _host(table: Table) -> HostSetup:
    files = table.table("files")
    return table.make(
        HostSetup,
        files={path: _size(files, path) for path in files.values},
        namespaces=tuple(each.make(Namespace) for each in table.tables("namespaces")),
        endpoints=tuple(each.make(Endpoint) for each in table.tables("endpoints")),
    )


def _namespace(network: Table) -> str:
    network.check_keys(("namespace",))
    namespace = checks.plain_guid(network.values.get("namespace", ""))
    if (allowed := checks.guid(namespace)) is not None:
        raise network.error(f"namespace must be {allowed}, not {namespace!r}")
    return namespace


def _size(files: Table, path: str) -> int:
    size = files.values[path]
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    if not isinstance(size, str):
        raise files.error(f"{path!r} must be a size such as '4 MiB', or a number of bytes, not {size!r}")
    try:
        return parse_size(size)
    except ValueError as error:
        raise files.error(f"{path!r}: {error}") from None


def _layers(top: Table, linux: bool) -> dict[str, LCOWLayer | WCOWLayer]:
    layers: dict[str, LCOWLayer | WCOWLayer] = {}
    for table in top.tables("layers"):
        layer = table.make(_LinuxLayer) if linux else table.make(_WindowsLayer)
        if layer.name in layers:
            raise table.error(f"name {layer.name!r} is that of another layer")
        layers[layer.name] = layer.layer()
    return layers


def _containers(top: Table, layers: dict[str, LCOWLayer | WCOWLayer]) -> tuple[Container, ...]:
    containers: dict[str, Container] = {}
    for table in top.tables("containers"):
        container = table.make(Container)
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
