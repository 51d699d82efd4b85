"""Transfers that measure the way between two nodes: over real sockets, in TLS, refused, cut short, and lied about."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from exo.dataplane import frames as f
from exo.dataplane.client import GenerationClient
from exo.dataplane.connection import FrameConnection
from exo.dataplane.errors import NodeUnreachableError, ProbeRefusedError, ProtocolError
from exo.dataplane.probing import PROBE_BYTES_MAX, ProbeDesk, ProbeStream
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.data_hosts import data_identity, is_nobody_local
from support.memberships import Membership

SECRET = b"k" * 32
A, B = NodeId("a"), NodeId("b")
MIB = 1024 * 1024


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[GenerationClient, GenerationClient]]:
    async with (
        GenerationClient(secret=SECRET, node_id=A) as one,
        GenerationClient(secret=SECRET, node_id=B) as other,
    ):
        yield one, other


@asynccontextmanager
async def way() -> AsyncIterator[tuple[ProbeStream, GenerationClient]]:
    async with two_nodes() as (one, other):
        stream = await one.open_probe(other.address, B)
        yield stream, other
        await stream.aclose()


async def test_a_transfer_is_measured_by_who_takes_it() -> None:
    async with way() as (stream, _):
        assert await stream.ping(timeout_s=10) > 0
        for size_bytes in (MIB, 8 * MIB, 1000):
            found = await stream.transfer(size_bytes, timeout_s=10)
            assert 0 <= found.size_bytes < size_bytes and found.duration_s >= 0
            assert size_bytes == 1000 or (found.size_bytes > size_bytes * 0.9 and found.duration_s > 0)
        assert stream.own_host == stream.peer_host == "127.0.0.1"
        for size_bytes in (0, -1, PROBE_BYTES_MAX + 1):
            with pytest.raises(ValueError, match="cannot measure"):
                await stream.transfer(size_bytes, timeout_s=10)


async def test_between_hosts_it_goes_through_tls(tmp_path: Path) -> None:
    membership = Membership(tmp_path)

    def client(node_id: NodeId, secret: bytes) -> GenerationClient:
        made = GenerationClient(secret=secret, node_id=node_id, is_local=is_nobody_local)
        made.set_identity(data_identity(membership.identity(node_id)))
        return made

    async with client(A, b"1" * 32) as one, client(B, b"2" * 32) as other:
        stream = await one.open_probe(other.address, B)
        assert (await stream.transfer(MIB, timeout_s=10)).size_bytes > 0
        await stream.aclose()
        with pytest.raises(NodeUnreachableError, match="c should be there"):
            await one.open_probe(other.address, NodeId("c"))


async def test_a_node_with_work_refuses_and_goes_on_refusing_until_it_is_done() -> None:
    async with way() as (stream, other):
        other.probe_desk.obstacle = lambda: "it is generating tokens"
        with pytest.raises(ProbeRefusedError, match="it is generating tokens"):
            await stream.ping(timeout_s=10)
        with pytest.raises(ProbeRefusedError):
            await stream.transfer(64 * MIB, timeout_s=10)
        other.probe_desk.obstacle = lambda: None
        # What was on the way when it was refused is no part of the next transfer.
        assert (await stream.transfer(MIB, timeout_s=10)).size_bytes < MIB


async def test_work_that_begins_meanwhile_cuts_a_transfer_short() -> None:
    async with way() as (stream, other):
        asked = 0

        def obstacle() -> str | None:
            nonlocal asked
            asked += 1
            return "work came in" if asked > 10 else None

        other.probe_desk.obstacle = obstacle
        with pytest.raises(ProbeRefusedError, match="work came in"):
            await stream.transfer(PROBE_BYTES_MAX, timeout_s=30)
        # Ten parts of 256 KiB, and what was sent before the answer came: far from all.
        assert asked < 200


async def test_two_nodes_do_not_measure_the_same_way_at_once() -> None:
    async with two_nodes() as (one, other), GenerationClient(secret=SECRET, node_id=NodeId("c")) as third:
        first = await one.open_probe(other.address, B)
        second = await third.open_probe(other.address, B)
        release = asyncio.Event()
        send = first._send  # pyright: ignore[reportPrivateUsage]

        async def late(
            connection: FrameConnection, size_bytes: int, answer: "asyncio.Future[f.ProbeTaken]"
        ) -> None:
            await release.wait()
            await send(connection, size_bytes, answer)

        first._send = late  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: first.transfer(MIB, timeout_s=10))
            await until_refused(second)
            release.set()
        assert await second.ping(timeout_s=10) > 0
        await first.aclose()
        await second.aclose()


async def until_refused(stream: ProbeStream) -> None:
    """Return when a transfer is refused, since another one is under way."""
    with anyio.fail_after(10):
        while True:
            try:
                await stream.ping(timeout_s=10)
            except ProbeRefusedError as error:
                assert "another node is measuring" in error.message
                return


async def test_a_node_that_is_gone_or_does_not_answer_is_told_as_such() -> None:
    async with two_nodes() as (one, other):
        with pytest.raises(NodeUnreachableError, match=r"the node b at 127\.0\.0\.1:1 cannot be reached"):
            await one.open_probe(HostPort("127.0.0.1", 1), B)
        stream = await one.open_probe(other.address, B)
        other.probe_desk.frame_received = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(NodeUnreachableError, match=r"did not take 0 bytes within 0\.01 s"):
            await stream.ping(timeout_s=0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_fails, lambda: stream.ping(timeout_s=10))
            await asyncio.sleep(0)
            await stream.aclose()
        with pytest.raises(NodeUnreachableError, match="is gone"):
            await stream.ping(timeout_s=10)


async def _fails(call: Callable[[], "asyncio.Future[float]"]) -> None:
    with pytest.raises(NodeUnreachableError, match="was lost: measured"):
        await call()


class Sent:
    """A connection that keeps what is sent on it."""

    def __init__(self) -> None:
        self.frames: list[f.Frame] = []

    def send(self, frame: f.Frame, payload: bytes = b"") -> None:
        self.frames.append(frame)


def as_connection(sent: Sent) -> FrameConnection:
    return sent  # type: ignore[return-value]


def test_the_desk_counts_from_the_first_part_to_the_last() -> None:
    times = iter((5.0, 5.25, 6.0))
    desk = ProbeDesk(lambda: next(times))
    sent = Sent()
    connection = as_connection(sent)
    desk.frame_received(connection, f.Probe(number=1, size_bytes=300), b"")
    for _ in range(3):
        desk.frame_received(connection, f.ProbeData(number=1), bytes(100))
    assert sent.frames == [f.ProbeTaken(number=1, size_bytes=200, duration_s=1.0)]


def test_the_desk_forgets_who_is_gone() -> None:
    desk = ProbeDesk()
    first, second = Sent(), Sent()
    desk.frame_received(as_connection(first), f.Probe(number=1, size_bytes=10), b"")
    desk.frame_received(as_connection(second), f.Probe(number=1, size_bytes=10), b"")
    desk.connection_lost(as_connection(second))
    desk.frame_received(as_connection(second), f.Probe(number=2, size_bytes=10), b"")
    desk.connection_lost(as_connection(first))
    desk.frame_received(as_connection(second), f.Probe(number=3, size_bytes=10), b"")
    desk.frame_received(as_connection(second), f.ProbeData(number=3), bytes(10))
    assert [type(frame) for frame in second.frames] == [f.ProbeRefused, f.ProbeRefused, f.ProbeTaken]


@pytest.mark.parametrize(
    "frames",
    [
        [(f.Probe(number=1, size_bytes=-1), b"")],
        [(f.Probe(number=1, size_bytes=PROBE_BYTES_MAX + 1), b"")],
        [(f.Probe(number=1, size_bytes=3), b""), (f.ProbeData(number=1), bytes(4))],
        [(f.ProbeTaken(number=1, size_bytes=0, duration_s=0), b"")],
    ],
)
def test_what_has_no_place_at_the_desk_ends_the_connection(frames: list[tuple[f.Frame, bytes]]) -> None:
    desk, connection = ProbeDesk(), as_connection(Sent())
    with pytest.raises(ProtocolError):
        for frame, payload in frames:
            desk.frame_received(connection, frame, payload)


@pytest.mark.parametrize(
    "answer",
    [
        f.ProbeTaken(number=1, size_bytes=5000, duration_s=1.0),
        f.ProbeTaken(number=1, size_bytes=-1, duration_s=1.0),
        f.ProbeTaken(number=1, size_bytes=10, duration_s=-1.0),
        f.ProbeTaken(number=1, size_bytes=10, duration_s=float("nan")),
    ],
)
async def test_an_answer_that_cannot_be_is_no_measurement(answer: f.ProbeTaken) -> None:
    stream, connection = played(answer)
    with pytest.raises(NodeUnreachableError, match="something else"):
        await stream.transfer(5000, timeout_s=10)
    with pytest.raises(ProtocolError):
        stream.frame_received(connection, f.Probe(number=1, size_bytes=1), b"")


async def test_a_time_that_is_longer_than_the_whole_is_not_believed() -> None:
    stream, _ = played(f.ProbeTaken(number=1, size_bytes=10, duration_s=1e9))
    assert (await stream.transfer(5000, timeout_s=10)).duration_s < 10


def played(answer: f.ProbeTaken) -> tuple[ProbeStream, FrameConnection]:
    """Return a stream whose other end gives this answer, and others that belong to nothing."""
    stream = ProbeStream(B)

    class Played(Sent):
        is_open = True

        def send(self, frame: f.Frame, payload: bytes = b"") -> None:
            if isinstance(frame, f.Probe):
                other = f.ProbeTaken(number=77, size_bytes=1, duration_s=1)
                for one in (other, answer, answer):
                    stream.frame_received(as_connection(self), one, b"")

        async def drain(self) -> None:
            return

    connection = as_connection(Played())
    stream.opened(connection)
    return stream, connection
