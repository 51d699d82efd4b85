"""What is made of datagrams: which address a node has, what strangers are told as, and floods that change nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.cluster.discovery.beacon import TEST_MAGIC, encode_beacon
from exo.cluster.discovery.hearing import (
    SILENT_S,
    SOURCES_MAX,
    STRANGERS_MAX,
    STRANGERS_PER_HOST_MAX,
    Hearing,
)
from exo.cluster.facts import ClusterFacts, PeerSeen, Sighting
from exo.shared.types.nodes import HostPort
from support.discoveries import facts

KEY, OTHER = b"k" * 32, b"o" * 32
OWN = facts("own")
ANYWHERE = {"cluster_address": HostPort("0.0.0.0", 7), "master_address": HostPort("0.0.0.0", 7)}


def hearing(*keys: bytes) -> Hearing:
    return Hearing(lambda: keys or (KEY,), via="multicast")


def hear(
    ear: Hearing, of: ClusterFacts, host: str = "10.0.0.2", *, key: bytes = KEY, now_s: float = 0.0
) -> Sighting | PeerSeen | None:
    news = ear.hear(encode_beacon([key], of, now_s=now_s), HostPort(host, 40000), OWN, now_s)
    return news.item if news is not None else None


def test_who_shares_a_key_is_sighted_and_new_once() -> None:
    ear = hearing(OTHER, KEY)
    data = encode_beacon([KEY], facts("b"), now_s=0)
    first = ear.hear(data, HostPort("10.0.0.2", 1), OWN, 0)
    second = ear.hear(data, HostPort("10.0.0.2", 1), OWN, 1)
    assert first is not None
    assert second is not None
    assert (first.is_new, second.is_new) == (True, False)
    assert isinstance(first.item, Sighting)
    assert first.item.address == HostPort("127.0.0.1", 50000)


def test_an_unspecified_address_is_where_it_was_heard_from() -> None:
    item = hear(hearing(), facts("b", **ANYWHERE))
    assert isinstance(item, Sighting)
    assert item.facts is not None
    assert item.address == item.facts.cluster_address == item.facts.master_address == HostPort("10.0.0.2", 7)
    followers = facts("c", **ANYWHERE, master_node_id="b")
    item = hear(hearing(), followers, "10.0.0.3")
    assert isinstance(item, Sighting)
    assert item.facts is not None
    assert item.facts.master_address is None, "0.0.0.0 would be this host"
    item = hear(hearing(), facts("b", cluster_address=HostPort("::", 7)), "fe80::1%eth0")
    assert isinstance(item, Sighting)
    assert str(item.address) == "[fe80::1%eth0]:7"


def test_a_node_heard_on_several_networks_keeps_one_address() -> None:
    ear = hearing()
    b = facts("b", **ANYWHERE)

    def host(source: str, now_s: float) -> str:
        item = hear(ear, b, source, now_s=now_s)
        assert isinstance(item, Sighting)
        return item.address.host

    assert host("fe80::1%eth0", 0) == "fe80::1%eth0"
    assert host("10.0.0.2", 0) == "10.0.0.2", "IPv4 is better"
    assert host("fe80::1%eth0", 1) == "10.0.0.2"
    assert host("192.168.0.2", 1) == "10.0.0.2", "not better"
    assert host("127.0.0.1", 1) == "127.0.0.1", "it is on this host"
    assert host("10.0.0.2", 2) == "127.0.0.1"
    assert host("10.0.0.2", 2 + SILENT_S) == "10.0.0.2", "no longer heard there"
    ear.forget(100)
    assert ear.node_count == 0


def test_this_nodes_own_beacon_teaches_all_its_addresses() -> None:
    ear = hearing()
    own = facts("own", **ANYWHERE)
    heard = [hear(ear, own, host) for host in ("127.0.0.1", "10.0.0.2", "fe80::1%eth0")]
    assert [item.address.host for item in heard if isinstance(item, Sighting)] == [
        "127.0.0.1",
        "10.0.0.2",
        "fe80::1%eth0",
    ]


@pytest.mark.parametrize(
    ("of", "status", "words"),
    [
        (facts("b", cluster_id="d" * 32), "other_secret", ("exo node approve b", "exo join TOKEN", "d" * 32)),
        (facts("b", cluster_id=None), "other_secret", ("exo node approve b", "none yet")),
        (facts("b"), "other_secret", ("of this cluster", "exo join TOKEN")),
        (facts("b", namespace="n"), "other_namespace", ("'n'", "--namespace")),
    ],
)
def test_a_stranger_is_named_with_what_to_do(of: ClusterFacts, status: str, words: tuple[str, ...]) -> None:
    seen = hear(hearing(), of, key=OTHER)
    assert isinstance(seen, PeerSeen)
    assert (seen.status, seen.node_id, seen.cluster_id, seen.namespace) == (
        status,
        "b",
        of.cluster_id,
        of.namespace,
    )
    assert all(word in seen.detail for word in words), seen.detail


def test_a_strangers_unspecified_address_is_where_it_was_heard_from() -> None:
    seen = hear(hearing(), facts("b", **ANYWHERE), key=OTHER)
    assert isinstance(seen, PeerSeen)
    assert seen.address == HostPort("10.0.0.2", 7)


def test_new_keys_count_at_once() -> None:
    keys = [KEY]
    ear = Hearing(lambda: keys, via="multicast")
    data = encode_beacon([OTHER], facts("b"), now_s=0)
    first = ear.hear(data, HostPort("10.0.0.2", 1), OWN, 0)
    keys.append(OTHER)
    second = ear.hear(data, HostPort("10.0.0.2", 1), OWN, 0)
    assert first is not None
    assert second is not None
    assert isinstance(first.item, PeerSeen)
    assert isinstance(second.item, Sighting)
    assert ear.counts == {"other_secret": 1, "heard": 1, "malformed": 0, "other_version": 0}


def test_a_stranger_is_told_about_once_a_second() -> None:
    ear = hearing()
    told = [hear(ear, facts("b"), key=OTHER, now_s=tick / 10) is not None for tick in range(30)]
    assert sum(told) == 4
    assert ear.counts["other_secret"] == 30


def test_a_flood_of_made_up_strangers_does_not_push_out_real_ones() -> None:
    ear = hearing()
    assert hear(ear, facts("real"), "10.0.0.2", key=OTHER) is not None
    told = 0
    for number in range(2000):
        host = f"10.1.{number // 200}.{number % 200}"
        told += hear(ear, facts(f"fake-{number}"), host, key=OTHER, now_s=0.5) is not None
    assert told == STRANGERS_MAX - 1
    assert hear(ear, facts("real"), "10.0.0.2", key=OTHER, now_s=1) is not None
    of_one_host = [
        hear(hearing_of_one, facts(f"fake-{number}"), key=OTHER) is not None
        for hearing_of_one in [hearing()]
        for number in range(50)
    ]
    assert sum(of_one_host) == STRANGERS_PER_HOST_MAX
    assert hear(ear, facts("late"), "10.9.0.1", key=OTHER, now_s=1) is None
    assert hear(ear, facts("late"), "10.9.0.1", key=OTHER, now_s=0.5 + SILENT_S) is not None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 5)), max_size=200))
def test_noise_is_counted_and_bounded(noise: list[tuple[bytes, int]]) -> None:
    ear = hearing()
    news = [ear.hear(data, HostPort(f"10.0.0.{host}", 9), OWN, 0.0) for data, host in noise]
    assert ear.counts.total() == sum(not data.startswith(TEST_MAGIC) for data, _ in noise)
    assert sum(one is not None for one in news) <= STRANGERS_MAX
    assert {one.item.status for one in news if one is not None and isinstance(one.item, PeerSeen)} <= {
        "malformed",
        "other_version",
    }


def test_what_doctor_sends_to_itself_is_passed_over() -> None:
    ear = hearing()
    assert ear.hear(TEST_MAGIC + bytes(600), HostPort("10.0.0.2", 1), OWN, 0) is None
    assert ear.counts.total() == 0


def test_members_are_remembered_up_to_a_bound() -> None:
    ear = hearing()
    for number in range(SOURCES_MAX + 10):
        hear(ear, facts(f"n{number}"))
    assert ear.node_count == SOURCES_MAX
