"""A connection to a node that agrees with this one, and what waits to be sent on it."""

from collections import deque
from collections.abc import Sequence

from exo.cluster.signal import Signal
from exo.cluster.transport.base import Connection
from exo.shared.types.ids import NodeId


class PeerLink:
    """What the core wants sent waits here. How much that can be is bounded by the core: it sends only so many entries
    ahead of the answers, and a link that is stuck ends within the longest silence of its heartbeat."""

    def __init__(self, node_id: NodeId, connection: Connection, *, is_voteless: bool = False) -> None:
        self.node_id = node_id
        self.connection = connection
        self.is_voteless = is_voteless
        """The peer has lost its log and may not vote."""
        self.work = Signal()
        self._waiting: deque[bytes] = deque()

    def send(self, messages: Sequence[bytes]) -> None:
        self._waiting.extend(messages)
        self.work.fire()

    def take(self) -> Sequence[bytes]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def close(self, reason: str) -> None:
        self.connection.close(reason)
