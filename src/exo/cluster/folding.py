"""What follows from what was committed: the state moves on, and everybody here who has to know of it is told."""

from collections.abc import Sequence

import msgspec
from loguru import logger

from exo.cluster.board import Board
from exo.cluster.electorate import Electorate
from exo.cluster.hosting import Hosting
from exo.cluster.joining import Joining
from exo.cluster.lane import Lane
from exo.cluster.peer_links import PeerLinks
from exo.cluster.proposals import Proposals
from exo.cluster.raft.messages import Snapshot
from exo.cluster.recent import Recent
from exo.cluster.situation import Situation
from exo.cluster.snapshotting import decode_state
from exo.cluster.uplink import Uplink
from exo.shared.types.events import ClusterDissolved, LogEntry, NodeRemoved
from exo.shared.types.state import State


class Folding:
    """Committed entries come from the core, or from the master; both ways end here."""

    def __init__(
        self,
        situation: Situation,
        board: Board,
        recent: Recent,
        *,
        proposals: Proposals,
        joining: Joining,
        lane: Lane,
        links: PeerLinks,
        uplink: Uplink,
        hosting: Hosting,
        electorate: Electorate,
    ) -> None:
        self._situation = situation
        self._board = board
        self._recent = recent
        self._proposals = proposals
        self._joining = joining
        self._lane = lane
        self._links = links
        self._uplink = uplink
        self._hosting = hosting
        self._electorate = electorate

    def fold(self, entries: Sequence[LogEntry]) -> None:
        """Fold committed entries in. Some may be here already: a node may learn of them in two ways."""
        situation = self._situation
        folded_index = situation.state.index
        fresh = [entry for entry in entries if entry.index > folded_index]
        was_member, was_open = situation.is_member, situation.state.term == situation.core.term
        if fresh:
            self._board.fold(fresh)
            self._recent.add(fresh)
            situation.moved_on()
            situation.cluster_id = situation.state.cluster_id
        for entry in fresh:
            if isinstance(entry.event, ClusterDissolved):
                situation.redirected_to = entry.event.address
            elif isinstance(entry.event, NodeRemoved) and entry.event.node_id == situation.node_id:
                situation.removed(entry.event.reason)
            elif isinstance(entry.event, NodeRemoved):
                self._hosting.removed(entry.event.node_id)
            if entry.origin == situation.node_id:
                self._proposals.committed(situation.cluster_id, entry.seq, entry.index, entry.event_id)
        node = situation.state.nodes.get(situation.node_id)
        if node is not None and node.identity.boot_id == situation.boot_id:
            situation.identity = node.identity
        self._lane.released(situation.state.index)
        if not self._uplink.note_progress() and situation.is_member and not was_member:
            self._lane.tell_all(situation.state.instances)
        if situation.is_open and not was_open:
            self._hosting.opened()
        self._note_voters()
        if situation.state.dissolved_into is not None:
            situation.end("dissolved")
        self._joining.ensure_member()
        self._hosting.wake_all()
        if fresh and situation.is_leaving:
            self._electorate.manage()
        self._board.announce()

    def restore(self, snapshot: Snapshot) -> None:
        """The core goes on from a snapshot that its leader sent."""
        situation = self._situation
        if snapshot.index > situation.state.index or situation.cluster_id is None:
            state = decode_state(snapshot)
            self.go_on_from(msgspec.structs.replace(state, live=situation.state.live))
        self.fold(())

    def go_on_from(self, state: State) -> None:
        """The state is another one; what lies between is not known here."""
        self._board.replace(state)
        self._recent.begin_at(state.index)
        self._situation.moved_on()
        if state.cluster_id is not None:
            self._situation.cluster_id = state.cluster_id
            last_seq = state.last_seq.get(self._situation.node_id, 0)
            self._proposals.committed(state.cluster_id, last_seq, state.index)
        self._note_voters()

    def _note_voters(self) -> None:
        core, voters = self._situation.core, self._situation.state.voters
        if not core.may_vote and voters.voters and self._situation.node_id not in voters.members:
            # Nobody counts on what it has forgotten, and it may be made a voter.
            core.may_vote = True
            logger.debug("this node may vote once it has caught up")
            self._links.close_all("it may vote now")
