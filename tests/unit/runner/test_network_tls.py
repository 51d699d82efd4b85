"""The stage process's sockets towards other hosts: two networks in one process that take each other for far away."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from exo.dataplane import frames as f
from exo.dataplane.errors import ProtocolError
from exo.dataplane.handshake import REPLIES
from exo.dataplane.identity import DataTrust
from exo.dataplane.pulse import Heard
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId, RequestId
from exo.worker.runner import link
from exo.worker.runner.network import RECEIVE_BYTES, Connection, Network
from support.data_hosts import data_identity, is_nobody_local, member, mixed_up
from support.memberships import Membership, utc_now

LONG_AGO = utc_now() - timedelta(days=40)


@pytest.fixture
def membership(tmp_path: Path) -> Membership:
    return Membership(tmp_path)


class Side:
    """A network and what happened to it; each has another host's secret."""

    def __init__(self, node_id: str, trust: DataTrust) -> None:
        self.node_id = node_id
        self.network = Network(
            "127.0.0.1",
            secret=node_id.encode() * 8,
            sender=node_id,
            node_id=NodeId(node_id),
            trust=trust,
            is_local=is_nobody_local,
        )
        self.frames: list[tuple[f.Frame, bytes | bytearray]] = []
        self.opened: list[Connection] = []
        self.lost: list[tuple[Connection, str]] = []
        self.network.on_frame = lambda _, frame, payload: self.frames.append((frame, payload))
        self.network.on_open = self.opened.append
        self.network.on_lost = lambda connection, reason: self.lost.append((connection, reason))


@contextmanager
def sides(
    membership: Membership, one: DataTrust | None = None, other: DataTrust | None = None
) -> Iterator[tuple[Side, Side]]:
    made = Side("one", one or member(membership, "one")), Side("other", other or member(membership, "other"))
    try:
        yield made
    finally:
        for side in made:
            side.network.close()


def turn_until(condition: Callable[[], bool], *turned: Side) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        for side in turned:
            side.network.poll(0.001)


def dial(one: Side, other: Side, node_id: str | None = "other") -> Connection:
    return one.network.dial(
        other.network.address, REPLIES, "other", node_id=None if node_id is None else NodeId(node_id)
    )


def linked(one: Side, other: Side) -> Connection:
    connection = dial(one, other, other.node_id)
    turn_until(lambda: connection.is_open and len(other.opened) == 1, one, other)
    return connection


def big(number: int) -> f.Activation:
    return f.Activation(
        request_id=RequestId("r"), position=number, shape=(1, 1, 1), dtype="float32", wants_token=False
    )


def test_frames_arrive_in_order_with_their_payloads(membership: Membership) -> None:
    with sides(membership) as (one, other):
        to_other = dial(one, other)
        # Sent before anything is connected: it waits for the handshake. Short and long ones take other ways.
        sizes = [0, 1, 1000, 70_000, 3, 16_384, 200_000, 65_536, 65_535, 600_000, 0]
        sent = [(big(number), bytes([number]) * size) for number, size in enumerate(sizes * 2)]
        for frame, payload in sent[: len(sizes)]:
            to_other.send(frame, payload)
        turn_until(lambda: len(other.frames) == len(sizes), one, other)
        for frame, payload in sent[len(sizes) :]:
            to_other.send(frame, memoryview(payload))
        turn_until(lambda: len(other.frames) == len(sent), one, other)
        assert other.frames == sent
        assert (to_other.node_id, other.opened[0].node_id) == ("other", "one")
        assert other.opened[0].label == "one"
        other.opened[0].send(big(99), b"back")
        turn_until(lambda: bool(one.frames), one, other)
        assert one.frames == [(big(99), b"back")]
        assert not to_other.backlog_bytes


def test_a_payload_larger_than_every_buffer_is_its_senders_again_at_once(membership: Membership) -> None:
    with sides(membership) as (one, other):
        to_other = linked(one, other)
        payload = bytearray(bytes(range(256)) * (RECEIVE_BYTES // 16))
        expected = bytes(payload)
        to_other.send(big(1), memoryview(payload))
        to_other.send(big(2))
        assert to_other.backlog_bytes > 0
        payload[:] = bytes(len(payload))
        turn_until(lambda: len(other.frames) == 2, one, other)
        assert other.frames == [(big(1), expected), (big(2), b"")]
        assert to_other.backlog_bytes == 0


def test_whoever_does_not_read_holds_the_sender_back(membership: Membership) -> None:
    with sides(membership) as (one, other):
        to_other = linked(one, other)
        other.opened[0].read_or_pause(False)
        for number in range(200):
            to_other.send(big(number), bytes(100_000))
        for _ in range(50):
            one.network.poll(0)
            other.network.poll(0)
        assert other.frames == []
        assert to_other.backlog_bytes > 1_000_000
        other.opened[0].read_or_pause(True)
        turn_until(lambda: len(other.frames) == 200, one, other)
        assert [frame.position for frame, _ in other.frames if isinstance(frame, f.Activation)] == list(
            range(200)
        )


def test_who_is_meant_has_to_be_there(membership: Membership) -> None:
    with sides(membership) as (one, other):
        dial(one, other, "somebody").send(big(1))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert "is the node other, and somebody should be there" in one.lost[0][1]
        assert (other.frames, other.opened) == ([], [])


@pytest.mark.parametrize(
    ("own", "node_id", "words"),
    [(DataTrust(), "other", "no certificate of a cluster"), (None, None, "nobody said which node")],
)
def test_what_cannot_be_dialled_is_told_by_the_next_poll(
    membership: Membership, own: DataTrust | None, node_id: str | None, words: str
) -> None:
    with sides(membership, own) as (one, other):
        connection = dial(one, other, node_id)
        connection.send(big(1))
        assert one.lost == []
        one.network.poll(0)
        assert words in one.lost[0][1]
        assert one.lost[0][0] is connection
        other.network.poll(0)
        assert other.opened == []


def test_another_cluster(membership: Membership, tmp_path: Path) -> None:
    foreign = DataTrust(identity=mixed_up(membership, Membership(tmp_path, "c2"), "one", tmp_path))
    with sides(membership, foreign) as (one, other):
        dial(one, other).send(big(1))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert "does not know the authority of this node's certificate" in one.lost[0][1]
        assert "is from the authority of another cluster" in other.lost[0][1]
        assert (other.frames, other.opened) == ([], [])


def test_an_expired_certificate(membership: Membership) -> None:
    expired = DataTrust(identity=data_identity(membership.identity("one", at=LONG_AGO)))
    with sides(membership, expired) as (one, other):
        dial(one, other).send(big(1))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert "it says that this node's certificate has expired" in one.lost[0][1]
        assert (other.frames, other.opened) == ([], [])


def test_who_was_thrown_out_is_told(membership: Membership) -> None:
    trust = DataTrust(
        identity=member(membership, "other").identity, removed_node_ids=frozenset({NodeId("one")})
    )
    with sides(membership, other=trust) as (one, other):
        dial(one, other).send(big(1))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert "refused: the certificate of the node connecting from 127.0.0.1" in one.lost[0][1]
        assert (other.frames, other.opened) == ([], [])


def test_who_is_thrown_out_later_is_cut_off(membership: Membership) -> None:
    with sides(membership) as (one, other):
        identity = member(membership, "other").identity
        linked(one, other)
        other.network.set_trust(DataTrust(identity=identity, revoked_serials=frozenset({"abc"})))
        other.network.poll(0)
        assert other.lost == []
        assert other.opened[0].opening.certificate is not None
        serial = other.opened[0].opening.certificate.serial
        other.network.set_trust(DataTrust(identity=identity, revoked_serials=frozenset({serial})))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert "the certificate of the node one was revoked" in other.lost[0][1]


def test_a_renewed_certificate_cuts_nothing_and_another_cluster_everything(
    membership: Membership, tmp_path: Path
) -> None:
    with sides(membership) as (one, other):
        to_other = linked(one, other)
        one.network.set_trust(member(membership, "one"))
        to_other.send(big(1))
        turn_until(lambda: bool(other.frames), one, other)
        one.network.set_trust(member(Membership(tmp_path, "c2"), "one"))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert one.lost[0][1] == "this node belongs to another cluster now"


def test_a_certificate_that_cannot_be_read_leaves_the_one_before_but_not_who_was_thrown_out(
    membership: Membership,
) -> None:
    with sides(membership) as (one, other):
        linked(one, other)
        identity = member(membership, "other").identity
        assert identity is not None
        Path(identity.certificate_file).write_text("nonsense")
        broken = DataTrust(identity=identity, removed_node_ids=frozenset({NodeId("one")}))
        other.network.set_trust(broken)
        other.network.poll(0)
        assert "was revoked" in other.lost[0][1]
        other.network.set_trust(DataTrust(identity=broken.identity))
        turn_until(lambda: bool(one.lost), one, other)
        again = dial(one, other)
        turn_until(lambda: again.is_open, one, other)


@pytest.mark.parametrize(
    "sent", [b"\x16" + b"\xff" * 100, b"\x16\x03\x01\x02\x00" + b"\0" * 5000, b"\xff" * 100, b"GET /\r\n"]
)
def test_garbage_closes_the_connection(membership: Membership, sent: bytes) -> None:
    with sides(membership) as (one, other):
        with socket.create_connection((one.network.address.host, one.network.address.port)) as stranger:
            stranger.sendall(sent)
            turn_until(lambda: bool(one.lost), one)
            stranger.settimeout(5)
            try:
                # Perhaps an alert of TLS first.
                assert stranger.recv(100)[:1] in (b"", b"\x15")
            except ConnectionResetError:
                pass
        assert (one.frames, one.opened) == ([], [])
        linked(other, one)


def test_plain_from_another_host_is_refused_even_with_the_secret(membership: Membership) -> None:
    near = Network("127.0.0.1", secret=b"one" * 8, sender="near")
    lost: list[str] = []
    near.on_lost = lambda _, reason: lost.append(reason)
    try:
        with sides(membership) as (one, _):
            near.dial(one.network.address, REPLIES, "one").send(big(1))
            deadline = time.monotonic() + 10
            while not (one.lost and lost) and time.monotonic() < deadline:
                near.poll(0.001)
                one.network.poll(0.001)
            assert "is on another host and shows no certificate" in one.lost[0][1]
            assert one.frames == []
    finally:
        near.close()


def test_a_frame_that_is_refused_closes_the_connection(membership: Membership) -> None:
    with sides(membership) as (one, other):

        def refuse(*_: object) -> None:
            raise ProtocolError("not here")

        other.network.on_frame = refuse
        dial(one, other).send(big(1))
        turn_until(lambda: bool(other.lost) and bool(one.lost), one, other)
        assert other.lost[0][1] == "not here"


def test_bytes_that_were_changed_on_the_way_end_the_connection(membership: Membership) -> None:
    with sides(membership) as (one, other):
        to_other = linked(one, other)
        to_other._raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))  # pyright: ignore[reportPrivateUsage]
        turn_until(lambda: bool(other.lost), one, other)
        assert "sent something that is not TLS" in other.lost[0][1]
        assert other.frames == []


def test_a_host_that_acknowledges_nothing_is_lost(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sides(membership) as (one, other):
        linked(one, other)
        monkeypatch.setattr(link, "listen_to", lambda raw: Heard(1, 60.0))
        one.network.poll(0)
        began_s = time.monotonic()
        while not one.lost:
            # Waiting for ever still wakes up for this.
            one.network.poll(None)
        assert "its host has not been heard of for 1.25 s" in one.lost[0][1]
        assert time.monotonic() - began_s < 5


def test_idle_connections_are_pinged_and_pings_are_no_frames(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sides(membership) as (one, other):
        to_other = linked(one, other)
        monkeypatch.setattr(link, "listen_to", lambda raw: Heard(0, 60.0))
        sent: list[f.Frame] = []
        send = to_other.send

        def noting(frame: f.Frame, payload: bytes | memoryview = b"") -> None:
            sent.append(frame)
            send(frame, payload)

        monkeypatch.setattr(to_other, "send", noting)
        later_s = time.monotonic() + 60
        for step in range(5):
            to_other.check(later_s + step)
        to_other.send(big(1))
        turn_until(lambda: bool(other.frames), one, other)
        assert sent == [*[f.Ping()] * 5, big(1)]
        assert other.frames == [(big(1), b"")]


def test_no_pings_for_who_has_no_room(membership: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
    with sides(membership) as (one, other):
        to_other = linked(one, other)
        other.opened[0].read_or_pause(False)
        while not to_other.backlog_bytes:
            to_other.send(big(1), bytes(1_000_000))
        monkeypatch.setattr(link, "listen_to", lambda raw: Heard(0, 60.0))
        before = to_other.backlog_bytes
        later_s = time.monotonic() + 60
        for step in range(5):
            to_other.check(later_s + step)
        assert to_other.backlog_bytes == before


def test_what_this_process_asks_of_its_own_node_stays_on_the_host(membership: Membership) -> None:
    one = Network(
        "0.0.0.0",
        secret=b"k" * 32,
        sender="one",
        node_id=NodeId("one"),
        trust=member(membership, "one"),
        advertised_host="192.0.2.9",
    )
    opened: list[Connection] = []
    one.on_open = opened.append
    try:
        assert one.address.host == "192.0.2.9"
        connection = one.dial(one.address, REPLIES, "itself", node_id=NodeId("one"))
        deadline = time.monotonic() + 10
        while len(opened) < 2 and time.monotonic() < deadline:
            one.poll(0.01)
        assert connection.is_open
        assert not connection.is_secured
    finally:
        one.close()


def test_listening_for_others_takes_a_certificate() -> None:
    with pytest.raises(ConfigurationError, match="exo token create"):
        Network("0.0.0.0", secret=b"k" * 32, sender="x")


def test_ports_of_a_range(membership: Membership) -> None:
    first = Network("127.0.0.1", secret=b"k" * 32, sender="x", ports=(0, 0))
    try:
        port = first.address.port
        with pytest.raises(OSError, match=f"no port of {port} to {port} can be used"):
            Network("127.0.0.1", secret=b"k" * 32, sender="x", ports=(port, port))
    finally:
        first.close()


def test_a_stranger_cannot_make_the_handshake_last(membership: Membership) -> None:
    with sides(membership) as (_, other):
        address = (other.network.address.host, other.network.address.port)
        with socket.create_connection(address) as stranger:
            # The beginning of a very long first message of TLS.
            stranger.sendall(b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xf0")
            stranger.setblocking(False)
            deadline = time.monotonic() + 5
            while not other.lost and time.monotonic() < deadline:
                try:
                    stranger.send(bytes(16_384))
                except (BlockingIOError, ConnectionError):
                    pass
                other.network.poll(0.001)
            assert other.lost
