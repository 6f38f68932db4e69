"""rtnetlink: links, addresses, routes and rules, as messages over a socket of a network namespace.

A message is ``struct nlmsghdr`` (length, type, flags, sequence number, port), a structure by its type, and
attributes: length, type and value, in multiples of 4 bytes. The kernel answers each with its error number or
0, and a dump with messages up to one that ends it.

A socket belongs to the namespace in which it was made. So only its making needs a thread in that namespace,
one that ends with it.

Source: the kernel's ``include/uapi/linux/netlink.h``, ``rtnetlink.h``, ``if_link.h``, ``if_addr.h`` and
``fib_rules.h``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from uvm.agent.syscalls import enter_network
from uvm.agent.workers import apart

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=4BI")
_ROUTE: Final = struct.Struct("=8BI")

_ERROR, _DONE = 2, 3
_REQUEST, _ACKNOWLEDGE, _DUMP, _CREATE, _EXCLUSIVE = 1, 4, 0x300, 0x400, 0x200
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_RULE = 16, 18, 20, 24, 32
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_NET_NS_FD = 1, 3, 4, 28
_UP: Final = 1

_TABLE_MAIN: Final = 254
_PROTOCOL_BOOT, _UNIVERSE, _LINK_SCOPE, _UNICAST, _TO_TABLE = 3, 0, 253, 1, 1


class Link(NamedTuple):
    """A network interface."""

    number: int
    name: str
    mac: str
    mtu: int


class Network(NamedTuple):
    """An address with the length of its prefix, packed."""

    family: int
    address: bytes
    prefix: int

    @classmethod
    def parse(cls, text: str, prefix: int | None = None) -> Self:
        """Return an address, alone or with ``/PREFIX``.

        :param prefix: the length of its prefix; by default what the text has, or all of the address.
        :raises ValueError: it is none.
        """
        host, slash, after = text.partition("/")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            address = socket.inet_pton(family, host)
        except OSError:
            raise ValueError(f"invalid address: {text}") from None
        bits = 8 * len(address)
        if prefix is None:
            prefix = int(after) if slash else bits
        if not 0 <= prefix <= bits:
            raise ValueError(f"invalid address: {text}/{prefix}")
        return cls(family, address, prefix)

    @property
    def first(self) -> bytes:
        """The first address of the network."""
        bits = 8 * len(self.address)
        kept = int.from_bytes(self.address, "big") >> (bits - self.prefix) << (bits - self.prefix)
        return kept.to_bytes(len(self.address), "big")


class Message(NamedTuple):
    """A request: its type, its flags besides those of every request, and what follows the header."""

    type: int
    flags: int
    body: bytes

    def packed(self, sequence: int) -> bytes:
        """Return its bytes."""
        size = _HEADER.size + len(self.body)
        return _HEADER.pack(size, self.type, _REQUEST | self.flags, sequence, 0) + self.body


def _attribute(type: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), type) + value + bytes(-len(value) % 4)


def _number(type: int, value: int) -> bytes:
    return _attribute(type, struct.pack("=I", value))


def get_links() -> Message:
    """Return the request for all interfaces."""
    return Message(_GET_LINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0))


def set_up(index: int, up: bool = True) -> Message:
    """Return the request that brings an interface up or down."""
    return Message(_NEW_LINK, _ACKNOWLEDGE, _LINK.pack(0, 0, index, _UP if up else 0, _UP))


def set_mtu(index: int, mtu: int) -> Message:
    """Return the request that sets the largest packet of an interface."""
    return Message(_NEW_LINK, _ACKNOWLEDGE, _LINK.pack(0, 0, index, 0, 0) + _number(_IFLA_MTU, mtu))


def move(index: int, namespace: int, name: str) -> Message:
    """Return the request that moves an interface to a network namespace, which is an open file.

    :param name: its name there.
    """
    body = _LINK.pack(0, 0, index, 0, 0) + _number(_IFLA_NET_NS_FD, namespace)
    body += _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    return Message(_NEW_LINK, _ACKNOWLEDGE, body)


def add_address(index: int, network: Network) -> Message:
    """Return the request that adds an address to an interface."""
    body = _ADDRESS.pack(network.family, network.prefix, 0, 0, index)
    body += _attribute(2, network.address) + _attribute(1, network.address)
    if network.family == socket.AF_INET and network.prefix < 31:
        hosts = (1 << (32 - network.prefix)) - 1
        body += _attribute(4, (int.from_bytes(network.address, "big") | hosts).to_bytes(4, "big"))
    return Message(_NEW_ADDRESS, _ACKNOWLEDGE | _CREATE | _EXCLUSIVE, body)


def add_route(
    index: int, to: Network | None, gateway: Network | None, metric: int = 0, table: int = 0
) -> Message:
    """Return the request that adds a route through an interface.

    :param to: its destination; by default everything.
    :param gateway: by default the destination is on the interface's own network.
    :param table: the table of routes; by default the main one.
    """
    family = (gateway or to or Network(socket.AF_INET, b"", 0)).family
    table = table or _TABLE_MAIN
    scope = _UNIVERSE if gateway or family == socket.AF_INET6 else _LINK_SCOPE
    body = _ROUTE.pack(family, to.prefix if to else 0, 0, 0, table, _PROTOCOL_BOOT, scope, _UNICAST, 0)
    body += b"" if to is None else _attribute(1, to.first)
    body += b"" if gateway is None else _attribute(5, gateway.address)
    body += _number(4, index) + (_number(6, metric) if metric else b"")
    return Message(_NEW_ROUTE, _ACKNOWLEDGE | _CREATE | _EXCLUSIVE, body)


def add_rule(source: Network, table: int, priority: int) -> Message:
    """Return the request that has packets from an address follow the routes of a table."""
    body = _ROUTE.pack(source.family, 0, source.prefix, 0, table, 0, 0, _TO_TABLE, 0)
    body += _attribute(2, source.address) + _number(6, priority)
    return Message(_NEW_RULE, _ACKNOWLEDGE | _CREATE | _EXCLUSIVE, body)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the body of each message in what the kernel sent."""
    at = 0
    while len(data) - at >= _HEADER.size:
        size, type, _, _, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        yield type, data[at + _HEADER.size : at + size]
        at += size + -size % 4


def link(body: bytes) -> Link:
    """Return the interface of a message."""
    found = dict(_attributes(body[_LINK.size :]))
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    mtu = int.from_bytes(found.get(_IFLA_MTU, b""), "little")
    return Link(_LINK.unpack_from(body)[2], name, found.get(_IFLA_ADDRESS, b"").hex(":"), mtu)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while len(data) - at >= _ATTRIBUTE.size:
        size, type = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield type, data[at + _ATTRIBUTE.size : at + size]
        at += size + -size % 4


class Socket:
    """A connection to the kernel about one network namespace.

    :param namespace: the namespace, as an open file; by default that of the agent itself.
    """

    def __init__(self, namespace: int | None = None) -> None:
        self._socket = _made_in(namespace)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def ask(self, message: Message) -> None:
        """Send a request.

        :raises OSError: the kernel refuses it.
        """
        self._send(message)
        for _, body in messages(self._socket.recv(65536)):
            number = -struct.unpack_from("=i", body)[0]
            if number:
                raise OSError(number, os.strerror(number))

    def links(self) -> list[Link]:
        """Return the interfaces of the namespace."""
        self._send(get_links())
        found: list[Link] = []
        while True:
            for type, body in messages(self._socket.recv(1 << 20)):
                if type in (_DONE, _ERROR):
                    return found
                found.append(link(body))

    def _send(self, message: Message) -> None:
        self._sequence += 1
        self._socket.send(message.packed(self._sequence))


def _made_in(namespace: int | None) -> socket.socket:
    def make() -> socket.socket:
        if namespace is not None:
            enter_network(namespace)
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    return apart(make)
