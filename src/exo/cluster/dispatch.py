"""The way of a proposal out of this node: to its own core while it leads, to its master while it follows."""

import asyncio
from collections.abc import Callable, Sequence

from exo.cluster.proposals import Proposals
from exo.cluster.raft.steps import Input, Propose
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.shared.types.events import Decision


class Dispatch:
    """What is proposed in one turn of the event loop is written and sent together.

    Args:
        situation: This node.
        proposals: This node's own, and those who wait for them.
        step: Tells the core.
        uplink_work: Fired when there is something to send to the master.
    """

    def __init__(
        self,
        situation: Situation,
        proposals: Proposals,
        *,
        step: Callable[[*tuple[Input, ...]], None],
        uplink_work: Signal,
    ) -> None:
        self._situation = situation
        self._proposals = proposals
        self._step = step
        self._uplink_work = uplink_work
        self._received: list[Propose] = []
        self._is_soon = False

    def submit(
        self, events: Sequence[Decision], cause_id: str, *, is_first: bool = False
    ) -> tuple[int, asyncio.Future[int]]:
        """Put decisions on their way; see Proposals.add.

        Raises:
            UnsendableError: They cannot be put into a message.
        """
        position = (self._situation.cluster_id, self._situation.term)
        submitted = self._proposals.add(events, cause_id, position=position, is_first=is_first)
        self._send_soon()
        return submitted

    def received(self, proposal: Propose) -> None:
        """As master: a follower proposes."""
        self._received.append(proposal)
        self._send_soon()

    def begin_numbers(self) -> None:
        """As master: this node's own numbers go on from where they end in its log."""
        situation = self._situation
        assert situation.cluster_id is not None
        last_seq = situation.core.admission.last_seq(situation.node_id)
        self._proposals.begin(situation.cluster_id, situation.core.term, last_seq)
        self._send_soon()

    def drop_received(self) -> None:
        """This node leads no longer, and those who proposed connect to whoever does."""
        self._received.clear()

    def _send_soon(self) -> None:
        if not self._is_soon:
            self._is_soon = True
            asyncio.get_running_loop().call_soon(self.send)

    def send(self) -> None:
        """Send everything now."""
        self._is_soon = False
        received, self._received = self._received, []
        if self._situation.core.leading is not None:
            self._step(*self._take_own(), *received)
        elif self._proposals.has_waiting:
            self._uplink_work.fire()

    def _take_own(self) -> list[Propose]:
        core = self._situation.core
        if not core.is_admitting:
            return []
        return [
            Propose(
                session=None,
                origin=self._situation.node_id,
                term=core.term,
                first_seq=numbered.first_seq,
                after_seq=numbered.after_seq,
                cause_id=numbered.proposal.cause_id,
                at=numbered.proposal.at,
                events=numbered.proposal.events,
            )
            for numbered in self._proposals.take()
        ]
