"""How `--coordinator etcd://...` is read."""

from pathlib import Path

import pytest

from exo.cluster.etcd.address import EXAMPLE, EtcdAddress, parse_etcd_url
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort


def test_one_endpoint_is_enough() -> None:
    assert parse_etcd_url("etcd://127.0.0.1:2379") == EtcdAddress(endpoints=(HostPort("127.0.0.1", 2379),))
    assert parse_etcd_url("etcd://localhost/") == EtcdAddress(endpoints=(HostPort("localhost", 2379),))


def test_everything_can_be_said() -> None:
    url = (
        "etcds://10.0.0.1,[2001:db8::2]:4001,etcd.example:23790?prefix=/site/exo/&lease_s=10&user=exo"
        "&password_file=/run/secret&ca=/etc/ca.pem&cert=/etc/node.pem&key=/etc/node.key"
    )
    address = parse_etcd_url(url)
    assert address == EtcdAddress(
        endpoints=(
            HostPort("10.0.0.1", 2379),
            HostPort("2001:db8::2", 4001),
            HostPort("etcd.example", 23790),
        ),
        is_tls=True,
        prefix="site/exo",
        user="exo",
        password_file=Path("/run/secret"),
        ca_file=Path("/etc/ca.pem"),
        certificate_file=Path("/etc/node.pem"),
        key_file=Path("/etc/node.key"),
        lease_s=10,
    )
    assert address.url(address.endpoints[1]) == "https://[2001:db8::2]:4001"
    assert parse_etcd_url(EXAMPLE).is_tls


def test_plain_text_beyond_this_machine_has_to_be_wanted() -> None:
    with pytest.raises(ConfigurationError, match=r"10.0.0.1:2379 is another machine.*use etcds://"):
        parse_etcd_url("etcd://127.0.0.1,10.0.0.1")
    assert not parse_etcd_url("etcd://127.0.0.1,10.0.0.1?insecure=true").is_tls


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1", "begins neither with etcd:// nor"),
        ("etcd:127.0.0.1", "is not an address"),
        ("etcd://", "is not an address"),
        ("etcd://127.0.0.1:0", "is not an address"),
        ("etcd://127.0.0.1,", "is not an address"),
        ("etcd://exo:secret@127.0.0.1", "can be read by others"),
        ("etcd://127.0.0.1/exo", r"use \?prefix=NAME"),
        ("etcd://127.0.0.1?prefix=/", "the prefix is empty"),
        ("etcd://127.0.0.1?prefix", "bad query field"),
        ("etcd://127.0.0.1?prefix=a&prefix=b", "given twice"),
        ("etcd://127.0.0.1?lease_s=0", "lease_s is a whole number of seconds from 1 to 60"),
        ("etcd://127.0.0.1?lease_s=1.5", "lease_s is a whole number"),
        ("etcd://127.0.0.1?colour=red", "no option colour"),
        ("etcd://127.0.0.1?user=exo", "user and password_file go together"),
        ("etcds://127.0.0.1?cert=/a", "cert and key go together"),
        ("etcd://127.0.0.1?ca=/a", "are for etcds://"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_etcd_url(url)
    assert EXAMPLE in caught.value.message
