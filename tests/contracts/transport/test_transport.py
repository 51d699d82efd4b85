"""What every Transport promises, over sockets and in memory."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.transport.base import (
    MESSAGE_BYTES_MAX,
    QUEUED_BYTES_MAX,
    Connection,
    Heartbeat,
    Listener,
    Transport,
)
from exo.cluster.transport.memory import MemoryNetwork
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort
from support.relay import Relay

SECRET = b"s" * 32
HEARTBEAT = Heartbeat(ping_interval_s=0.05, silence_max_s=0.2)
"""Short, so that the tests are; nothing here depends on how long it really takes."""
SAFETY_S = 20


class Case(ABC):
    """One implementation, and how to break it."""

    host: str

    @abstractmethod
    def transport(self, host: str = "a", secret: bytes = SECRET) -> Transport:
        """Return the transport of a host."""

    @abstractmethod
    async def dial_through_cuttable(self, listener: Listener) -> Connection:
        """Connect in a way that `cut` can interrupt."""

    @abstractmethod
    async def cut(self) -> None:
        """Let nothing through any more, silently."""


class TcpCase(Case):
    host = "127.0.0.1"

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    def transport(self, host: str = "a", secret: bytes = SECRET) -> Transport:
        return TcpTransport(secret, heartbeat=HEARTBEAT)

    async def dial_through_cuttable(self, listener: Listener) -> Connection:
        self._relay = await self._stack.enter_async_context(Relay(listener.address))
        return await self.transport().dial(self._relay.address, timeout_s=2)

    async def cut(self) -> None:
        self._relay.is_cut = True


class MemoryCase(Case):
    host = "b"

    def __init__(self) -> None:
        self.network = MemoryNetwork(seed=1, delay_s=(0.0001, 0.001), heartbeat=HEARTBEAT)

    def transport(self, host: str = "a", secret: bytes = SECRET) -> Transport:
        return self.network.transport(host, secret)

    async def dial_through_cuttable(self, listener: Listener) -> Connection:
        return await self.transport("a").dial(listener.address, timeout_s=2)

    async def cut(self) -> None:
        self.network.cut("a", "b")


@pytest.fixture(params=["tcp", "memory"])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    async with AsyncExitStack() as stack:
        yield TcpCase(stack) if request.param == "tcp" else MemoryCase()


@pytest.fixture
async def listener(case: Case) -> AsyncIterator[Listener]:
    async with await case.transport("b").listen(HostPort(case.host, 0)) as listener:
        yield listener


@pytest.fixture
async def ends(case: Case, listener: Listener) -> AsyncIterator[tuple[Connection, Connection]]:
    near = await case.transport("a").dial(listener.address, timeout_s=2)
    far = await listener.accept()
    yield near, far
    near.close("the test is over")
    far.close("the test is over")


Ends = tuple[Connection, Connection]


async def test_messages_arrive_whole_and_in_order_both_ways(ends: Ends) -> None:
    near, far = ends
    messages = [b"", b"x", b"y" * 100_000, *(str(number).encode() for number in range(500))]

    async def one_way(source: Connection, target: Connection) -> None:
        for message in messages:
            await source.send(message)
        assert [await target.receive() for _ in messages] == messages

    await asyncio.gather(one_way(near, far), one_way(far, near))


async def test_port_zero_takes_a_free_port_and_says_which(case: Case, listener: Listener) -> None:
    assert listener.address.port > 0
    async with await case.transport("b").listen(HostPort(case.host, 0)) as other:
        assert other.address != listener.address


async def test_a_port_in_use_is_a_clear_sentence(case: Case, listener: Listener) -> None:
    with pytest.raises(ConfigurationError, match="in use"):
        await case.transport("b").listen(listener.address)


async def test_a_peer_with_another_secret_is_refused(case: Case, listener: Listener) -> None:
    with pytest.raises(HandshakeError, match="host secret") as refused:
        await case.transport("a", secret=b"t" * 32).dial(listener.address, timeout_s=2)
    assert refused.value.is_secret_wrong
    good = await case.transport("a").dial(listener.address, timeout_s=2)
    far = await listener.accept()
    await good.send(b"only the good one is accepted")
    assert await far.receive() == b"only the good one is accepted"
    good.close("done")


async def test_nobody_there_is_said_at_once(case: Case) -> None:
    listener = await case.transport("b").listen(HostPort(case.host, 0))
    address = listener.address
    await listener.close()
    with pytest.raises(DialError, match=str(address.port)):
        await case.transport("a").dial(address, timeout_s=2)


async def test_the_other_end_learns_why_a_connection_was_closed(ends: Ends) -> None:
    near, far = ends
    await near.send(b"last words")
    near.close("the node is stopping")
    assert await far.receive() == b"last words"
    with pytest.raises(ConnectionLostError, match="the node is stopping"):
        await far.receive()
    with pytest.raises(ConnectionLostError):
        await near.send(b"more")
    with pytest.raises(ConnectionLostError):
        await near.receive()
    near.close("again is harmless")


async def test_a_waiting_receiver_is_told_of_the_end(ends: Ends) -> None:
    near, far = ends
    waiting = asyncio.ensure_future(far.receive())
    await asyncio.sleep(0)
    near.close("gone")
    # For this reason, and not because of a silence: without waiting for one.
    with pytest.raises(ConnectionLostError, match="gone"):
        await asyncio.wait_for(waiting, SAFETY_S)


async def test_a_sender_waits_for_a_slow_receiver_and_loses_nothing(ends: Ends) -> None:
    near, far = ends
    message = bytes(64 * 1024)
    count = 40 * QUEUED_BYTES_MAX // len(message)
    sent = 0

    async def send_all() -> None:
        nonlocal sent
        for _ in range(count):
            await near.send(message)
            sent += 1

    sending = asyncio.ensure_future(send_all())
    previous = -1
    while sent != previous:  # Until it has come to rest.
        previous = sent
        await asyncio.sleep(0.1)
    assert 0 < sent < count
    # A receiver that does not read is not a lost one, however long it takes.
    await asyncio.sleep(3 * HEARTBEAT.silence_max_s)
    for _ in range(count):
        assert len(await far.receive()) == len(message)
    await sending


async def test_a_waiting_sender_notices_the_end(ends: Ends) -> None:
    near, far = ends
    message = bytes(256 * 1024)

    sent = 0

    async def send_for_ever() -> None:
        nonlocal sent
        while True:
            await near.send(message)
            sent += 1

    sending = asyncio.ensure_future(send_for_ever())
    previous = -1
    while sent != previous:  # Until it has come to rest.
        previous = sent
        await asyncio.sleep(0.05)
    far.close("enough")
    with pytest.raises(ConnectionLostError):
        await asyncio.wait_for(sending, SAFETY_S)


async def test_too_long_a_message_is_refused_and_harms_nothing(ends: Ends) -> None:
    near, far = ends
    with pytest.raises(ValueError, match="at most"):
        await near.send(bytes(MESSAGE_BYTES_MAX + 1))
    longest = bytes(MESSAGE_BYTES_MAX)
    sending = asyncio.ensure_future(near.send(longest))
    assert await far.receive() == longest
    await sending


async def test_a_cut_is_noticed_by_both_ends(case: Case, listener: Listener) -> None:
    near = await case.dial_through_cuttable(listener)
    far = await listener.accept()
    await near.send(b"hello")
    assert await far.receive() == b"hello"
    await case.cut()
    started = time.monotonic()
    for end in (near, far):
        with pytest.raises(ConnectionLostError, match="no sign of life"):
            await asyncio.wait_for(end.receive(), SAFETY_S)
    assert time.monotonic() - started > HEARTBEAT.silence_max_s - 2 * HEARTBEAT.ping_interval_s


async def test_a_quiet_connection_stays_and_knows_its_round_trip(case: Case, listener: Listener) -> None:
    near = await case.dial_through_cuttable(listener)
    far = await listener.accept()
    await asyncio.sleep(3 * HEARTBEAT.silence_max_s)
    await near.send(b"still here")
    assert await far.receive() == b"still here"
    for end in (near, far):
        assert end.round_trip_s is not None
        assert end.round_trip_s > 0


async def test_a_closed_listener_accepts_nobody(case: Case) -> None:
    listener = await case.transport("b").listen(HostPort(case.host, 0))
    waiting = asyncio.ensure_future(listener.accept())
    await asyncio.sleep(0)
    await listener.close()
    with pytest.raises(ConnectionLostError):
        await waiting
