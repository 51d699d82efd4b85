"""What the real transport does with sockets, on both event loops: widening, kinds of ends, options, batches."""

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exo.cluster.errors import ConnectionLostError, DialError
from exo.cluster.transport.base import QUEUED_BYTES_MAX, Connection, Heartbeat, Listener
from exo.cluster.transport.framing import Kind, encode_frame
from exo.cluster.transport.greeting import Greeting
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.transport.tcp_connection import TcpConnection
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort
from support.memberships import Membership

SECRET = b"s" * 32
SAFETY_S = 20
HAS_IPV6 = Path("/proc/net/if_inet6").exists()
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux does it")


@pytest.fixture
def transport(tmp_path: Path) -> TcpTransport:
    transport = TcpTransport(SECRET, heartbeat=Heartbeat(ping_interval_s=0.05, silence_max_s=1.0))
    transport.set_identity(Membership(tmp_path).identity("a"))
    return transport


@pytest.fixture
async def listener(transport: TcpTransport) -> AsyncIterator[Listener]:
    async with await transport.listen(HostPort("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
async def ends(transport: TcpTransport, listener: Listener) -> AsyncIterator[tuple[Connection, Connection]]:
    near, far = await connected(transport, listener)
    yield near, far
    near.close("the test is over")
    far.close("the test is over")
    for _ in range(5):
        await asyncio.sleep(0)


async def connected(
    transport: TcpTransport, listener: Listener, host: str = "127.0.0.1"
) -> tuple[TcpConnection, TcpConnection]:
    near = await transport.dial(HostPort(host, listener.address.port), timeout_s=5)
    far = await asyncio.wait_for(listener.accept(), SAFETY_S)
    assert isinstance(near, TcpConnection) and isinstance(far, TcpConnection)
    return near, far


async def speaks(near: Connection, far: Connection) -> None:
    await near.send(b"hello")
    assert await asyncio.wait_for(far.receive(), SAFETY_S) == b"hello"


# --- widening -----------------------------------------------------------------------------------------------------


@only_linux
@pytest.mark.parametrize("wide", ["0.0.0.0", "::"])
async def test_a_listener_is_widened_and_keeps_its_connections(
    transport: TcpTransport, listener: Listener, ends: tuple[Connection, Connection], wide: str
) -> None:
    if wide == "::" and not HAS_IPV6:
        pytest.skip("this host has no IPv6")
    address = listener.address
    with pytest.raises(DialError):
        await transport.dial(HostPort("127.0.0.2", address.port), timeout_s=1)
    accepting = asyncio.ensure_future(listener.accept())
    await listener.widen(wide)
    await listener.widen(wide)
    assert listener.address == HostPort(wide, address.port)
    await speaks(*ends)
    near = await transport.dial(HostPort("127.0.0.2", address.port), timeout_s=5)
    far = await asyncio.wait_for(accepting, SAFETY_S)
    await speaks(near, far)
    # As IPv4, also where an IPv6 socket took it.
    assert far.peer_address.host == "127.0.0.1"
    again, _ = await connected(transport, listener)
    for connection in (near, far, again):
        connection.close("done")
    await speaks(*ends)
    await listener.close()
    with pytest.raises(DialError):
        await transport.dial(address, timeout_s=1)


@only_linux
async def test_a_listener_that_cannot_be_widened_stays_where_it_was(
    transport: TcpTransport, listener: Listener, ends: tuple[Connection, Connection]
) -> None:
    address = listener.address
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.3", address.port))
        squatter.listen()
        with pytest.raises(ConfigurationError, match=rf"in use.*stays on 127.0.0.1:{address.port}"):
            await listener.widen("0.0.0.0")
    assert listener.address == address
    await speaks(*ends)
    near, far = await connected(transport, listener)
    await speaks(near, far)
    near.close("done")
    far.close("done")


async def test_without_a_certificate_there_is_no_sense_in_widening(tmp_path: Path) -> None:
    transport = TcpTransport(SECRET)
    async with await transport.listen(HostPort("127.0.0.1", 0)) as listener:
        with pytest.raises(ConfigurationError, match="exo token create"):
            await listener.widen("0.0.0.0")
        transport.set_identity(Membership(tmp_path).identity("a"))
        await listener.widen("0.0.0.0")
        near, far = await connected(transport, listener)
        await speaks(near, far)
        near.close("done")
        far.close("done")


# --- ends ---------------------------------------------------------------------------------------------------------


async def half_proved(listener: Listener) -> tuple[socket.socket, Connection]:
    """Connect with a bare socket that does the plain handshake and then whatever the test wants."""
    loop = asyncio.get_running_loop()
    handle = socket.socket()
    handle.setblocking(False)
    await loop.sock_connect(handle, (listener.address.host, listener.address.port))
    greeting = Greeting(SECRET, side="dialer", nonce=bytes(32), peer="it")
    opening = greeting.opening()
    assert opening is not None
    await loop.sock_sendall(handle, encode_frame(*opening))
    challenge = await loop.sock_recv(handle, 1000)
    answer = greeting.take(Kind.CHALLENGE, challenge[5:])
    assert answer is not None
    await loop.sock_sendall(handle, encode_frame(*answer))
    return handle, await asyncio.wait_for(listener.accept(), SAFETY_S)


@pytest.mark.parametrize("is_reset", [True, False])
async def test_a_reset_and_a_closed_socket_are_known_ends(listener: Listener, is_reset: bool) -> None:
    handle, far = await half_proved(listener)
    if is_reset:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handle.close()
    with pytest.raises(ConnectionLostError) as lost:
        await asyncio.wait_for(far.receive(), SAFETY_S)
    assert lost.value.is_ended


async def test_silence_is_no_known_end(listener: Listener) -> None:
    handle, far = await half_proved(listener)
    with pytest.raises(ConnectionLostError, match="no sign of life") as lost:
        await asyncio.wait_for(far.receive(), SAFETY_S)
    assert not lost.value.is_ended
    handle.close()


@pytest.mark.parametrize(
    ("error", "is_ended"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (BrokenPipeError(32, "Broken pipe"), True),
        (TimeoutError(110, "Connection timed out"), False),
        (OSError(113, "No route to host"), False),
        (None, True),
    ],
)
async def test_what_the_system_says_of_the_end_is_told_apart(
    ends: tuple[TcpConnection, TcpConnection], error: OSError | None, is_ended: bool
) -> None:
    near, _ = ends
    transport = near._transport  # pyright: ignore[reportPrivateUsage]
    assert transport is not None
    near.connection_lost(error)
    with pytest.raises(ConnectionLostError) as lost:
        await near.receive()
    assert lost.value.is_ended == is_ended
    transport.abort()


# --- options and batches ------------------------------------------------------------------------------------------


def option(connection: TcpConnection, name: int) -> int:
    transport = connection._transport  # pyright: ignore[reportPrivateUsage]
    assert transport is not None
    return transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, name)


async def test_small_messages_leave_at_once(ends: tuple[TcpConnection, TcpConnection]) -> None:
    assert all(option(end, socket.TCP_NODELAY) for end in ends)


@only_linux
async def test_who_does_not_read_still_notices_a_peer_that_acknowledges_nothing(
    ends: tuple[TcpConnection, TcpConnection],
) -> None:
    """Pings say nothing while nobody reads; the system's own timeout takes over, and only then."""
    near, far = ends
    assert option(far, socket.TCP_USER_TIMEOUT) == 0
    message = bytes(256 * 1024)
    count = 3 * QUEUED_BYTES_MAX // len(message)

    async def send_all() -> None:
        for _ in range(count):
            await near.send(message)

    sending = asyncio.ensure_future(send_all())
    async with asyncio.timeout(SAFETY_S):
        while True:
            if option(far, socket.TCP_USER_TIMEOUT):
                break
            await asyncio.sleep(0.01)
    assert 2000 < option(far, socket.TCP_USER_TIMEOUT) < 60_000
    for _ in range(count):
        await far.receive()
    await sending
    assert option(far, socket.TCP_USER_TIMEOUT) == 0


class CountingTransport:
    """Stands before a socket's transport and counts what is written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.writes: list[int] = []

    def write(self, data: bytes) -> None:
        self.writes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


@pytest.mark.parametrize("is_tls", [True, False])
async def test_messages_that_wait_together_leave_together(tmp_path: Path, is_tls: bool) -> None:
    transport = TcpTransport(SECRET, is_local=lambda host: not is_tls)
    transport.set_identity(Membership(tmp_path).identity("a"))
    async with await transport.listen(HostPort("127.0.0.1", 0)) as listener:
        near, far = await connected(transport, listener)
        assert (near.peer_node_id is not None) == is_tls
        socket_transport = near._transport  # pyright: ignore[reportPrivateUsage]
        assert socket_transport is not None
        counting = CountingTransport(socket_transport)
        near._transport = counting  # type: ignore[assignment]
        for number in range(500):
            await near.send(str(number).encode())
        assert [await far.receive() for _ in range(500)] == [str(number).encode() for number in range(500)]
        assert len(counting.writes) == 1
        near.close("done")
        far.close("done")
        for _ in range(5):
            await asyncio.sleep(0)
