"""One term in which this node leads: what it admits, who follows it, what they are sent."""

from collections.abc import Iterable, Sequence

from exo.cluster.board import Board
from exo.cluster.etcd.admission import Intake
from exo.cluster.etcd.store import Hold
from exo.cluster.etcd.wire import encode_live
from exo.cluster.lane import Lane
from exo.cluster.outbox import Numbered
from exo.cluster.raft.steps import Propose
from exo.cluster.session import Session
from exo.cluster.signal import Signal
from exo.cluster.wire import Propose as ProposeMessage
from exo.shared.types.events import LogEntry, NodeDisconnected
from exo.shared.types.ids import NodeId


class Seat:
    """Synchronous, like Member, whose `seat` it is.

    Args:
        node_id: This node.
        board: The node's, with everything folded that was committed before the term.
        lane: The node's.
        hold: What proves to etcd that this node leads.
        held_until_s: By this node's clock; from then on the lease at etcd may have ended.
        is_sure: Even when most members are lost at once it is not this node that is cut off.
    """

    def __init__(
        self, node_id: NodeId, board: Board, lane: Lane, hold: Hold, held_until_s: float, *, is_sure: bool
    ) -> None:
        state = board.state
        self.term = hold.term
        self.hold = hold
        self.held_until_s = held_until_s
        self.work = Signal()
        """Something waits to be committed."""
        self._node_id = node_id
        self._board = board
        self._lane = lane
        self.is_sure = is_sure
        self._intake = Intake(
            term=hold.term,
            index=state.index,
            last_seq=state.last_seq,
            connected=[node_id for node_id, node in state.nodes.items() if node.is_connected],
        )
        self._sessions: dict[int, Session] = {}
        self._losses: list[tuple[float, NodeId]] = []

    # --- decisions ----------------------------------------------------------------------------------------------

    def last_seq(self, origin: NodeId) -> int:
        """Return the number of the origin's last admitted event."""
        return self._intake.last_seq(origin)

    def admit(self, numbered: Numbered) -> str | None:
        """Take a proposal of this node in; return why not, or None."""
        proposal = numbered.proposal
        return self._admit(
            Propose(
                session=None,
                origin=self._node_id,
                term=self.term,
                first_seq=numbered.first_seq,
                after_seq=numbered.after_seq,
                cause_id=proposal.cause_id,
                at=proposal.at,
                events=proposal.events,
            )
        )

    def proposal_received(self, session: Session, message: ProposeMessage) -> str | None:
        """A follower proposes; return why its connection has to end, or None."""
        return self._admit(
            Propose(
                session=session.number,
                origin=session.node_id,
                term=message.term,
                first_seq=message.first_seq,
                after_seq=message.after_seq,
                cause_id=message.cause_id,
                at=message.at,
                events=message.events,
            )
        )

    def _admit(self, proposal: Propose) -> str | None:
        refusal = self._intake.admit(proposal)
        self.work.fire()
        return refusal

    def take_batch(self) -> tuple[LogEntry, ...]:
        """Return what is to be committed next, together."""
        return self._intake.take()

    # --- followers ----------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> Sequence[Session]:
        return list(self._sessions.values())

    def follower_arrived(self, session: Session) -> None:
        for other in self.sessions:
            if other.node_id == session.node_id:
                del self._sessions[other.number]
                other.connection.close("the same node has connected again")
        self._sessions[session.number] = session

    def follower_left(self, session: Session) -> bool:
        """Say whether its node is without a session now."""
        return self._sessions.pop(session.number, None) is session

    def missing(self) -> Sequence[NodeId]:
        """Return the members that are connected as far as is decided, and are not here."""
        present = {session.node_id for session in self._sessions.values()} | {self._node_id}
        return sorted(self._intake.connected - present)

    def judge_lost(
        self, node_ids: Iterable[NodeId], reason: str, *, now_s: float, window_s: float, is_silent: bool
    ) -> Sequence[NodeDisconnected] | None:
        """Return what to decide about members that are gone.

        None: nothing. More than half of all fell silent within `window_s`, so this node's own link may be the one
        that is broken, and whoever leads next may see them.
        """
        connected = self._intake.connected
        lost = [node_id for node_id in node_ids if node_id in connected]
        self._losses = [(at_s, node_id) for at_s, node_id in self._losses if now_s - at_s < window_s]
        if is_silent:
            self._losses += [(now_s, node_id) for node_id in lost]
        lately = {node_id for _, node_id in self._losses}
        if is_silent and not self.is_sure and 2 * len(lately) > len(connected | lately):
            return None
        return [NodeDisconnected(node_id=node_id, reason=reason) for node_id in lost]

    def outgoing(self, session: Session) -> Sequence[bytes]:
        """Return what to send to a follower next; empty when it has everything."""
        if self._sessions.get(session.number) is not session:
            return ()
        ticks = None if session.needs_live else self._lane.ring.since(session.tick)
        session.tick = self._lane.ring.tick
        session.needs_live = False
        if ticks is None:
            ticks = encode_live(self._board.state.live, self._board.state.index)
        return [*session.take_answers(), *ticks]

    def close_tick(self) -> None:
        """Send on what was published."""
        if not self._lane.ring.has_gathered:
            return
        self._lane.ring.close_tick(self.term, self._board.state.index)
        for session in self._sessions.values():
            session.wake.fire()

    def end(self, reason: str) -> None:
        sessions, self._sessions = self.sessions, {}
        for session in sessions:
            session.connection.close(reason)
