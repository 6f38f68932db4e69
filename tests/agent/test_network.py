"""The messages of rtnetlink, and the configuration of adapters."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest

from uvm.agent import network
from uvm.agent.modules import Modules
from uvm.agent.netlink import (
    Link,
    Message,
    Network,
    Socket,
    add_address,
    add_route,
    add_rule,
    move,
    set_mtu,
    set_up,
)
from uvm.agent.network import Networks, Route, parse_adapter, resolv_conf
from uvm.agent.refused import Refused
from uvm.agent.settings import Settings


def test_a_message_says_its_own_length() -> None:
    packed = set_mtu(3, 1400).packed(7)
    assert struct.unpack_from("=IHHII", packed) == (len(packed), 16, 5, 7, 0)
    assert packed[16:] == struct.pack("=BxHiII", 0, 0, 3, 0, 0) + struct.pack("=HHI", 8, 4, 1400)


def test_an_interface_is_brought_up_down_and_moved() -> None:
    assert set_up(3).body == struct.pack("=BxHiII", 0, 0, 3, 1, 1)
    assert set_up(3, up=False).body == struct.pack("=BxHiII", 0, 0, 3, 0, 1)
    name = struct.pack("=HH", 9, 3) + b"eth1\0" + bytes(3)
    assert move(3, 9, "eth1").body[16:] == struct.pack("=HHI", 8, 28, 9) + name


def test_an_address_has_its_broadcast_address_where_there_is_one() -> None:
    address = socket.inet_aton("10.0.2.15")
    body = add_address(3, Network.parse("10.0.2.15/24")).body
    local, remote = (struct.pack("=HH", 8, type) + address for type in (2, 1))
    broadcast = struct.pack("=HH", 8, 4) + socket.inet_aton("10.0.2.255")
    assert body == struct.pack("=4BI", socket.AF_INET, 24, 0, 0, 3) + local + remote + broadcast
    assert broadcast[:4] not in add_address(3, Network.parse("10.0.2.15")).body[8:]
    six = add_address(3, Network.parse("fd00::2/64")).body
    assert six[:2] == bytes([socket.AF_INET6, 64])
    assert len(six) == 8 + 2 * 20


def test_a_route_has_the_first_address_of_its_destination() -> None:
    body = add_route(3, Network.parse("10.1.2.3/16"), Network.parse("10.0.2.2"), 5, 101).body
    assert body[:8] == bytes([socket.AF_INET, 16, 0, 0, 101, 3, 0, 1])
    to = struct.pack("=HH", 8, 1) + socket.inet_aton("10.1.0.0")
    gateway = struct.pack("=HH", 8, 5) + socket.inet_aton("10.0.2.2")
    assert body[12:] == to + gateway + struct.pack("=HHI", 8, 4, 3) + struct.pack("=HHI", 8, 6, 5)


def test_a_default_route_has_no_destination_and_a_direct_one_no_gateway() -> None:
    default = add_route(3, None, Network.parse("fd00::1"))
    assert default.body[:8] == bytes([socket.AF_INET6, 0, 0, 0, 254, 3, 0, 1])
    direct = add_route(3, Network.parse("10.0.0.0/16"), None)
    assert direct.body[:8] == bytes([socket.AF_INET, 16, 0, 0, 254, 3, 253, 1])


def test_a_rule_sends_packets_of_an_address_to_a_table() -> None:
    body = add_rule(Network.parse("10.0.2.15"), 101, 5).body
    assert body[:12] == struct.pack("=8BI", socket.AF_INET, 0, 32, 0, 101, 0, 0, 1, 0)
    assert body[12:] == struct.pack("=HH4s", 8, 2, socket.inet_aton("10.0.2.15")) + struct.pack(
        "=HHI", 8, 6, 5
    )


@pytest.mark.parametrize("text", ["", "10.0.2", "10.0.2.1/33", "fd00::/129", "10.0.2.1/x", "eth0"])
def test_an_address_that_is_none_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="invalid"):
        Network.parse(text)


def test_the_kernel_shows_its_interfaces() -> None:
    with Socket() as kernel:
        links = kernel.links()
    loopback = next(link for link in links if link.name == "lo")
    assert loopback == Link(socket.if_nametoindex("lo"), "lo", "00:00:00:00:00:00", 65536)


def test_the_kernels_refusal_is_an_error() -> None:
    with Socket() as kernel, pytest.raises(OSError, match=r"No such device|Operation not permitted"):
        kernel.ask(set_mtu(1 << 30, 1400))


def test_a_socket_is_made_in_another_namespace_by_another_thread() -> None:
    # Its own namespace needs no privilege to name, and one to enter.
    before = os.readlink("/proc/thread-self/ns/net")
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        with Socket(own) as kernel:
            assert any(link.name == "lo" for link in kernel.links())
    except PermissionError:
        pass
    finally:
        os.close(own)
    assert os.readlink("/proc/thread-self/ns/net") == before


ADAPTER: dict[str, Any] = {
    "NamespaceID": "AB",
    "ID": "NIC-1",
    "MacAddress": "52-54-00-AB-CD-EF",
    "DNSSuffix": "a.example, B.example,a.example",
    "DNSServerList": "10.0.0.53,bad name\n",
    "IPConfigs": [{"IPAddress": "10.0.0.2", "PrefixLength": 24}],
    "Routes": [{"NextHop": "10.0.0.1", "DestinationPrefix": "0.0.0.0/0"}],
}


def test_an_adapter_is_read_from_its_request() -> None:
    found = parse_adapter(Settings(ADAPTER))
    assert (found.id, found.mac) == ("nic-1", "52:54:00:ab:cd:ef")
    assert found.addresses == (Network.parse("10.0.0.2/24"),)
    assert found.routes == (Route("0.0.0.0/0", "10.0.0.1", 0),)
    assert found.searches == ("a.example", "b.example")
    assert found.servers == ("10.0.0.53",)


def test_an_adapter_without_addresses_is_on_the_user_network() -> None:
    found = parse_adapter(Settings({"ID": "n", "MacAddress": "52-54-00-00-00-01"}))
    assert found.addresses == (Network.parse("10.0.2.15/24"),)
    assert found.routes == (Route("0.0.0.0/0", "10.0.2.2", 0),)
    assert found.servers == ("10.0.2.3",)


@pytest.mark.parametrize(
    "config", [{"IPAddress": "10.0.0", "PrefixLength": 8}, {"IPAddress": "10.0.0.1", "PrefixLength": 40}]
)
def test_an_address_of_a_request_that_is_none_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="parsing address failed"):
        parse_adapter(Settings({**ADAPTER, "IPConfigs": [config]}))


def test_the_resolver_has_the_servers_of_all_adapters_each_once() -> None:
    one = parse_adapter(Settings(ADAPTER))
    two = one._replace(searches=("c.example",), servers=("10.0.0.53", "fd00::53"))
    assert resolv_conf([one, two]) == (
        "search a.example b.example c.example\nnameserver 10.0.0.53\nnameserver fd00::53\n"
    )
    assert resolv_conf([]) == ""
    with pytest.raises(Refused, match="searches has more than 6 domains"):
        resolv_conf([one._replace(searches=tuple("abcdefg"))])


class Kernel:
    """Stands in for the kernel: keeps what is asked, by namespace, and answers with errors that are set."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.asked: list[tuple[int | None, Message]] = []
        self.errors: list[int] = []
        #: The interface is in a container, which has an eth0 of its own.
        self.moved = False

    def socket(self, namespace: int | None = None) -> Connection:
        return Connection(self, namespace)


class Connection:
    """A connection to the kernel."""

    def __init__(self, kernel: Kernel, namespace: int | None) -> None:
        self.kernel, self.namespace = kernel, namespace

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def links(self) -> list[Link]:
        inside = self.namespace is not None
        here = [self.kernel.link] if inside is self.kernel.moved else []
        return [Link(2, "eth0", "52:54:00:00:00:00", 1500), *here] if inside else here

    def ask(self, message: Message) -> None:
        self.kernel.asked.append((self.namespace, message))
        number = self.kernel.errors.pop(0) if self.kernel.errors else 0
        if number:
            raise OSError(number, os.strerror(number))
        self.kernel.moved |= message.body[18:20] == struct.pack("=H", 28)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(Link(3, "eth0", "52:54:00:ab:cd:ef", 1500))
    monkeypatch.setattr(network, "Socket", kernel.socket)
    return kernel


@pytest.fixture
def networks(tmp_path: Any) -> Networks:
    return Networks(Modules(str(tmp_path)), str(tmp_path / "resolv.conf"))


def test_an_adapter_is_configured_where_it_is_until_a_container_joins(
    kernel: Kernel, networks: Networks, tmp_path: Any
) -> None:
    networks.add("AB", parse_adapter(Settings({**ADAPTER, "EncapOverhead": 50})))
    assert [message for _, message in kernel.asked] == [
        set_mtu(3, 1450),
        set_up(3),
        add_address(3, Network.parse("10.0.0.2/24")),
        add_route(3, None, Network.parse("10.0.0.1")),
    ]
    assert (tmp_path / "resolv.conf").read_text().endswith("nameserver 10.0.0.53\n")
    kernel.asked.clear()
    networks.join("ab", os.getpid())
    (_, down), (_, moved), (inside, _), (_, up), *_ = kernel.asked
    assert down == set_up(3, up=False)
    # There is an eth0 in the container already.
    assert moved.body[24:] == move(3, 0, "eth1").body[24:]
    assert inside is not None
    assert up == set_up(3)
    networks.remove("ab", "nic-1")
    assert (tmp_path / "resolv.conf").read_text() == ""


def test_a_namespace_has_one_container_at_a_time(kernel: Kernel, networks: Networks) -> None:
    networks.join("AB", os.getpid())
    with pytest.raises(Refused, match=rf'previously assigned container pid {os.getpid()} to .* "ab"'):
        networks.join("ab", 2)
    networks.leave("ab", 2)
    with pytest.raises(Refused):
        networks.join("ab", 2)
    networks.leave("ab", os.getpid())
    networks.join("ab", os.getpid())


def test_an_adapter_is_added_once_and_removed_whatever_is_there(kernel: Kernel, networks: Networks) -> None:
    adapter = parse_adapter(Settings(ADAPTER))
    networks.add("ab", adapter)
    with pytest.raises(Refused, match="adapter with id: 'nic-1' already present in namespace"):
        networks.add("AB", adapter)
    with pytest.raises(Refused, match="contains adapters"):
        networks.delete("AB")
    networks.remove("AB", "NIC-1")
    networks.remove("AB", "NIC-1")
    networks.remove("other", "NIC-1")
    networks.delete("AB")
    networks.add("ab", adapter)


def test_an_adapter_that_cannot_be_configured_is_not_in_the_namespace(
    kernel: Kernel, networks: Networks
) -> None:
    adapter = parse_adapter(Settings(ADAPTER))
    kernel.errors = [16]
    with pytest.raises(Refused, match="failed to configure adapter aid: nic-1: device or resource busy"):
        networks.add("ab", adapter)
    networks.add("ab", adapter)


def test_an_adapter_that_is_not_there_is_refused(
    kernel: Kernel, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_APPEARS_SECONDS", 0)
    for mac in ("52-54-00-00-00-99", ""):
        with pytest.raises(Refused, match="timed out waiting for net adapter nic-1"):
            networks.add("ab", parse_adapter(Settings({**ADAPTER, "MacAddress": mac})))


def test_a_gateway_outside_of_the_networks_is_made_a_neighbour(kernel: Kernel, networks: Networks) -> None:
    kernel.errors = [0, 0, 101]
    networks.add("ab", parse_adapter(Settings(ADAPTER)))
    route = add_route(3, None, Network.parse("10.0.0.1"))
    neighbour = add_address(3, Network.parse("10.0.0.1"))
    assert [message for _, message in kernel.asked[2:]] == [route, neighbour, route]


def test_packets_return_by_the_adapter_they_came_by_unless_it_is_the_first(
    kernel: Kernel, networks: Networks
) -> None:
    adapter = parse_adapter(Settings({**ADAPTER, "PolicyBasedRouting": True}))
    networks.add("ab", adapter)
    gateway = Network.parse("10.0.0.1")
    assert kernel.asked[-1][1] == add_route(3, None, gateway)
    networks.add("ab", adapter._replace(id="nic-2"))
    rule, route = (message for _, message in kernel.asked[-2:])
    assert rule == add_rule(Network.parse("10.0.0.2"), 101, 5)
    assert route == add_route(3, None, gateway, 500, 101)


def test_each_adapter_that_is_routed_by_policy_has_a_table_that_no_other_of_its_namespace_has(
    kernel: Kernel, networks: Networks
) -> None:
    adapter = parse_adapter(Settings({**ADAPTER, "PolicyBasedRouting": True}))
    for name in ("nic-1", "nic-2", "nic-3"):
        networks.add("ab", adapter._replace(id=name))
    route = add_route(3, None, Network.parse("10.0.0.1"), 500, 102)
    assert kernel.asked[-1][1] == route
    networks.remove("ab", "nic-2")
    networks.add("ab", adapter._replace(id="nic-4"))
    assert kernel.asked[-1][1] == add_route(3, None, Network.parse("10.0.0.1"), 500, 101)
    networks.join("ab", os.getpid())
    assert route in [message for _, message in kernel.asked[-9:]]


@pytest.mark.parametrize(
    "route",
    [
        {"DestinationPrefix": "0.0.0.0/0", "NextHop": "0.0.0.0"},
        {"DestinationPrefix": "::/0", "NextHop": "::"},
    ],
)
def test_a_default_route_without_a_gateway_is_none(
    kernel: Kernel, networks: Networks, route: dict[str, Any]
) -> None:
    networks.add("ab", parse_adapter(Settings({**ADAPTER, "Routes": [route]})))
    assert kernel.asked[-1][1] == add_address(3, Network.parse("10.0.0.2/24"))


@pytest.mark.parametrize(
    "route", [{"DestinationPrefix": "0.0.0.0/0"}, {"DestinationPrefix": "x", "NextHop": "10.0.0.1"}]
)
def test_a_route_that_leads_nowhere_is_refused(
    kernel: Kernel, networks: Networks, route: dict[str, Any]
) -> None:
    with pytest.raises(Refused):
        networks.add("ab", parse_adapter(Settings({**ADAPTER, "Routes": [route]})))
