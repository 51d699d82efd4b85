"""A follower learns from its master what was committed: a snapshot at first or when it fell behind, then entries."""

from exo.cluster.board import Board
from exo.cluster.folding import Folding
from exo.cluster.joining import Joining
from exo.cluster.lane import Lane
from exo.cluster.proposals import Proposals
from exo.cluster.situation import Situation
from exo.cluster.transport.base import Connection
from exo.cluster.uplink import Uplink
from exo.cluster.wire import Entries, Welcome
from exo.shared.types.state import State


class Learning:
    """Takes what a master says of its history, and says so where it does not continue this node's."""

    def __init__(
        self,
        situation: Situation,
        board: Board,
        *,
        uplink: Uplink,
        folding: Folding,
        joining: Joining,
        lane: Lane,
        proposals: Proposals,
    ) -> None:
        self._situation = situation
        self._board = board
        self._uplink = uplink
        self._folding = folding
        self._joining = joining
        self._lane = lane
        self._proposals = proposals

    def begin(self, connection: Connection, welcome: Welcome, snapshot: State | None) -> None:
        """A master took this node in: go on from its snapshot, or from the present state with its tail."""
        situation, facts = self._situation, welcome.facts
        assert facts.cluster_id is not None
        self._uplink.open(connection, facts.node_id, term=facts.term, index=facts.index)
        is_other = situation.cluster_id != facts.cluster_id
        if snapshot is not None and (is_other or snapshot.index > situation.state.index):
            self._folding.go_on_from(snapshot)
        elif is_other:
            # What the core is about to learn must not be folded into another history.
            self._folding.go_on_from(State())
        situation.cluster_id = facts.cluster_id
        self._proposals.begin(facts.cluster_id, facts.term, welcome.last_seq)
        self._uplink.note_progress()
        self._joining.ensure_member()
        self._board.announce()

    def snapshot_received(self, snapshot: State) -> None:
        """The master skips ahead: this node had fallen too far behind."""
        if snapshot.index > self._situation.state.index:
            self._folding.go_on_from(snapshot)
            self._lane.drop_held()
        self._folding.fold(())

    def entries_received(self, message: Entries) -> str | None:
        """Fold entries in. Returns why the master cannot be followed any more, if so."""
        situation = self._situation
        if message.term != situation.master_term:
            return f"it speaks for term {message.term}, this is term {situation.master_term}"
        expected = None
        for entry in message.entries:
            if entry.index > situation.state.index + 1 and expected is None:
                return f"it sent entry {entry.index} where {situation.state.index + 1} was expected"
            if expected is not None and entry.index != expected:
                return f"it sent entry {entry.index} where {expected} was expected"
            expected = entry.index + 1
        self._folding.fold(message.entries)
        return None
