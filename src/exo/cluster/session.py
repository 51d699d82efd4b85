"""What a master keeps of one follower that is connected now."""

from collections import deque
from collections.abc import Sequence

from exo.cluster.errors import UnsendableError
from exo.cluster.signal import Signal
from exo.cluster.transport.base import Connection
from exo.cluster.wire import Answer, encode, encode_checked
from exo.shared.types.ids import NodeId


class Session:
    """One follower's connection, and how much of the telemetry it has been sent."""

    def __init__(self, number: int, node_id: NodeId, connection: Connection, boot_id: str = "") -> None:
        self.number = number
        self.node_id = node_id
        self.boot_id = boot_id
        self.connection = connection
        self.wake = Signal()
        self.tick = 0
        self.needs_live = True
        self.next_index: int | None = None
        """The next committed entry to send; None: a snapshot comes first."""
        self.gets_entries = True
        """False for a node that agrees: it learns of entries and commits from the core."""
        self.has_authority = False
        """It was sent the key of the cluster's authority."""
        self.is_leaving = False
        """It said that it is about to stop."""
        self.is_removed = False
        """The node is no member any more: it is told so, and nothing that it says counts."""
        self._answers: deque[bytes] = deque()

    def answer(self, answer: Answer) -> None:
        """Queue the answer to a call; bounded by the calls that the follower has made."""
        try:
            data = encode_checked(answer, "the master's answer")
        except UnsendableError as error:
            data = encode(Answer(call_id=answer.call_id, index=answer.index, error=error.message))
        self._answers.append(data)
        self.wake.fire()

    def take_answers(self) -> Sequence[bytes]:
        taken = list(self._answers)
        self._answers.clear()
        return taken
