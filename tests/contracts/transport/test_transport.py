"""What every Transport promises, over sockets and in memory."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

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
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.memberships import Membership
from support.relay import Relay

SECRET = b"s" * 32
HEARTBEAT = Heartbeat(ping_interval_s=0.05, silence_max_s=0.2)
"""Short, so that the tests are; nothing here depends on how long it really takes."""
SAFETY_S = 20


class Case(ABC):
    """One implementation, and how to break it."""

    host: str
    stranger_code = "other_secret"
    """Why a stranger is refused."""
    has_node_ids = False

    @abstractmethod
    def transport(self, host: str = "a") -> Transport:
        """Return the transport of a host's node, which has the same id."""

    @abstractmethod
    def stranger(self) -> Transport:
        """Return the transport of somebody who does not belong here."""

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

    def transport(self, host: str = "a") -> Transport:
        return TcpTransport(SECRET, heartbeat=HEARTBEAT)

    def stranger(self) -> Transport:
        return TcpTransport(b"t" * 32, heartbeat=HEARTBEAT)

    async def dial_through_cuttable(self, listener: Listener) -> Connection:
        self._relay = await self._stack.enter_async_context(Relay(listener.address))
        return await self.transport().dial(self._relay.address, timeout_s=SAFETY_S)

    async def cut(self) -> None:
        self._relay.is_cut = True


class TlsCase(TcpCase):
    """As if everybody were on another host, so that only certificates count."""

    stranger_code = "foreign_certificate"
    has_node_ids = True

    def __init__(self, stack: AsyncExitStack, directory: Path) -> None:
        super().__init__(stack)
        self._membership = Membership(directory, "ours")
        self._others = Membership(directory, "theirs")

    def transport(self, host: str = "a") -> Transport:
        return self._with(self._membership, host)

    def stranger(self) -> Transport:
        return self._with(self._others, "a")

    def _with(self, membership: Membership, node_id: str) -> Transport:
        transport = TcpTransport(SECRET, heartbeat=HEARTBEAT, is_local=lambda host: False)
        transport.set_identity(membership.identity(node_id))
        return transport


class MemoryCase(Case):
    host = "b"

    def __init__(self) -> None:
        self.network = MemoryNetwork(seed=1, delay_s=(0.0001, 0.001), heartbeat=HEARTBEAT)

    def transport(self, host: str = "a") -> Transport:
        return self.network.transport(host, SECRET)

    def stranger(self) -> Transport:
        return self.network.transport("a", b"t" * 32)

    async def dial_through_cuttable(self, listener: Listener) -> Connection:
        return await self.transport("a").dial(listener.address, timeout_s=2)

    async def cut(self) -> None:
        self.network.cut("a", "b")


class MemoryWithIdsCase(MemoryCase):
    has_node_ids = True

    def transport(self, host: str = "a") -> Transport:
        return self.network.transport(host, SECRET, NodeId(host))


@pytest.fixture(params=["tcp", "tls", "memory", "memory with ids"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with AsyncExitStack() as stack:
        cases: dict[str, Callable[[], Case]] = {
            "tcp": lambda: TcpCase(stack),
            "tls": lambda: TlsCase(stack, tmp_path),
            "memory": MemoryCase,
            "memory with ids": MemoryWithIdsCase,
        }
        yield cases[request.param]()


@pytest.fixture
async def listener(case: Case) -> AsyncIterator[Listener]:
    async with await case.transport("b").listen(HostPort(case.host, 0)) as listener:
        yield listener


Ends = tuple[Connection, Connection]


@pytest.fixture
async def ends(case: Case, listener: Listener) -> AsyncIterator[Ends]:
    near = await case.transport("a").dial(listener.address, timeout_s=2)
    far = await listener.accept()
    yield near, far
    near.close("the test is over")
    far.close("the test is over")


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


async def test_a_stranger_is_refused_and_harms_nobody(case: Case, listener: Listener) -> None:
    with pytest.raises(HandshakeError) as refused:
        await case.stranger().dial(listener.address, timeout_s=2)
    assert refused.value.code == case.stranger_code
    assert refused.value.is_secret_wrong == (case.stranger_code == "other_secret")
    good = await case.transport("a").dial(listener.address, timeout_s=2)
    far = await listener.accept()
    await good.send(b"only the good one is accepted")
    assert await far.receive() == b"only the good one is accepted"
    good.close("done")


async def test_each_end_knows_who_the_other_is_where_there_are_certificates(case: Case, ends: Ends) -> None:
    near, far = ends
    assert (near.peer_node_id, far.peer_node_id) == (("b", "a") if case.has_node_ids else (None, None))


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
    with pytest.raises(ConnectionLostError, match="the node is stopping") as told:
        await far.receive()
    assert told.value.is_ended
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
        with pytest.raises(ConnectionLostError, match="no sign of life") as noticed:
            await asyncio.wait_for(end.receive(), SAFETY_S)
        # The other end may be well, and believe in the connection.
        assert not noticed.value.is_ended
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
