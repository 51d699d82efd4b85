"""The state machine of agreement: `step(message) -> effects`. Pure: no clock, no I/O, no randomness, no ids of its own.

This is the version with a single log: an entry is committed when it is durable on the master. Followers are sent
committed entries only, so a copy on a majority later changes when `_commit` is called and not what the others see.
Effects are to be carried out in their order.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import msgspec

from exo.cluster.core_messages import (
    Append,
    BecameDurable,
    CloseSession,
    Committed,
    Decide,
    DropMaster,
    Effect,
    EntriesReceived,
    Follow,
    FollowerArrived,
    FollowerLost,
    Lead,
    MasterLost,
    Message,
    ProposalReceived,
    Stop,
    Tick,
)
from exo.shared.types.events import (
    ClusterFormed,
    Decision,
    LogEntry,
    NodeDisconnected,
    NodeJoined,
    TermOpened,
)
from exo.shared.types.ids import ClusterId, NodeId

FIRST_INCARNATION = 1
"""Counts how often a cluster's history was begun anew by force; a single log has no way to do that."""

Role = Literal["idle", "leader", "follower", "orphan"]
"""An orphan is a follower whose master is not to be reached."""


class _Follower(msgspec.Struct):
    node_id: NodeId
    next_index: int | None
    """None: a snapshot comes first."""


class Core:
    """One node's part in the agreement.

    Args:
        node_id: This node.
        recent_max: How many committed entries are kept for followers that are a little behind.
        grace_ticks: How long a new master waits for its members before it declares them disconnected.
    """

    def __init__(self, node_id: NodeId, *, recent_max: int, grace_ticks: int) -> None:
        self.node_id = node_id
        self.role: Role = "idle"
        self.cluster_id: ClusterId | None = None
        self.term: int = 0
        self.commit_index: int = 0
        self._last_index: int = 0
        self._last_seq: dict[NodeId, int] = {}
        self._uncommitted: deque[LogEntry] = deque()
        self._recent: deque[LogEntry] = deque(maxlen=recent_max)
        self._followers: dict[int, _Follower] = {}
        self._connected: set[NodeId] = set()
        self._grace_ticks = grace_ticks
        self._grace_left: int | None = None

    def step(self, message: Message) -> list[Effect]:
        """Take in what happened and return what is to be done about it."""
        match message:
            case Lead():
                return self._lead(message)
            case ProposalReceived():
                return self._admit(message)
            case BecameDurable(index=index):
                return self._commit(index) if self.role == "leader" else []
            case FollowerArrived():
                return self._follower_arrived(message)
            case FollowerLost():
                return self._follower_lost(message)
            case Follow():
                return self._follow(message)
            case EntriesReceived():
                return self._entries_received(message)
            case MasterLost():
                self.role = "orphan" if self.role == "follower" else self.role
                return []
            case Stop():
                return self._stop()
            case Tick():
                return self._tick()

    def last_seq(self, origin: NodeId) -> int:
        """Return the number of the origin's last admitted event."""
        return self._last_seq.get(origin, 0)

    @property
    def oldest_index(self) -> int:
        """Index of the oldest committed entry in memory; one behind the newest where there is none."""
        return self._recent[0].index if self._recent else self.commit_index + 1

    def recent_after(self, index: int) -> Sequence[LogEntry] | None:
        """Return the committed entries behind `index`, or None when they are no longer all in memory."""
        if index > self.commit_index:
            return None
        oldest = self.oldest_index
        if index + 1 < oldest:
            return None
        start = index + 1 - oldest
        return [self._recent[position] for position in range(start, len(self._recent))]

    def next_entries(self, session: int, entries_max: int) -> Sequence[LogEntry] | None:
        """Return what to send to a follower next (nothing when it has all), or None when it needs a snapshot.

        What is returned counts as sent: a connection delivers in order, or ends.
        """
        follower = self._followers[session]
        if follower.next_index is None:
            return None
        if follower.next_index > self.commit_index:
            return ()
        entries = self.recent_after(follower.next_index - 1)
        if entries is None:
            follower.next_index = None
            return None
        taken = entries[:entries_max]
        follower.next_index += len(taken)
        return taken

    def needs_snapshot(self, session: int) -> bool:
        """Say whether a follower has to be sent a snapshot before it can be sent entries."""
        return self._followers[session].next_index is None

    def snapshot_sent(self, session: int) -> None:
        """A snapshot at the present commit index was sent to a follower; the tail comes next."""
        self._followers[session].next_index = self.commit_index + 1

    # --- leading ------------------------------------------------------------------------------------------------

    def _lead(self, message: Lead) -> list[Effect]:
        self.role = "leader"
        self.cluster_id = message.cluster_id
        self.term = message.term + 1
        self.commit_index = self._last_index = message.index
        self._last_seq = dict(message.last_seq)
        self._uncommitted.clear()
        self._recent.clear()
        self._recent.extend(message.recent)
        self._followers = {}
        self._connected = set(message.connected)
        self._grace_left = self._grace_ticks
        opening: tuple[Decision, ...] = (TermOpened(master_node_id=self.node_id),)
        if message.index == 0:
            formed = ClusterFormed(cluster_id=message.cluster_id, namespace=message.namespace)
            opening = (formed, *opening)
        return [Decide(events=opening, cause_id=f"term-{self.term}")]

    def _admit(self, message: ProposalReceived) -> list[Effect]:
        if self.role != "leader" or (message.session is not None and message.session not in self._followers):
            return []
        if message.term != self.term:
            return self._refuse(message, f"it is for term {message.term}, this is term {self.term}")
        expected = self.last_seq(message.origin) + 1
        last = message.first_seq + len(message.events) - 1
        if last < expected:
            return []  # Admitted before; it shows in the stream.
        if message.first_seq != expected:
            return self._refuse(message, f"proposal {message.first_seq} where {expected} was expected")
        entries = tuple(
            LogEntry(
                index=self._last_index + 1 + position,
                term=self.term,
                event_id=proposed.event_id,
                cause_id=message.cause_id,
                origin=message.origin,
                seq=message.first_seq + position,
                at=message.at,
                event=proposed.event,
            )
            for position, proposed in enumerate(message.events)
        )
        self._last_index += len(entries)
        self._last_seq[message.origin] = last
        self._uncommitted.extend(entries)
        for entry in entries:
            self._note_membership(entry.event)
        return [Append(entries=entries)]

    def _refuse(self, message: ProposalReceived, reason: str) -> list[Effect]:
        # The origin connects again, learns what was admitted, and sends the rest from there.
        return [] if message.session is None else [CloseSession(session=message.session, reason=reason)]

    def _note_membership(self, event: Decision) -> None:
        if isinstance(event, NodeJoined):
            self._connected.add(event.identity.node_id)
        elif isinstance(event, NodeDisconnected):
            self._connected.discard(event.node_id)

    def _commit(self, index: int) -> list[Effect]:
        entries: list[LogEntry] = []
        while self._uncommitted and self._uncommitted[0].index <= index:
            entries.append(self._uncommitted.popleft())
        if not entries:
            return []
        self.commit_index = entries[-1].index
        self._recent.extend(entries)
        return [Committed(entries=tuple(entries))]

    def _follower_arrived(self, message: FollowerArrived) -> list[Effect]:
        effects: list[Effect] = [
            CloseSession(session=session, reason="the same node has connected again")
            for session, follower in self._followers.items()
            if follower.node_id == message.node_id
        ]
        for effect in effects:
            assert isinstance(effect, CloseSession)
            del self._followers[effect.session]
        next_index = message.index + 1 if self._continues(message) and message.index is not None else None
        self._followers[message.session] = _Follower(message.node_id, next_index)
        return effects

    def _continues(self, message: FollowerArrived) -> bool:
        """Say whether the follower's newest entry is one of this log, so that the tail behind it is enough."""
        if not message.index or self.recent_after(message.index) is None:
            return False
        before = self.recent_after(message.index - 1)
        return before is not None and before[0].term == message.term

    def _follower_lost(self, message: FollowerLost) -> list[Effect]:
        follower = self._followers.pop(message.session, None)
        if follower is None or follower.node_id not in self._connected:
            return []
        gone = NodeDisconnected(node_id=follower.node_id, reason=message.reason)
        return [Decide(events=(gone,), cause_id=f"term-{self.term}")]

    def _tick(self) -> list[Effect]:
        if self.role != "leader" or self._grace_left is None:
            return []
        self._grace_left -= 1
        if self._grace_left > 0:
            return []
        self._grace_left = None
        present = {follower.node_id for follower in self._followers.values()} | {self.node_id}
        return [
            Decide(
                events=(NodeDisconnected(node_id=node_id, reason="not back since the master started again"),),
                cause_id=f"term-{self.term}",
            )
            for node_id in sorted(self._connected - present)
        ]

    def _stop(self) -> list[Effect]:
        self.role = "idle"
        self._uncommitted.clear()
        self._followers = {}
        return []

    # --- following ----------------------------------------------------------------------------------------------

    def _follow(self, message: Follow) -> list[Effect]:
        if message.cluster_id == self.cluster_id and message.term < self.term:
            return [DropMaster(reason=f"its term {message.term} is over, this is term {self.term}")]
        if message.cluster_id != self.cluster_id or message.index != self.commit_index:
            self._recent.clear()
        self.role = "follower"
        self.cluster_id = message.cluster_id
        self.term = message.term
        self.commit_index = self._last_index = message.index
        self._uncommitted.clear()
        return []

    def _entries_received(self, message: EntriesReceived) -> list[Effect]:
        if self.role != "follower" or not message.entries:
            return []
        if message.term != self.term:
            return [DropMaster(reason=f"it speaks for term {message.term}, this is term {self.term}")]
        for expected, entry in enumerate(message.entries, start=self.commit_index + 1):
            if entry.index != expected:
                return [DropMaster(reason=f"it sent entry {entry.index} where {expected} was expected")]
        self.commit_index = self._last_index = message.entries[-1].index
        self._recent.extend(message.entries)
        return [Committed(entries=message.entries)]
