"""The TCP transport towards strangers: garbage, forgeries, floods and other networks."""

import asyncio
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.transport import tcp_listener
from exo.cluster.transport.base import QUEUED_BYTES_MAX, Heartbeat, Listener
from exo.cluster.transport.framing import (
    HANDSHAKE_BYTES_MAX,
    FrameError,
    FrameSplitter,
    Kind,
    encode_frame,
)
from exo.cluster.transport.greeting import Greeting
from exo.cluster.transport.tcp import TcpTransport, is_loopback
from exo.cluster.transport.tcp_connection import TcpConnection
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort

SECRET = b"s" * 32


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    transport = TcpTransport(SECRET, heartbeat=Heartbeat(ping_interval_s=0.1, silence_max_s=0.4))
    async with await transport.listen(HostPort("127.0.0.1", 0)) as listener:
        yield listener


async def still_works(listener: Listener) -> None:
    connection = await TcpTransport(SECRET).dial(listener.address, timeout_s=2)
    accepted = await asyncio.wait_for(listener.accept(), 20)
    await connection.send(b"hello")
    assert await accepted.receive() == b"hello"
    connection.close("done")
    accepted.close("done")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00\x00\x00\x00",
        struct.pack(">IB", 2**31, 1) + b"x" * 100,
        encode_frame(Kind.MESSAGE, b"no handshake"),
        encode_frame(Kind.HELLO, b"short"),
        encode_frame(Kind.HELLO, b"EXOC" + struct.pack(">H", 99) + bytes(32)),
        encode_frame(Kind.PROOF, bytes(32)),
        struct.pack(">IB", 10, 77) + bytes(9),
    ],
)
async def test_garbage_is_hung_up_on_and_harms_nobody(listener: Listener, garbage: bytes) -> None:
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    writer.write(garbage)
    answer = await asyncio.wait_for(reader.read(), 20)
    assert b"CHALLENGE" not in answer and len(answer) < 500
    writer.close()
    await still_works(listener)


async def test_what_was_recorded_cannot_be_played_again() -> None:
    """A whole connection of a node that has the secret, byte for byte, from somebody who has not."""
    recorded = bytearray()

    async def pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter, *, is_recorded: bool) -> None:
        while data := await source.read(65536):
            if is_recorded:
                recorded.extend(data)
            to.write(data)
        to.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(listener.address.host, listener.address.port)
        await asyncio.gather(
            pass_on(reader, back, is_recorded=True), pass_on(there, writer, is_recorded=False)
        )

    transport = TcpTransport(SECRET)
    async with await transport.listen(HostPort("127.0.0.1", 0)) as listener:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        between = HostPort(*server.sockets[0].getsockname()[:2])
        connection = await TcpTransport(SECRET).dial(between, timeout_s=2)
        accepted = await asyncio.wait_for(listener.accept(), 20)
        await connection.send(b"do it")
        assert await accepted.receive() == b"do it"
        connection.close("done")
        with pytest.raises(ConnectionLostError):
            await asyncio.wait_for(accepted.receive(), 20)
        server.close()
        assert b"do it" in recorded

        reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
        writer.write(recorded)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert b"has another host secret" in answer
        assert (transport.counts["accepted_plain"], transport.counts["refused_other_secret"]) == (1, 1)
        await still_works(listener)


async def test_who_says_nothing_is_hung_up_on(listener: Listener) -> None:
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    assert b"no sign of life" not in await asyncio.wait_for(reader.read(), 20)
    writer.close()


async def test_a_flood_of_strangers_leaves_room(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_listener, "STRANGERS_MAX", 8)
    address = listener.address
    strangers = [await asyncio.open_connection(address.host, address.port) for _ in range(11)]
    for reader, _ in strangers[8:]:
        assert b"too many" in await asyncio.wait_for(reader.read(), 20)
    for _, writer in strangers:
        writer.close()
    for _ in range(100):
        try:
            return await still_works(listener)
        except DialError:
            await asyncio.sleep(0.02)
    pytest.fail("it did not recover")


async def test_dialling_something_else_is_a_clear_sentence() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = HostPort(*server.sockets[0].getsockname()[:2])
    with pytest.raises(HandshakeError, match="does not speak exo's cluster protocol") as wrong:
        await TcpTransport(SECRET).dial(address, timeout_s=2)
    assert not wrong.value.is_secret_wrong
    server.close()


async def test_dialling_somebody_silent_ends_in_time() -> None:
    is_over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        is_over.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = HostPort(*server.sockets[0].getsockname()[:2])
    with pytest.raises(DialError, match=r"within 0.2 s"):
        await TcpTransport(SECRET).dial(address, timeout_s=0.2)
    await asyncio.wait_for(is_over.wait(), 2)
    server.close()


async def raw_pair(listener: Listener) -> tuple[TcpConnection, TcpConnection]:
    """A connection whose near end the test may misuse."""
    near = await TcpTransport(SECRET, heartbeat=Heartbeat(ping_interval_s=0.1, silence_max_s=60)).dial(
        listener.address, timeout_s=2
    )
    far = await asyncio.wait_for(listener.accept(), 20)
    assert isinstance(near, TcpConnection) and isinstance(far, TcpConnection)
    return near, far


async def test_what_a_peer_says_at_the_end_is_one_short_line(listener: Listener) -> None:
    near, far = await raw_pair(listener)
    near._write(Kind.GOODBYE, b"gone\n\x1b[31mERROR forged" + b"!" * 1_000_000 + b"\xff")
    with pytest.raises(ConnectionLostError) as end:
        await asyncio.wait_for(far.receive(), 5)
    assert end.value.reason is not None
    assert end.value.reason.startswith("gone  [31mERROR forged!!") and len(end.value.reason) <= 1000
    assert end.value.reason.isprintable()
    near.close("done")


async def test_pings_of_a_peer_that_takes_no_answers_fill_no_memory(listener: Listener) -> None:
    near, far = await raw_pair(listener)
    assert near._transport is not None and far._transport is not None
    for end, option in ((near, socket.SO_RCVBUF), (far, socket.SO_SNDBUF)):
        assert end._transport is not None
        end._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 4096)
    near._transport.pause_reading()
    pings = encode_frame(Kind.PING, bytes(8)) * 10_000
    for _ in range(50):
        near._transport.write(pings + encode_frame(Kind.MESSAGE, b"all were seen"))
        await asyncio.wait_for(far.receive(), 5)
    # The answers would be 4.5 MB.
    assert QUEUED_BYTES_MAX < far._transport.get_write_buffer_size() < 2 * QUEUED_BYTES_MAX
    near._transport.abort()
    with pytest.raises(ConnectionLostError):
        await asyncio.wait_for(far.receive(), 5)


async def test_only_this_host_is_served_and_dialled() -> None:
    transport = TcpTransport(SECRET)
    for host in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
        with pytest.raises(ConfigurationError, match="this host only"):
            await transport.listen(HostPort(host, 0))
        with pytest.raises(DialError, match="only nodes of this host"):
            await transport.dial(HostPort(host, 1), timeout_s=0.1)
    assert is_loopback("127.3.4.5") and is_loopback("::1") and is_loopback("localhost")


def shake(dialer: Greeting, listener: Greeting, spoil: tuple[int, int] | None = None) -> bool:
    """Run a handshake to its end; `spoil` flips a bit of the frame of that number."""
    frame = dialer.opening()
    turn: Literal[0, 1] = 1
    number = 0
    while frame is not None:
        kind, payload = frame
        if spoil is not None and spoil[0] == number:
            position = spoil[1] % (8 * len(payload))
            changed = bytearray(payload)
            changed[position // 8] ^= 1 << position % 8
            payload = bytes(changed)
        frame = (dialer, listener)[turn].take(kind, payload)
        turn = 0 if turn else 1
        number += 1
    return dialer.is_done and listener.is_done


def sides(secret: bytes = SECRET) -> tuple[Greeting, Greeting]:
    dialer = Greeting(secret, side="dialer", nonce=secrets.token_bytes(32), peer="the listener")
    return dialer, Greeting(SECRET, side="listener", nonce=secrets.token_bytes(32), peer="the dialer")


def test_a_handshake_succeeds_with_one_secret_only() -> None:
    assert shake(*sides())
    with pytest.raises(HandshakeError) as refused:
        shake(*sides(b"t" * 32))
    assert refused.value.is_secret_wrong


@given(st.integers(min_value=0, max_value=2), st.integers(min_value=0))
def test_no_bit_of_a_handshake_can_be_changed(frame: int, bit: int) -> None:
    with pytest.raises(HandshakeError):
        shake(*sides(), spoil=(frame, bit))


def test_a_proof_cannot_be_reflected() -> None:
    """A stranger that only repeats what the other side says gets nowhere."""
    _, listener = sides()
    hello = b"EXOC" + struct.pack(">H", 1) + bytes(32)
    answer = listener.take(Kind.HELLO, hello)
    assert answer is not None
    with pytest.raises(HandshakeError):
        listener.take(Kind.PROOF, answer[1][32:])
    assert not listener.is_done


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=200))), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    splitter = FrameSplitter()
    found: list[tuple[Kind, bytes]] = []
    while stream:
        size = data.draw(st.integers(min_value=1, max_value=len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == frames


def test_a_stranger_cannot_announce_a_long_frame() -> None:
    splitter = FrameSplitter()
    with pytest.raises(FrameError):
        list(splitter.feed(struct.pack(">IB", HANDSHAKE_BYTES_MAX + 2, Kind.HELLO)))
    trusted = FrameSplitter()
    trusted.trust()
    assert list(trusted.feed(struct.pack(">IB", HANDSHAKE_BYTES_MAX + 2, Kind.MESSAGE))) == []


def naive_frames(stream: bytes, payload_bytes_max: int) -> tuple[list[tuple[Kind, bytes]], bool]:
    """Return the frames of a whole stream, and whether it then goes wrong: the splitter's oracle."""
    frames: list[tuple[Kind, bytes]] = []
    kinds = {int(kind) for kind in Kind}
    while len(stream) >= 5:
        length, kind = struct.unpack(">IB", stream[:5])
        if length < 1 or length > payload_bytes_max + 1:
            return frames, True
        if len(stream) < 4 + length:
            return frames, False
        if kind not in kinds:
            return frames, True
        frames.append((Kind(kind), stream[5 : 4 + length]))
        stream = stream[4 + length :]
    return frames, False


_some_frame = st.builds(encode_frame, st.sampled_from(list(Kind)), st.binary(max_size=40))
_odd_frame = st.builds(
    lambda length, kind, rest: struct.pack(">IB", length, kind) + rest,
    st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
    st.integers(0, 255),
    st.binary(max_size=60),
)


@given(
    st.lists(st.one_of(_some_frame, _odd_frame, st.binary(max_size=20)), max_size=6),
    st.lists(st.integers(1, 70)),
    st.integers(10, 60),
)
def test_any_bytes_cut_anywhere_give_the_same_frames_and_the_same_end(
    parts: list[bytes], cuts: list[int], payload_bytes_max: int
) -> None:
    stream = b"".join(parts)
    wanted, is_wrong = naive_frames(stream, payload_bytes_max)
    splitter = FrameSplitter()
    splitter.trust(payload_bytes_max)
    found: list[tuple[Kind, bytes]] = []
    sizes = [*cuts, len(stream)]
    try:
        while stream:
            size = sizes.pop(0) if sizes else len(stream)
            piece, stream = stream[:size], stream[size:]
            found.extend(splitter.feed(piece))
            kept = splitter._buffer  # pyright: ignore[reportPrivateUsage]
            assert len(kept) <= payload_bytes_max + 5
    except FrameError:
        assert is_wrong
    else:
        assert not is_wrong
    assert found == wanted
