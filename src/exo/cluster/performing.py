"""Tells the core what happened, and carries out what it wants, in its order."""

from collections import Counter, deque

from loguru import logger

from exo.cluster.board import Board
from exo.cluster.disk_work import DiskWork
from exo.cluster.dispatch import Dispatch
from exo.cluster.folding import Folding
from exo.cluster.hosting import Hosting
from exo.cluster.peer_links import PeerLinks
from exo.cluster.raft.messages import InstallSnapshot
from exo.cluster.raft.steps import (
    Commit,
    Distrust,
    Effect,
    Input,
    Outlived,
    ReadConfirmed,
    ReadRefused,
    Refuse,
    Restore,
    RoleChanged,
    Send,
    SendSnapshot,
    Write,
)
from exo.cluster.reads import Reads
from exo.cluster.situation import Situation
from exo.cluster.snapshotting import snapshot_of
from exo.cluster.terms import Terms


class Performer:
    """Each effect goes to the part of the node that it concerns."""

    def __init__(
        self,
        situation: Situation,
        board: Board,
        *,
        disk_work: DiskWork,
        links: PeerLinks,
        reads: Reads,
        dispatch: Dispatch,
        folding: Folding,
        terms: Terms,
        hosting: Hosting,
        counts: Counter[str],
    ) -> None:
        self._situation = situation
        self._board = board
        self._disk_work = disk_work
        self._links = links
        self._reads = reads
        self._dispatch = dispatch
        self._folding = folding
        self._terms = terms
        self._hosting = hosting
        self._counts = counts
        self._effects: deque[Effect] = deque()
        self._is_performing = False

    def step(self, *inputs: Input) -> None:
        """Tell the core, and carry out what follows. To be called by what an effect leads to, as well."""
        if not inputs:
            return
        self._effects.extend(self._situation.core.step(*inputs))
        if self._is_performing:
            return  # What follows from an effect waits until the effects before it are carried out.
        self._is_performing = True
        try:
            while self._effects:
                self._perform(self._effects.popleft())
        finally:
            self._is_performing = False

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Write():
                self._disk_work.add(effect)
            case Send(to=to, message=message):
                self._links.send(to, message)
            case SendSnapshot(to=to):
                self._counts["snapshot_sent"] += 1
                self._links.send(to, self._install_snapshot())
            case Commit(entries=entries):
                self._folding.fold(entries)
            case Restore(snapshot=snapshot):
                self._disk_work.snapshot_at(snapshot.index)
                self._folding.restore(snapshot)
            case RoleChanged():
                self._terms.role_changed(effect)
            case ReadConfirmed(read_id=read_id, index=index):
                self._reads.confirmed(read_id, index)
            case ReadRefused(read_id=read_id):
                self._reads.refused(read_id, "this node leads no longer; try again")
            case Refuse(session=session, reason=reason):
                self._refuse(session, reason)
            case Distrust(node_id=node_id, reason=reason):
                self._counts["peer_distrusted"] += 1
                logger.warning("ending the connection to {}: {}", node_id, reason)
                self._links.close(node_id, reason)
            case Outlived():
                if self._situation.end("outlived"):
                    logger.warning("an operator has begun this cluster's history anew without this node")
                    self._board.announce()

    def _install_snapshot(self) -> InstallSnapshot:
        core = self._situation.core
        snapshot = snapshot_of(self._situation.state, core.voters)
        return InstallSnapshot(incarnation=core.incarnation, term=core.term, snapshot=snapshot)

    def _refuse(self, session: int | None, reason: str) -> None:
        self._counts["proposal_refused"] += 1
        if session is not None:
            self._hosting.close(session, reason)
        else:
            # Its number is void; the numbers begin anew where the log ends.
            logger.debug("an own proposal was refused: {}", reason)
            self._dispatch.begin_numbers()
