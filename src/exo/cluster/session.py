"""What a master keeps of one follower that is connected now."""

from collections import deque
from collections.abc import Sequence

from exo.cluster.signal import Signal
from exo.cluster.transport.base import Connection
from exo.cluster.wire import Answer, encode
from exo.shared.types.ids import NodeId


class Session:
    """One follower's connection, and how much of the telemetry it has been sent."""

    def __init__(self, number: int, node_id: NodeId, connection: Connection) -> None:
        self.number = number
        self.node_id = node_id
        self.connection = connection
        self.wake = Signal()
        self.tick = 0
        self.needs_live = True
        self._answers: deque[Answer] = deque()

    def answer(self, answer: Answer) -> None:
        """Queue the answer to a call; bounded by the calls that the follower has made."""
        self._answers.append(answer)
        self.wake.fire()

    def take_answers(self) -> Sequence[bytes]:
        taken = [encode(answer) for answer in self._answers]
        self._answers.clear()
        return taken
