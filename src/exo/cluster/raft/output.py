"""What one step of the core wants done, gathered: effects, at most one write, and what is said once that is on disk."""

from collections import deque
from collections.abc import Sequence

import msgspec

from exo.cluster.raft.messages import PeerMessage, Snapshot
from exo.cluster.raft.steps import Distrust, Effect, HardState, Send, Write
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId


class SelfVote(msgspec.Struct, frozen=True):
    """A node's own vote, which counts when it is durable."""

    term: int
    forced_index: int | None = None
    """It was forced to lead, and nobody else is asked: its term begins with the entry at this index."""


Promise = Send | SelfVote
"""What holds only once everything written so far is on disk."""


class PendingWrite(msgspec.Struct):
    """A Write under way, and what is said once it is done."""

    number: int
    last_index: int
    last_term: int
    has_hard_state: bool
    then: list[Promise]


class Output:
    """Of one core. A write and the promises that wait for it outlive the step; the rest does not."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self._then: list[Promise] = []
        self._hard_state: HardState | None = None
        self._snapshot: Snapshot | None = None
        self._truncate_after: int | None = None
        self._appended: list[LogEntry] = []
        self._pending: deque[PendingWrite] = deque()
        self._write_number = 0

    # --- what is wanted -----------------------------------------------------------------------------------------

    def send(self, to: NodeId, message: PeerMessage) -> None:
        self.effects.append(Send(to=to, message=message))

    def send_when_durable(self, to: NodeId, message: PeerMessage) -> None:
        self._then.append(Send(to=to, message=message))

    def send_when_term_durable(self, to: NodeId, message: PeerMessage) -> None:
        """Say what promises nothing but to be in a term: entries that are still being written do not hold it up."""
        if self._hard_state is not None:
            self._then.append(Send(to=to, message=message))
            return
        for write in reversed(self._pending):
            if write.has_hard_state:
                write.then.append(Send(to=to, message=message))
                return
        self.send(to, message)

    def vote_when_durable(self, vote: SelfVote) -> None:
        self._then.append(vote)

    def distrust(self, source: NodeId, reason: str) -> None:
        self.effects.append(Distrust(node_id=source, reason=reason))

    def remember(self, hard_state: HardState) -> None:
        self._hard_state = hard_state

    def replace_log(self, snapshot: Snapshot) -> None:
        """Put a snapshot in the place of the log, and of what this step has done to that."""
        self._snapshot, self._truncate_after, self._appended = snapshot, None, []

    def truncate_after(self, index: int) -> None:
        """Cut the log off, and what this step has appended to it."""
        if self._appended and index >= self._appended[0].index - 1:
            del self._appended[index - self._appended[0].index + 1 :]
            return
        self._appended = []
        self._truncate_after = index if self._truncate_after is None else min(index, self._truncate_after)

    def append(self, entries: Sequence[LogEntry]) -> None:
        self._appended.extend(entries)

    # --- the end of a step, and of a write ----------------------------------------------------------------------

    def take(self, term: int, last_index: int, last_term: int) -> list[Effect]:
        """Return what the step wants, in order: its write first.

        Args:
            term: As it is now: what was to be said in an earlier one is of no use to anybody.
            last_index: Where the log ends now.
            last_term: Its term there.
        """
        effects, self.effects = self.effects, []
        then, self._then = self._then, []
        appended, self._appended = self._appended, []
        if self._hard_state or self._snapshot or self._truncate_after is not None or appended:
            self._write_number += 1
            has_hard_state = self._hard_state is not None
            self._pending.append(
                PendingWrite(self._write_number, last_index, last_term, has_hard_state, then)
            )
            write = Write(
                number=self._write_number,
                hard_state=self._hard_state,
                snapshot=self._snapshot,
                truncate_after=self._truncate_after,
                entries=tuple(appended),
            )
            effects.insert(0, write)
            self._hard_state = self._snapshot = self._truncate_after = None
        elif then and self._pending:
            # What it speaks of may be part of a write that is still under way.
            self._pending[-1].then.extend(then)
        elif then:
            effects.extend(sayable(then, term))
        return effects

    def written(self, number: int) -> list[PendingWrite]:
        """Return the writes that are done with this one, and forget them."""
        done: list[PendingWrite] = []
        while self._pending and self._pending[0].number <= number:
            done.append(self._pending.popleft())
        return done


def sayable(then: Sequence[Promise], term: int) -> list[Send]:
    """Return the messages among these that are of this term."""
    return [one for one in then if isinstance(one, Send) and one.message.term == term]
