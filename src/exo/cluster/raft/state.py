"""What one core knows, and the few changes of it that every role makes. The roles are functions on it. Pure."""

from collections.abc import Callable, Sequence

import msgspec

from exo.cluster.raft.admission import Admission
from exo.cluster.raft.leader import Leader
from exo.cluster.raft.log_window import LogWindow
from exo.cluster.raft.options import CoreOptions, SnapshotPoint
from exo.cluster.raft.output import Output
from exo.cluster.raft.steps import Commit, HardState, ReadRefused, Role
from exo.shared.types.events import HistoryForced, LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


class CoreState:
    """One node's part in the agreement.

    Args:
        node_id: This node.
        hard_state: Its term and vote, as on its disk.
        incarnation: Of the snapshot; HistoryForced among the entries raises it.
        snapshot: Where its log begins; the voters of a new cluster when there is none.
        entries: Its log behind the snapshot, committed or not.
        options: Times in ticks and bounds.
        random: A number from 0 to 1: keeps nodes from standing for election at the same time.
        commit_index: As far as is known to be committed; 0 where that is not known.
        may_vote: False for a node that has lost its log: what it voted and acknowledged is forgotten.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        hard_state: HardState,
        incarnation: int,
        snapshot: SnapshotPoint,
        entries: Sequence[LogEntry],
        options: CoreOptions,
        random: Callable[[], float],
        commit_index: int = 0,
        may_vote: bool = True,
    ) -> None:
        self.node_id = node_id
        self.options = options
        self.may_vote = may_vote
        self.incarnation = incarnation
        self.note_incarnation(entries)
        self.role: Role = "follower"
        self.leader_id: NodeId | None = None
        self.log = LogWindow(snapshot.index, snapshot.term, snapshot.voters, entries)
        self.commit_index = max(snapshot.index, min(commit_index, self.log.last_index))
        self.durable_index = self.log.last_index
        self.admission = Admission(snapshot.last_seq)
        self.admission.committed(self.log.between(snapshot.index, self.commit_index))
        if hard_state.term < self.log.last_term:
            # Whom it voted for in that term is not known, so that it has no vote left in it.
            hard_state = HardState(term=self.log.last_term, voted_for=node_id, is_level=hard_state.is_level)
        self.hard_state = msgspec.structs.replace(hard_state, is_level=may_vote and hard_state.is_level)
        self.heard_commit_index = 0
        """The furthest that a leader said to be committed; see `note_level`."""
        self.leading: Leader | None = None
        """What this node knows as the leader; None while it does not lead."""
        self.votes: dict[NodeId, bool] = {}
        """As a candidate: who has granted or refused."""
        self.is_trial = False
        """As a candidate: it asks whether it would win (PreVote)."""
        self.silent_ticks: int = 0
        """Since it heard a leader, stood for election or gave a vote."""
        self.timeout_ticks: int = 0
        self.random = random
        self.draw_timeout()
        self.output = Output()
        self.has_to_send = False
        """The leader's log has grown in this step."""
        self.announced = (self.role, self.term, self.leader_id)
        """What the last RoleChanged said."""

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self.hard_state.term

    @property
    def voters(self) -> Voters:
        """Who has to agree now: the newest change in the log, committed or not."""
        return self.log.voters.voters

    @property
    def is_admitting(self) -> bool:
        """Proposals are taken: this node leads and is not about to hand over."""
        leading = self.leading
        if leading is None or leading.hand_over_to is not None:
            return False
        return not (leading.is_dissolving and self.is_term_opened)

    @property
    def is_term_opened(self) -> bool:
        """This node leads, and its log has an entry of its term."""
        return self.leading is not None and self.log.last_index >= self.leading.first_index

    @property
    def is_term_committed(self) -> bool:
        """This node leads and knows that everything committed before is committed here too."""
        return self.leading is not None and self.commit_index >= self.leading.first_index

    @property
    def is_only_voter(self) -> bool:
        return self.voters.voters == (self.node_id,)

    @property
    def has_vote(self) -> bool:
        """It has forgotten nothing that it promised, and its log is not the beginning of one."""
        return self.may_vote and self.hard_state.is_level

    @property
    def is_promotable(self) -> bool:
        """This node may stand for election.

        Also when it is about to be removed: until the change is committed it may be the only one that can finish it.
        """
        return self.has_vote and any(
            self.node_id in voters.voters for voters in self.log.voters_since(self.commit_index)
        )

    # --- what every role does -----------------------------------------------------------------------------------

    def draw_timeout(self) -> None:
        shortest, longest = self.options.election_ticks
        self.timeout_ticks = shortest + int(self.random() * (longest - shortest + 1))

    def remember(self, term: int, voted_for: NodeId | None = None, *, is_level: bool | None = None) -> None:
        """Go on with another term or vote, which has to be on disk before anybody hears of it."""
        is_level = self.hard_state.is_level if is_level is None else is_level
        self.hard_state = HardState(term=term, voted_for=voted_for, is_level=is_level)
        self.output.remember(self.hard_state)

    def note_level(self) -> None:
        """See whether a node that began with nothing has caught up.

        It has when its disk has everything that the leader called committed since this node is here, and an entry of
        that leader's term among it: behind that lies everything that was committed in earlier terms, and so all that
        this node may have promised and forgotten.
        """
        index = self.commit_index
        is_on_disk = self.heard_commit_index <= index <= self.durable_index
        if index and is_on_disk and self.log.term_at(index) == self.term:
            self.remember(self.term, self.hard_state.voted_for, is_level=True)

    def note_incarnation(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            if isinstance(entry.event, HistoryForced):
                self.incarnation = max(self.incarnation, entry.event.incarnation)

    def become_follower(self, term: int, leader: NodeId | None) -> None:
        """Follow a leader, or wait for one, in a term that may be a new one."""
        if term > self.term:
            self.remember(term)
        if self.leading is not None:
            self.output.effects += [ReadRefused(read_id=read_id) for read_id in self.leading.drop_reads()]
            self.leading = None
            self.admission.end()
        if self.role != "follower" or leader != self.leader_id or leader is not None:
            self.silent_ticks = 0
            self.draw_timeout()
        self.role = "follower"
        self.leader_id = leader
        self.votes = {}

    def commit_to(self, index: int) -> None:
        """Everything up to `index`, which is in the log, is agreed on."""
        if index <= self.commit_index:
            return
        entries = tuple(self.log.between(self.commit_index, index))
        self.commit_index = index
        self.admission.committed(entries)
        self.output.effects.append(Commit(entries=entries))
        if index - self.log.base_index > 2 * self.options.recent_max:
            self.log.trim(index - self.options.recent_max)
