"""What a node begins with: its log, snapshot and vote, read back from disk."""

from collections.abc import Sequence

import msgspec

from exo.cluster.log.store import NodeStore
from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.options import SnapshotPoint
from exo.cluster.raft.quorum import voters_of
from exo.cluster.raft.steps import HardState
from exo.cluster.snapshotting import decode_state
from exo.shared.apply import apply_entries
from exo.shared.errors import ConfigurationError
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What was on disk."""

    hard_state: HardState
    incarnation: int
    point: SnapshotPoint
    """Where the log begins, and who has to agree as of there."""
    entries: tuple[LogEntry, ...]
    """The log behind the snapshot; which of it is committed is not known."""
    state: State
    """As of the snapshot."""
    guess: State
    """As if all of the log were committed: where the others may be found."""

    @property
    def voters(self) -> tuple[Voters, ...]:
        """Who has to agree, as of the snapshot and as of every change behind it."""
        changes = (voters_of(entry.event) for entry in self.entries)
        return (self.point.voters, *(voters for voters in changes if voters is not None))

    def is_of_use_to(self, node_id: NodeId) -> bool:
        """Say whether the node's disk counts for anybody: it votes, or holds the copy of a cluster of two."""
        return any(node_id in voters.members for voters in self.voters)


def read_store(store: NodeStore, node_id: NodeId) -> Boot:
    """Read back what a node has. Waits for the disk.

    Raises:
        LogCorruptError: The log, snapshot or vote is damaged, or was written by a newer release.
        LogOrderError: The log has a gap.
    """
    snapshot = store.snapshots.load()
    state = State() if snapshot is None else decode_state(snapshot)
    entries = tuple(store.log.read(state.index))
    hard_state = store.votes.load()
    return Boot(
        hard_state=hard_state,
        incarnation=state.incarnation,
        point=SnapshotPoint(
            index=state.index,
            term=state.term,
            voters=_voters_at(snapshot, state) or _first_voters(hard_state, entries, node_id),
            last_seq=state.last_seq,
        ),
        entries=entries,
        state=state,
        guess=apply_entries(state, entries),
    )


def begin_store(store: NodeStore, node_id: NodeId, namespace: str) -> Boot:
    """Read back what a node goes on from, and empty the store where that is nothing. Waits for the disk.

    Raises:
        ConfigurationError: The log belongs to another namespace.
        LogCorruptError: See read_store.
        LogOrderError: See read_store.
    """
    boot = read_store(store, node_id)
    guess = boot.guess
    if guess.index and guess.namespace != namespace:
        raise ConfigurationError(
            f"the data directory belongs to the namespace {guess.namespace!r}, not {namespace!r}; "
            "start with that namespace, or choose another directory with EXO_HOME"
        )
    if guess.dissolved_into is not None and boot.point.voters.voters == (node_id,):
        # It was about to join another cluster: it starts as a new node, and finds that one.
        store.reset()
        return read_store(store, node_id)
    return boot


def _voters_at(snapshot: Snapshot | None, state: State) -> Voters | None:
    # The state knows of none where none were ever logged; who made the snapshot knew who voted.
    known = [state.voters] if snapshot is None else [state.voters, snapshot.voters]
    return next((voters for voters in known if voters.voters), None)


def _first_voters(hard_state: HardState, entries: Sequence[LogEntry], node_id: NodeId) -> Voters:
    # A node that is new forms a cluster of its own. So did one with a log of the release before voters were logged,
    # when there was one log, that of the master.
    is_new = not entries and hard_state == HardState()
    is_old = bool(entries) and not any(voters_of(entry.event) for entry in entries[:1])
    return Voters(voters=(node_id,)) if is_new or is_old else Voters()
