"""A master sees to it that the right nodes vote, one change at a time; who those are is chosen in membership.py."""

from collections.abc import Callable, Mapping, Sequence

from loguru import logger

from exo.cluster.dispatch import Dispatch
from exo.cluster.membership import Presence, choose_voters
from exo.cluster.options import CoordinatorOptions
from exo.cluster.peer_links import PeerLinks
from exo.cluster.proposals import Proposals
from exo.cluster.raft.steps import Follow, Input
from exo.cluster.roll import Roll
from exo.cluster.session import Session
from exo.cluster.situation import Situation
from exo.shared.types.events import VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters

LEVEL_ENTRIES = 256
"""A node whose disk is no further behind than this has the log, for the purpose of voting."""


class Electorate:
    """Idle while this node does not lead.

    Args:
        situation: This node.
        roll: Who is there.
        sessions: Those who follow, as of now.
        links: To those who agree.
        proposals: Where it is seen whether a change is still on its way.
        dispatch: Takes the changes.
        step: Tells the core.
        clock: Monotonic seconds.
        options: How long to wait for whom.
    """

    def __init__(
        self,
        situation: Situation,
        *,
        roll: Roll,
        sessions: Mapping[int, Session],
        links: PeerLinks,
        proposals: Proposals,
        dispatch: Dispatch,
        step: Callable[[*tuple[Input, ...]], None],
        clock: Callable[[], float],
        options: CoordinatorOptions,
    ) -> None:
        self._situation = situation
        self._roll = roll
        self._sessions = sessions
        self._links = links
        self._proposals = proposals
        self._dispatch = dispatch
        self._step = step
        self._clock = clock
        self._options = options
        self._began_s = 0.0
        self._looked_s = 0.0
        self._committed = (0, 0.0)
        """The commit index and since when it has been that."""
        self._ticket: int | None = None

    def begin(self) -> None:
        """This node leads from now on."""
        self._began_s = self._looked_s = self._clock()
        self._committed = (self._situation.core.commit_index, self._began_s)
        self._ticket = None

    def tick(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_s >= self._options.manage_s:
            self._looked_s = now_s
            self.manage()

    def manage(self) -> None:
        """Look who is there, and take the next step towards the voters that should be."""
        situation, core = self._situation, self._situation.core
        if core.leading is None or core.leading.is_dissolving:
            return
        now_s = self._clock()
        if core.commit_index != self._committed[0] or core.commit_index == core.log.last_index:
            self._committed = (core.commit_index, now_s)
        if not situation.is_open:
            self._go_on_alone(now_s)
            return
        self._roll.evict()
        presence = self._presence(now_s)
        choice = choose_voters(situation.node_id, situation.state.nodes, core.voters, presence)
        self._follow(choice.learners)
        if choice.voters is not None:
            self._change_voters(choice.voters, choice.reason)

    def _follow(self, learners: frozenset[NodeId]) -> None:
        leading = self._situation.core.leading
        assert leading is not None
        for node_id in learners - leading.learners:
            self._step(Follow(node_id=node_id, is_wanted=True))
        for node_id in leading.learners - learners:
            self._step(Follow(node_id=node_id, is_wanted=False))
        self._note_agreeing()

    def _note_agreeing(self) -> None:
        """Entries reach a node in one way: as one that agrees, or as one that observes."""
        leading = self._situation.core.leading
        for session in list(self._sessions.values()):
            gets_entries = leading is None or session.node_id not in leading.progress
            if gets_entries and not session.gets_entries:
                session.connection.close("it observes from now on; connect again")
            session.gets_entries = gets_entries

    def _change_voters(self, voters: Voters, reason: str) -> None:
        core = self._situation.core
        if core.voters_fault(voters) is not None or self._proposals.is_pending(self._ticket):
            return
        logger.info("voters: {}{} ({})", ", ".join(voters.voters), _and(voters.replicas), reason)
        self._ticket, _ = self._dispatch.submit(
            [VotersChanged(voters=voters, reason=reason)], f"term-{core.term}", is_first=True
        )

    def _go_on_alone(self, now_s: float) -> None:
        """A designated node whose replica is not there to open the term with goes on without it."""
        voters = self._situation.core.voters
        is_waiting = now_s - self._began_s < self._options.rejoin_grace_s
        if is_waiting or not voters.replicas or voters.voters != (self._situation.node_id,):
            return
        self._change_voters(Voters(voters=voters.voters), f"{voters.replicas[0]} is not there")

    def _presence(self, now_s: float) -> Presence:
        situation, options, roll = self._situation, self._options, self._roll
        core, leading, own = situation.core, situation.core.leading, situation.node_id
        assert leading is not None
        stable = {
            session.node_id
            for session in self._sessions.values()
            if session.node_id in core.voters.members
            or roll.has_stayed(session.node_id, now_s, options.vote_delay_s)
        }
        is_stalled = now_s - self._committed[1] >= options.stall_s
        level = {
            node_id
            for node_id, progress in leading.progress.items()
            if node_id in self._links
            and progress.mode == "stream"
            and core.log.last_index - progress.match_index <= LEVEL_ENTRIES
            and not (is_stalled and progress.match_index <= core.commit_index < core.log.last_index)
        }
        leaving = {session.node_id for session in self._sessions.values() if session.is_leaving}
        if situation.is_leaving:
            leaving.add(own)
        return Presence(
            present=frozenset((*stable, own)),
            missed=frozenset(
                node_id
                for node_id in core.voters.voters
                if roll.is_missed(node_id, now_s, options.voter_patience_s)
            ),
            level=frozenset((*level, own)),
            leaving=frozenset(leaving),
            voteless=frozenset(link.node_id for link in self._links if link.is_voteless),
        )


def _and(replicas: Sequence[NodeId]) -> str:
    return f", in sync: {', '.join(replicas)}" if replicas else ""
