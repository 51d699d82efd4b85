"""The seam of the wire between nodes: framed messages, in order, with back-pressure, and loss that is noticed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import msgspec

from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
QUEUED_BYTES_MAX = 1024 * 1024
"""Bound of each queue of a connection; beyond it, `send` waits."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """How the loss of a peer is noticed. Both ends of a connection should have the same."""

    ping_interval_s: float = 0.5
    silence_max_s: float = 1.5
    """A peer that gives no sign of life for this long is lost; noticed at the next check, one interval later."""


class Connection(ABC):
    """One connection to a peer that has proved that it belongs here. Messages arrive whole, in order, or not at all.

    A peer that ended, was cut off or was stopped is noticed: at once where the operating system says so, and
    otherwise within the longest silence and one interval of the heartbeat, by default two seconds.
    """

    @property
    @abstractmethod
    def peer_address(self) -> HostPort:
        """The other end of this connection. For a dialled one: the address that was dialled."""

    @property
    @abstractmethod
    def peer_node_id(self) -> NodeId | None:
        """Who the peer is, by its certificate. None: one of this user's nodes on this host, which names itself."""

    @property
    @abstractmethod
    def round_trip_s(self) -> float | None:
        """The shortest of the last few measured round trips; None before the first one."""

    @property
    def silent_s(self) -> float:
        """For how long the peer has given no sign of life; 0 where that is not known."""
        return 0.0

    @abstractmethod
    async def send(self, message: bytes) -> None:
        """Queue a message; waits while the queue is full.

        Raises:
            ConnectionLostError: The connection ended. Whether earlier messages arrived is unknown. Its `is_ended`
                tells an end that is known from a mere silence.
            ValueError: The message is longer than MESSAGE_BYTES_MAX.
        """

    @abstractmethod
    async def receive(self) -> bytes:
        """Return the next message. Messages that arrived before the end are delivered first.

        Raises:
            ConnectionLostError: The connection ended; the message says why.
        """

    @abstractmethod
    def close(self, reason: str) -> None:
        """End the connection after what was queued; the other side is told why. Harmless when it has ended."""


class Listener(ABC):
    """An address at which peers can reach this node."""

    @property
    @abstractmethod
    def address(self) -> HostPort:
        """Where it listens: with the real port, when any free one was asked for."""

    @abstractmethod
    async def accept(self) -> Connection:
        """Return the next connection of a peer that has proved itself.

        Raises:
            ConnectionLostError: The listener was closed.
        """

    @abstractmethod
    async def widen(self, host: str) -> None:
        """Listen on another address of this node (`0.0.0.0`, `::` for IPv6 and IPv4) and the same port from now on.

        Connections stay. One that is being made in this very moment may be reset.

        Raises:
            ConfigurationError: That is not possible; it listens where it did before.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop listening, and end connections that nobody has accepted."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Transport(ABC):
    """How nodes reach each other."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What was let in and refused since the start; a transport that lets in everybody counts nothing."""
        return {}

    @abstractmethod
    async def listen(self, address: HostPort) -> Listener:
        """Listen at an address; port 0 means any free port.

        Raises:
            ConfigurationError: The port is in use, or the address may not be listened on.
        """

    @abstractmethod
    async def dial(self, address: HostPort, *, timeout_s: float) -> Connection:
        """Connect to a peer and prove to each other that both belong here.

        Raises:
            HandshakeError: One of the two cannot prove that it belongs to the other, or speaks another protocol.
            DialError: The peer could not be reached within the time.
        """
