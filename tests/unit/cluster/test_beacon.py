"""The beacon's bytes: they prove themselves to those who share a key, and tell strangers who speaks and no more."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.discovery.beacon import (
    BEACON_BYTES_MAX,
    MAGIC,
    VERSION,
    Heard,
    Stranger,
    decode_beacon,
    encode_beacon,
)
from exo.shared.types.nodes import HostPort
from support.discoveries import facts

HOST, CLUSTER = b"s" * 32, b"c" * 32


def beacon(*keys: bytes, **changes: object) -> bytes:
    return encode_beacon(keys, facts(**changes), now_s=1234.5)


def with_clear_part(clear: bytes, *, version: int = VERSION, codes: bytes = b"") -> bytes:
    return MAGIC + bytes([version, len(codes) // 16]) + codes + len(clear).to_bytes(2, "big") + clear


def test_a_beacon_tells_the_facts_to_whoever_has_a_key_of_it() -> None:
    made = beacon(HOST, CLUSTER)
    assert len(made) <= BEACON_BYTES_MAX
    known = Heard(facts(name=facts().name[:64]), 1234.5)
    for keys in ([HOST], [CLUSTER], [b"t" * 32, CLUSTER]):
        assert decode_beacon(keys, made) == known, "names may be long"
    for keys in ([], [b"t" * 32]):
        assert isinstance(decode_beacon(keys, made), Stranger)


def test_the_longest_of_everything_fits_one_packet() -> None:
    made = beacon(
        HOST,
        CLUSTER,
        name="\N{WHITE SMILING FACE}" * 64,
        namespace="n" * 128,
        node_id="a" * 64,
        cluster_id="c" * 64,
        boot_id="b" * 32,
        exo_version="9" * 30,
        master_node_id="m" * 64,
        cluster_address=HostPort("fe80::1234:5678:9abc:def0%an-interface-0", 65535),
        master_address=HostPort("fe80::1234:5678:9abc:def0%an-interface-0", 65535),
    )
    assert len(made) <= BEACON_BYTES_MAX
    assert isinstance(decode_beacon([CLUSTER], made), Heard)


def test_a_stranger_learns_who_speaks_and_nothing_of_the_state() -> None:
    heard = decode_beacon([b"t" * 32], beacon(HOST))
    assert isinstance(heard, Stranger)
    assert heard.fault == "other_secret"
    assert set(msgspec.structs.asdict(heard.head)) == {
        "namespace",
        "node_id",
        "name",
        "cluster_address",
        "cluster_id",
        "exo_version",
        "sent_at_s",
    }
    assert (heard.head.node_id, heard.head.cluster_id, heard.head.namespace) == ("a", "c" * 32, "test")


@given(st.integers(min_value=0))
def test_no_bit_of_a_beacon_can_be_changed(position: int) -> None:
    made = bytearray(beacon(HOST))
    position %= 8 * len(made)
    made[position // 8] ^= 1 << position % 8
    assert not isinstance(decode_beacon([HOST], bytes(made)), Heard)


@given(st.integers(min_value=0))
def test_no_end_of_a_beacon_can_be_cut_off(length: int) -> None:
    made = beacon(HOST, CLUSTER)
    assert not isinstance(decode_beacon([HOST], made[: length % len(made)]), Heard)
    assert not isinstance(decode_beacon([HOST], made + b"\0"), Heard)


@given(st.binary(max_size=300))
def test_noise_is_no_beacon(data: bytes) -> None:
    for noise in (data, b"EXOB\x02" + data, with_clear_part(data), with_clear_part(data, version=9)):
        assert decode_beacon([HOST], noise) in ("malformed", "other_version")


def test_what_a_stranger_claims_is_bounded() -> None:
    good = msgspec.msgpack.decode(msgspec.msgpack.encode(_head()))
    assert isinstance(decode_beacon([], with_clear_part(msgspec.msgpack.encode(good))), Stranger)
    for field, value in (
        ("node_id", "a b"),
        ("node_id", "a\n"),
        ("node_id", ""),
        ("cluster_id", "x" * 65),
        ("name", "n" * 65),
        ("namespace", "n" * 129),
        ("exo_version", "1" * 65),
        ("cluster_address", {"host": "127.0.0.1", "port": 0}),
        ("cluster_address", {"host": "127.0.0.1", "port": 2**16}),
        ("cluster_address", {"host": "h" * 256, "port": 1}),
        ("cluster_address", {"host": "", "port": 1}),
        ("sent_at_s", "now"),
    ):
        bad = with_clear_part(msgspec.msgpack.encode(good | {field: value}))
        assert decode_beacon([], bad) == "malformed", (field, value)


def test_bytes_that_trip_a_decoder_are_only_malformed() -> None:
    for clear in (b"\x91" * 1100, b"\x81\xa1x" + b"\x91" * 1100, b"\x81\xa4name\xa1\xff", b"\xc1"):
        assert decode_beacon([HOST], with_clear_part(clear)) == "malformed"


def test_a_later_version_may_still_say_who_it_is() -> None:
    later = with_clear_part(msgspec.msgpack.encode(_head()), version=VERSION + 1) + b"something new"
    heard = decode_beacon([HOST], later)
    assert isinstance(heard, Stranger)
    assert (heard.fault, heard.head.exo_version) == ("other_version", "1")
    assert decode_beacon([HOST], b"EXOB\x09" + bytes(64)) == "other_version"


def _head() -> object:
    heard = decode_beacon([], beacon())
    assert isinstance(heard, Stranger)
    return heard.head
