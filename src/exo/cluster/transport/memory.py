"""A network in memory with seeded faults: delay, lost connections, partitions. For tests and simulations."""

import asyncio
import random
from collections import deque

import msgspec

from exo.cluster.errors import ConnectionLostError, HandshakeError, connection_ended, dial_failure
from exo.cluster.transport.base import (
    MESSAGE_BYTES_MAX,
    QUEUED_BYTES_MAX,
    Connection,
    Heartbeat,
    Listener,
    Transport,
)
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort


class MemoryNetwork:
    """Hosts and what lies between them. Like TCP, a connection loses nothing in the middle: it delivers or ends.

    Args:
        seed: Of the delays and of the connections that break by chance.
        delay_s: Shortest and longest way of a message from end to end.
        break_chance: How likely each message breaks its connection.
        heartbeat: When the ends of a cut connection notice.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay_s: tuple[float, float] = (0.0, 0.0),
        break_chance: float = 0.0,
        heartbeat: Heartbeat = Heartbeat(),
    ) -> None:
        self.heartbeat = heartbeat
        self.random = random.Random(seed)
        self.delay_s = delay_s
        self.break_chance = break_chance
        self.faults: dict[str, int] = {"broken": 0, "cut": 0, "delayed": 0}
        """How many of each kind were really injected."""
        self.listeners: dict[HostPort, MemoryListener] = {}
        self._connections: list[MemoryConnection] = []
        self._cuts: dict[frozenset[str], float] = {}
        """Since when."""
        self._next_port = 1

    def transport(
        self, host: str, secret: bytes = b"secret", node_id: NodeId | None = None
    ) -> "MemoryTransport":
        """Return the transport of one host; with a node id it is as if its node had a certificate of that id."""
        return MemoryTransport(self, host, secret, node_id)

    def is_cut(self, one: str, other: str) -> bool:
        """Say whether nothing gets from one host to the other now."""
        return frozenset((one, other)) in self._cuts

    def cut_s(self, one: str, other: str) -> float:
        """Return for how long nothing has got from one host to the other."""
        since_s = self._cuts.get(frozenset((one, other)))
        return 0.0 if since_s is None else asyncio.get_running_loop().time() - since_s

    def cut(self, one: str, other: str) -> None:
        """Let nothing through between two hosts, silently, as a pulled cable does."""
        if one == other or self.is_cut(one, other):
            return
        loop = asyncio.get_running_loop()
        self._cuts[frozenset((one, other))] = loop.time()
        self.faults["cut"] += 1
        for end in self._between(one, other):
            silence_s = self.heartbeat.silence_max_s + self.heartbeat.ping_interval_s / 2
            loop.call_later(silence_s, end.give_up_if_cut)

    def isolate(self, host: str, others: list[str]) -> None:
        """Cut one host off from all the others."""
        for other in others:
            self.cut(host, other)

    def heal(self) -> None:
        """Let everything through again; what waited arrives."""
        self._cuts.clear()
        for end in list(self._connections):  # What arrives may end connections.
            end.deliver_held()
            if end.is_peer_stopped:
                end.end("connection reset")

    def break_connections(self, one: str, other: str) -> None:
        """End the connections between two hosts; both ends notice at once."""
        for end in self._between(one, other):
            self.faults["broken"] += 1
            end.end("connection reset")

    def stop(self, host: str) -> None:
        """End everything that a host has, as when its process is killed. Who is cut off from it is not told."""
        for end in list(self._connections):
            if end.host == host:
                end.end("the process is gone")
                end.other.peer_stopped()
        for address in [address for address in self.listeners if address.host == host]:
            del self.listeners[address]

    def take_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def add(self, end: "MemoryConnection") -> None:
        self._connections.append(end)

    def remove(self, end: "MemoryConnection") -> None:
        if end in self._connections:
            self._connections.remove(end)

    def draw_delay_s(self) -> float:
        self.faults["delayed"] += self.delay_s[1] > 0
        return self.random.uniform(*self.delay_s)

    def _between(self, one: str, other: str) -> list["MemoryConnection"]:
        return [end for end in self._connections if {end.host, end.other.host} == {one, other}]


class _Goodbye(msgspec.Struct, frozen=True):
    reason: str


class MemoryConnection(Connection):
    """One end."""

    other: "MemoryConnection"

    def __init__(
        self, network: MemoryNetwork, host: str, peer_address: HostPort, peer_node_id: NodeId | None
    ) -> None:
        self.host = host
        self._peer_node_id = peer_node_id
        self._network = network
        self._peer_address = peer_address
        self._received: deque[bytes] = deque()
        self._in_flight: deque[bytes | _Goodbye] = deque()
        """On its way to this end, in order: timers of one moment fire in any order."""
        self._held_count = 0
        """How many of these should have arrived while the link was cut."""
        self._unread_bytes = 0
        """Sent to this end and not yet received by its owner."""
        self._arrives_s = 0.0
        self._end_reason: str | None = None
        self._is_end_known = True
        self.is_peer_stopped = False
        """The process at the other end is gone, and a cut link has kept this end from learning of it."""
        self._changed = asyncio.Event()

    @property
    def peer_address(self) -> HostPort:
        return self._peer_address

    @property
    def peer_node_id(self) -> NodeId | None:
        return self._peer_node_id

    @property
    def round_trip_s(self) -> float | None:
        return sum(self._network.delay_s)

    @property
    def silent_s(self) -> float:
        return self._network.cut_s(self.host, self.other.host)

    async def send(self, message: bytes) -> None:
        if len(message) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(message)} bytes; at most {MESSAGE_BYTES_MAX} can be sent")
        while self._end_reason is None and self.other._unread_bytes > QUEUED_BYTES_MAX:
            self._changed.clear()
            await self._changed.wait()
        if self._end_reason is not None:
            raise self._lost()
        if self._network.random.random() < self._network.break_chance:
            self._network.faults["broken"] += 1
            self.end("connection reset")
            self.other.end("connection reset")
            raise self._lost()
        self.other._unread_bytes += len(message)
        self.other._schedule(message)

    async def receive(self) -> bytes:
        while not self._received:
            if self._end_reason is not None:
                raise self._lost()
            self._changed.clear()
            await self._changed.wait()
        message = self._received.popleft()
        self._unread_bytes -= len(message)
        self.other._changed.set()
        return message

    def close(self, reason: str) -> None:
        if self._end_reason is None:
            self.end(f"closed here: {reason}")
            self.other._schedule(_Goodbye(reason))

    def end(self, reason: str, *, is_known: bool = True) -> None:
        """Nothing is sent from here any more, and nothing more arrives."""
        if self._end_reason is None:
            self._end_reason = reason
            self._is_end_known = is_known
            self._network.remove(self)
            self._changed.set()

    def peer_stopped(self) -> None:
        self.is_peer_stopped = True
        if not self._network.is_cut(self.host, self.other.host):
            self.end("connection reset")

    def give_up_if_cut(self) -> None:
        if self._network.is_cut(self.host, self.other.host):
            silence_max_s = self._network.heartbeat.silence_max_s
            self.end(f"no sign of life for {silence_max_s:.1f} s", is_known=False)

    def deliver_held(self) -> None:
        while self._held_count:
            self._held_count -= 1
            self._arrive()

    def _schedule(self, item: "bytes | _Goodbye") -> None:
        loop = asyncio.get_running_loop()
        self._arrives_s = max(self._arrives_s, loop.time() + self._network.draw_delay_s())
        self._in_flight.append(item)
        loop.call_at(self._arrives_s, self._arrive)

    def _arrive(self) -> None:
        if self._end_reason is not None:
            return
        if self._network.is_cut(self.host, self.other.host):
            self._held_count += 1
            return
        item = self._in_flight.popleft()
        if isinstance(item, _Goodbye):
            self.end(item.reason)
            return
        self._received.append(item)
        self._changed.set()

    def _lost(self) -> ConnectionLostError:
        return connection_ended(self._peer_address, self._end_reason, is_ended=self._is_end_known)


class MemoryListener(Listener):
    """Where a host of the network can be reached."""

    def __init__(
        self, network: MemoryNetwork, address: HostPort, secret: bytes, node_id: NodeId | None
    ) -> None:
        self._network = network
        self._address = address
        self.secret = secret
        self.node_id = node_id
        self._waiting: deque[MemoryConnection] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    @property
    def address(self) -> HostPort:
        return self._address

    async def accept(self) -> Connection:
        while not self._waiting:
            if self._is_closed:
                raise ConnectionLostError(f"no longer listening on {self._address}")
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        self._is_closed = True
        if self._network.listeners.get(self._address) is self:
            del self._network.listeners[self._address]
        for end in self._waiting:
            end.close("the node is stopping")
        self._waiting.clear()
        self._changed.set()

    async def widen(self, host: str) -> None:
        """Nothing to do: here a host is reached from everywhere under its one name."""

    def offer(self, end: MemoryConnection) -> None:
        self._waiting.append(end)
        self._changed.set()


class MemoryTransport(Transport):
    """One host's way into a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, host: str, secret: bytes, node_id: NodeId | None) -> None:
        self._network = network
        self._host = host
        self._secret = secret
        self._node_id = node_id

    async def listen(self, address: HostPort) -> Listener:
        address = HostPort(self._host, address.port or self._network.take_port())
        if address in self._network.listeners:
            raise ConfigurationError(f"cannot listen for other nodes on {address}: it is in use")
        listener = MemoryListener(self._network, address, self._secret, self._node_id)
        self._network.listeners[address] = listener
        return listener

    async def dial(self, address: HostPort, *, timeout_s: float) -> Connection:
        if self._network.is_cut(self._host, address.host):
            await asyncio.sleep(timeout_s)
            raise dial_failure(address, f"no answer within {timeout_s:g} s")
        await asyncio.sleep(2 * self._network.draw_delay_s())
        if self._network.is_cut(self._host, address.host):
            raise dial_failure(address, "no answer")
        listener = self._network.listeners.get(address)
        if listener is None:
            raise dial_failure(address, "connection refused")
        if listener.secret != self._secret:
            raise HandshakeError(f"the node at {address} has another host secret", is_secret_wrong=True)
        near = MemoryConnection(self._network, self._host, address, listener.node_id)
        far = MemoryConnection(self._network, address.host, HostPort(self._host, 0), self._node_id)
        near.other, far.other = far, near
        self._network.add(near)
        self._network.add(far)
        listener.offer(far)
        return near
