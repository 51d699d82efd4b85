"""What a node says of itself by DNS-SD, and what follows from what others say."""

from ipaddress import IPv4Interface, IPv6Interface

import pytest

from exo.cluster.discovery.addresses import best_first, own_hosts, with_scope
from exo.cluster.discovery.announced import (
    LABEL_BYTES_MAX,
    Announced,
    announce,
    judge_announced,
    read_announced,
)
from exo.cluster.discovery.interfaces import INTERFACES_MAX, Interface, suitable
from exo.cluster.facts import PeerSeen, Sighting
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from support.discoveries import facts

LOOPBACK = Interface("lo", 1, (IPv4Interface("127.0.0.1/8"),), (IPv6Interface("::1/128"),))
ETHERNET = Interface(
    "eth0",
    2,
    (IPv4Interface("10.0.0.1/24"),),
    (IPv6Interface("fd00::1/64"), IPv6Interface("fe80::1/64")),
)
BRIDGE = Interface("docker0", 3, (IPv4Interface("172.17.0.1/16"),), ())
HERE = [LOOPBACK, ETHERNET, BRIDGE]


def test_what_is_announced_is_read_again() -> None:
    made = announce(facts("a", cluster_address=HostPort("10.0.0.1", 7)), HERE)
    assert made.hosts == ("10.0.0.1",)
    found = read_announced(made.port, made.hosts, dict(made.properties))
    assert found == Announced(
        namespace="test",
        node_id=NodeId("a"),
        name=facts().name[:64],
        cluster_id=ClusterId("c" * 32),
        port=7,
        hosts=("10.0.0.1",),
    )
    assert set(made.properties) == {"namespace", "node", "name", "cluster", "version", "port"}


def test_an_unspecified_address_is_announced_as_all_there_are() -> None:
    everywhere = announce(facts(cluster_address=HostPort("::", 7)), HERE)
    assert everywhere.hosts == ("10.0.0.1", "172.17.0.1", "fd00::1", "fe80::1")
    assert announce(facts(cluster_address=HostPort("0.0.0.0", 7)), HERE).hosts == ("10.0.0.1", "172.17.0.1")
    assert announce(facts(), HERE).hosts == ("127.0.0.1",), "and a loopback address as nothing else"


def test_the_longest_names_fit() -> None:
    made = announce(facts("n" * 64, name="\N{WHITE SMILING FACE}" * 100, namespace="n" * 300), HERE)
    assert len(made.label.encode()) <= LABEL_BYTES_MAX
    assert len(made.server.removesuffix(".local.").encode()) <= LABEL_BYTES_MAX
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in made.properties.items())


@pytest.mark.parametrize(
    ("port", "hosts", "properties"),
    [
        (7, ["10.0.0.2"], {}),
        (7, ["10.0.0.2"], {"node": "a b"}),
        (7, ["10.0.0.2"], {"node": "a", "cluster": "c" * 65}),
        (7, ["10.0.0.2"], {"node": None}),
        (7, [], {"node": "a"}),
        (0, ["10.0.0.2"], {"node": "a"}),
        (None, ["10.0.0.2"], {"node": "a"}),
    ],
)
def test_what_cannot_be_dialled_is_nobody(
    port: int | None, hosts: list[str], properties: dict[str, str | None]
) -> None:
    assert read_announced(port, hosts, properties) is None


def other(*hosts: str, **changes: object) -> Announced:
    found = read_announced(
        7, hosts, {"namespace": "test", "node": "b", "cluster": "d", "name": "attic"} | changes
    )  # type: ignore[arg-type]
    assert found is not None
    return found


def test_its_addresses_take_turns_the_nearest_first() -> None:
    attic = other("172.17.0.1", "fe80::2%eth0", "192.168.9.9", "10.0.0.2", "fd00::2", "junk", "224.0.0.1")
    order = [judge_announced(attic, facts(), HERE, attempt, via="mdns") for attempt in range(6)]
    assert [item.address.host for item in order if isinstance(item, Sighting)] == [
        "10.0.0.2",
        "fd00::2",
        "192.168.9.9",
        "fe80::2%eth0",
        "172.17.0.1",
        "10.0.0.2",
    ]


def test_oneself_is_nobody_and_another_namespace_is_said() -> None:
    own = facts("b", cluster_address=HostPort("0.0.0.0", 7))
    assert judge_announced(other("10.0.0.1"), own, HERE, 0, via="mdns") is None
    assert judge_announced(other("junk"), facts(), HERE, 0, via="mdns") is None
    seen = judge_announced(other("10.0.0.2", namespace="n"), facts(), HERE, 0, via="mdns")
    assert isinstance(seen, PeerSeen)
    assert (seen.status, seen.name, seen.node_id, seen.cluster_id) == ("other_namespace", "attic", "b", "d")
    assert "'n'" in seen.detail


def test_scopes_and_own_addresses() -> None:
    assert with_scope("fe80::1", "eth0") == "fe80::1%eth0"
    assert with_scope("fe80::1%eth0", "eth1") == "fe80::1%eth0"
    for host in ("10.0.0.1", "169.254.0.1", "fd00::1", "localhost"):
        assert with_scope(host, "eth0") == host
    assert with_scope("fe80::1", None) == "fe80::1"
    assert [host.partition("%")[0] for host in own_hosts(HERE)] == [
        "10.0.0.1",
        "172.17.0.1",
        "fd00::1",
        "fe80::1",
    ]
    assert best_first([], HERE) == []


def test_many_interfaces_are_cut_to_those_with_most_to_offer() -> None:
    ports = [Interface(f"veth{n}", n, (), (IPv6Interface(f"fe80::{n:x}/64"),)) for n in range(10, 60)]
    chosen = suitable([*ports, Interface("down0", 9, (), ()), ETHERNET, LOOPBACK, BRIDGE])
    assert [one.name for one in chosen[:4]] == ["lo", "eth0", "docker0", "veth10"]
    assert len(chosen) == INTERFACES_MAX
