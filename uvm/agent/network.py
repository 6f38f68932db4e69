"""Network adapters, in namespaces that the host names.

A namespace is a name for adapters until a container joins it; then they move into the network namespace of
the container's first process, and are configured there, as is each that comes later. Until then an adapter is
configured where it is, so that the processes of the guest itself have a network (hcsshim's guest leaves it as
it is). When a container's network namespace ends, the kernel returns its adapters to the guest's own.

An adapter is found by its MAC address, and its interface by that again after it has moved. One whose request
has no addresses is on QEMU's user network, which is 10.0.2.0/24 in each VM.

Source: hcsshim internal/guest/runtime/hcsv2/network.go and internal/guest/network.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Final, NamedTuple

from uvm.agent.attempts import attempts
from uvm.agent.modules import Modules
from uvm.agent.netlink import (
    Link,
    Network,
    Socket,
    add_address,
    add_route,
    add_rule,
    move,
    set_mtu,
    set_up,
)
from uvm.agent.refused import Refused, reason
from uvm.agent.settings import Settings

_APPEARS_SECONDS: Final = 30.0

#: The first table of adapters whose packets return by the adapter they came by, and the priority of their
#: rules.
_POLICY_TABLE: Final = 101
_POLICY_PRIORITY: Final = 5
_LOW_METRIC: Final = 500

_EVERYTHING: Final = ("0.0.0.0/0", "::/0")
_NO_GATEWAY: Final = ("0.0.0.0", "::")

_RESOLV_CONF: Final = "/etc/resolv.conf"
#: How many search domains resolv.conf(5) has.
_MAX_SEARCHES: Final = 6


class Route(NamedTuple):
    """A route of an adapter, as the host names it."""

    destination: str
    gateway: str
    metric: int


class Adapter(NamedTuple):
    """A network adapter and its configuration.

    :ivar mac: its MAC address, in lower case with colons.
    :ivar addresses: with the lengths of their prefixes.
    :ivar policy: packets from its addresses leave by it, unless it is the first of its namespace.
    :ivar table: the table that has its routes then; 0 for the kernel's main one.
    """

    id: str
    mac: str
    addresses: tuple[Network, ...]
    routes: tuple[Route, ...]
    searches: tuple[str, ...]
    servers: tuple[str, ...]
    overhead: int
    policy: bool
    table: int


def parse_adapter(settings: Settings) -> Adapter:
    """Return the adapter of a request; without addresses it is on QEMU's user network.

    :raises Refused: an address is none.
    """
    try:
        addresses = tuple(
            Network.parse(each.text("IPAddress"), each.number("PrefixLength", 128))
            for each in settings.parts("IPConfigs")
        )
    except ValueError as error:
        raise Refused(f"parsing address failed: {error}") from None
    routes = tuple(
        Route(each.text("DestinationPrefix"), each.text("NextHop"), each.number("Metric", 0xFFFF))
        for each in settings.parts("Routes")
    )
    servers = _names(settings.text("DNSServerList"))
    if not addresses:
        addresses = (Network.parse("10.0.2.15/24"),)
        routes = routes or (Route("0.0.0.0/0", "10.0.2.2", 0),)
        servers = servers or ("10.0.2.3",)
    return Adapter(
        settings.text("ID").lower(),
        settings.text("MacAddress").lower().replace("-", ":"),
        addresses,
        routes,
        _names(settings.text("DNSSuffix")),
        servers,
        settings.number("EncapOverhead", 0xFFFF),
        settings.flag("PolicyBasedRouting"),
        _POLICY_TABLE if settings.flag("EnableLowMetric") else 0,
    )


def _names(joined: str) -> tuple[str, ...]:
    """Return the names in a list that is joined with commas, each once; none has whitespace in it."""
    names = (name.strip().lower() for name in joined.split(","))
    return tuple(dict.fromkeys(name for name in names if name and len(name.split()) == 1))


def resolv_conf(adapters: Iterable[Adapter]) -> str:
    """Return the contents of ``/etc/resolv.conf`` for adapters.

    :raises Refused: they have too many search domains.
    """
    adapters = list(adapters)
    searches = dict.fromkeys(name for adapter in adapters for name in adapter.searches)
    servers = dict.fromkeys(name for adapter in adapters for name in adapter.servers)
    if len(searches) > _MAX_SEARCHES:
        raise Refused(f"searches has more than {_MAX_SEARCHES} domains")
    lines = [f"search {' '.join(searches)}"] if searches else []
    return "".join(f"{line}\n" for line in (*lines, *(f"nameserver {each}" for each in servers)))


class _Namespace:
    """A namespace: its adapters, in order, and the process whose network namespace it is; 0 without one."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.pid = 0

    def add(self, adapter: Adapter) -> Adapter:
        """Add an adapter, with a table that no other has if it is routed by policy; return it."""
        if adapter.policy:
            taken = {each.table for each in self.adapters.values()}
            table = next(number for number in count(_POLICY_TABLE) if number not in taken)
            adapter = adapter._replace(table=table if self.adapters else 0)
        self.adapters[adapter.id] = adapter
        return adapter

    def is_first(self, adapter: Adapter) -> bool:
        """Return whether an adapter is the first of those that are there."""
        return next(iter(self.adapters)) == adapter.id


class Networks:
    """The namespaces that the host has named. Its methods may be called from any thread.

    :param resolv: the file of the guest's own resolver.
    """

    def __init__(self, modules: Modules, resolv: str = _RESOLV_CONF) -> None:
        self._modules, self._resolv = modules, resolv
        self._namespaces: dict[str, _Namespace] = {}
        self._lock = threading.Lock()

    def add(self, namespace_id: str, adapter: Adapter) -> None:
        """Add an adapter to a namespace, and configure it.

        :raises Refused: it is there already, there is no such device, or it cannot be configured; then the
            namespace is as it was.
        """
        self._modules.need("virtio_net")
        # Others need not wait for it.
        with Socket() as kernel:
            _wait_for(kernel, adapter)
        with self._lock:
            namespace = self._namespaces.setdefault(namespace_id.lower(), _Namespace())
            if adapter.id in namespace.adapters:
                raise Refused(f"adapter with id: '{adapter.id}' already present in namespace")
            try:
                self._configure(namespace, namespace.add(adapter))
            except (Refused, OSError) as error:
                del namespace.adapters[adapter.id]
                raise _refusal(adapter, error) from None

    def remove(self, namespace_id: str, adapter_id: str) -> None:
        """Forget an adapter; do nothing if it is not known. The host removes its device."""
        with self._lock:
            namespace = self._namespaces.get(namespace_id.lower())
            adapters = {} if namespace is None else namespace.adapters
            if adapters.pop(adapter_id.lower(), None) is not None:
                self._write_resolv_conf()

    def join(self, namespace_id: str, pid: int) -> None:
        """Move the adapters of a namespace into the network namespace of a container's process.

        :raises Refused: it has another container, or an adapter cannot be configured.
        """
        with self._lock:
            namespace = self._namespaces.setdefault(namespace_id.lower(), _Namespace())
            if namespace.pid:
                name = namespace_id.lower()
                raise Refused(
                    f'previously assigned container pid {namespace.pid} to network namespace "{name}"'
                )
            namespace.pid = pid
            for adapter in namespace.adapters.values():
                try:
                    self._configure(namespace, adapter)
                except OSError as error:
                    raise _refusal(adapter, error) from None

    def leave(self, namespace_id: str, pid: int) -> None:
        """Note that a container has ended, and its network namespace with it."""
        with self._lock:
            namespace = self._namespaces.get(namespace_id.lower())
            if namespace is not None and namespace.pid == pid:
                namespace.pid = 0

    def delete(self, namespace_id: str) -> None:
        """Forget a namespace.

        :raises Refused: it has adapters.
        """
        with self._lock:
            namespace = self._namespaces.get(namespace_id.lower())
            if namespace is not None and namespace.adapters:
                raise Refused(f"network namespace '{namespace_id.lower()}' contains adapters")
            self._namespaces.pop(namespace_id.lower(), None)

    def resolv_conf(self, namespace_id: str) -> str:
        """Return the contents of ``/etc/resolv.conf`` for the containers of a namespace."""
        with self._lock:
            namespace = self._namespaces.get(namespace_id.lower())
            return resolv_conf(namespace.adapters.values()) if namespace else ""

    def _configure(self, namespace: _Namespace, adapter: Adapter) -> None:
        if adapter.policy and namespace.is_first(adapter):
            adapter = adapter._replace(table=0)
        if not namespace.pid:
            with Socket() as kernel:
                _bring_up(kernel, _named(kernel, "lo"))
                _configure(kernel, adapter)
            self._write_resolv_conf()
            return
        of_container = os.open(f"/proc/{namespace.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Socket() as kernel, Socket(of_container) as inside:
                if _with_mac(inside.links(), adapter.mac) is None:
                    # It comes back from an earlier container's namespace only when the kernel has ended that.
                    found = _wait_for(kernel, adapter)
                    kernel.ask(set_up(found.number, up=False))
                    kernel.ask(move(found.number, of_container, _free_name(found.name, inside.links())))
                _configure(inside, adapter)
        finally:
            os.close(of_container)

    def _write_resolv_conf(self) -> None:
        """Have the guest's own processes use the servers of the adapters that no container has."""
        namespaces = (each for each in self._namespaces.values() if not each.pid)
        text = resolv_conf(adapter for each in namespaces for adapter in each.adapters.values())
        os.makedirs(os.path.dirname(self._resolv), exist_ok=True)
        with open(self._resolv, "w", encoding="utf-8") as file:
            file.write(text)


def _refusal(adapter: Adapter, error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    text = reason(error) if isinstance(error, OSError) else str(error)
    return Refused(f"failed to configure adapter aid: {adapter.id}: {text}")


def _wait_for(kernel: Socket, adapter: Adapter) -> Link:
    """Return the interface of an adapter, once it is there.

    :raises Refused: there is none.
    """
    for _ in attempts(_APPEARS_SECONDS):
        if (found := _with_mac(kernel.links(), adapter.mac)) is not None:
            return found
    problem = f"timed out waiting for net adapter {adapter.id}"
    raise Refused(f"{problem}: none has the MAC {adapter.mac!r}")


def _with_mac(links: Sequence[Link], mac: str) -> Link | None:
    return next((each for each in links if mac and each.mac == mac), None)


def _free_name(name: str, links: Sequence[Link]) -> str:
    """Return a name for an interface that comes to others: its own, or the first that is free."""
    names = {each.name for each in links}
    return next(each for each in (name, *map("eth{}".format, range(len(names) + 1))) if each not in names)


def _named(kernel: Socket, name: str) -> Link | None:
    return next((each for each in kernel.links() if each.name == name), None)


def _bring_up(kernel: Socket, link: Link | None) -> None:
    if link is not None:
        kernel.ask(set_up(link.number))


def _configure(kernel: Socket, adapter: Adapter) -> None:
    """Configure an adapter in the namespace that it is in.

    :raises OSError: the kernel refuses something.
    :raises Refused: a route is none, or the adapter is not there.
    """
    found = _with_mac(kernel.links(), adapter.mac)
    if found is None:
        raise Refused(f"there is no interface with the MAC {adapter.mac!r}")
    if adapter.overhead:
        kernel.ask(set_mtu(found.number, found.mtu - adapter.overhead))
    kernel.ask(set_up(found.number))
    for address in adapter.addresses:
        kernel.ask(add_address(found.number, address))
        if adapter.table:
            alone = Network(address.family, address.address, 8 * len(address.address))
            kernel.ask(add_rule(alone, adapter.table, _POLICY_PRIORITY))
    for route in adapter.routes:
        _add_route(kernel, found.number, route, adapter.table)


def _add_route(kernel: Socket, index: int, route: Route, table: int) -> None:
    if route.destination in _EVERYTHING and route.gateway in _NO_GATEWAY:
        return  # there is no default gateway
    try:
        to = None if route.destination in _EVERYTHING else Network.parse(route.destination)
        gateway = Network.parse(route.gateway) if route.gateway else None
    except ValueError as error:
        raise Refused(f"parsing route dst address {route.destination} failed: {error}") from None
    if to is None and gateway is None:
        raise Refused("gw and destination cannot both be nil")
    metric = route.metric or (_LOW_METRIC if table else 0)
    message = add_route(index, to, gateway, metric, table)
    try:
        kernel.ask(message)
    except OSError as error:
        if error.errno != errno.ENETUNREACH or gateway is None:
            raise
        # A gateway outside of the adapter's networks is reached as a neighbour.
        kernel.ask(add_address(index, gateway))
        kernel.ask(message)
