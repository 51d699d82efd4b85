"""What a simulated leader does about the voters: it keeps in mind who is there, and asks the policy what to change."""

from typing import Protocol

from exo.cluster.raft.core import Core
from exo.cluster.raft.steps import Follow, HandOver, Input
from exo.shared.types.events import VotersChanged
from exo.shared.types.ids import NodeId
from exo_sim.origin import Ask, Origin
from exo_sim.policy import Policy, View

HEARD_TICKS = 20
"""Who was silent for longer is taken for gone."""
MISSED_TICKS = 60
"""Whose place may be given to somebody else."""
IN_STEP_ENTRIES = 16
_LONG_AGO = -1_000_000


class _Cluster(Protocol):
    policy: Policy
    members: frozenset[NodeId]


class Steered(Protocol):
    """What is needed of a machine."""

    node_id: NodeId
    origin: Origin
    ticks: int

    @property
    def cluster(self) -> _Cluster: ...

    @property
    def leads(self) -> bool: ...

    @property
    def up(self) -> Core: ...

    def take(self, message: Input) -> None: ...


class Steering:
    """One boot of one machine."""

    def __init__(self, machine: Steered) -> None:
        self._machine = machine
        self._heard_ticks: dict[NodeId, int] = {}
        self._began_ticks = 0
        self._forgetful: dict[NodeId, int] = {}
        self._followed: set[NodeId] = set()

    def begin(self) -> None:
        """Another term, or role: a new leader follows nobody but the voters."""
        self._followed.clear()
        self._began_ticks = self._machine.ticks

    def heard(self, source: NodeId) -> None:
        """Something came from another machine."""
        self._heard_ticks[source] = self._machine.ticks

    def told(self, source: NodeId, message: Ask) -> None:
        """A node says whether it has lost its log; what a leader knows of it as a learner is wrong then."""
        if not message.is_forgetful:
            self._forgetful.pop(source, None)
            return
        if self._forgetful.get(source) == message.boot:
            return
        self._forgetful[source] = message.boot
        machine = self._machine
        if source in self._followed and machine.leads and source not in machine.up.voters.members:
            machine.take(Follow(node_id=source, is_wanted=False))
            machine.take(Follow(node_id=source, is_wanted=True))

    def think(self) -> None:
        """As the leader: follow who should be followed, and take the next step that the policy wishes."""
        machine = self._machine
        core, cluster = machine.up, machine.cluster
        # Every member is to have everything. A voter that lost its log is followed as a newcomer once it has no vote.
        wanted = cluster.members - core.voters.members - {machine.node_id}
        for node_id in sorted(wanted ^ self._followed):
            machine.take(Follow(node_id=node_id, is_wanted=node_id in wanted))
        self._followed = set(wanted)
        is_settled = core.is_term_committed and core.log.voters.index <= core.commit_index
        is_alone = core.voters.voters == (machine.node_id,)
        if not (is_settled or is_alone) or not core.is_admitting:
            return
        wishes = cluster.policy.wishes(self._view())
        if wishes.voters is not None and core.voters_fault(wishes.voters) is None:
            machine.origin.decide([VotersChanged(voters=wishes.voters, reason=wishes.reason)])
        elif wishes.hand_over_to is not None:
            machine.take(HandOver(to=wishes.hand_over_to))

    def _view(self) -> View:
        machine, core = self._machine, self._machine.up
        leading, here = core.leading, {machine.node_id}
        assert leading is not None
        silence = {one: machine.ticks - self._heard_ticks.get(one, _LONG_AGO) for one in leading.progress}
        missed = {one for one, ticks in silence.items() if ticks > MISSED_TICKS}
        is_new = machine.ticks - self._began_ticks <= MISSED_TICKS  # It cannot know yet who is missed.
        # A newcomer has to know at least that this term began: what it reads before may be of a history in which it
        # was a voter.
        near = max(core.commit_index - IN_STEP_ENTRIES, leading.first_index)
        return View(
            node_id=machine.node_id,
            voters=core.voters,
            members=machine.cluster.members,
            heard=frozenset({one for one, ticks in silence.items() if ticks <= HEARD_TICKS} | here),
            missed=frozenset() if is_new else frozenset(missed),
            in_step=frozenset(
                {one for one, progress in leading.progress.items() if progress.match_index >= near} | here
            ),
            forgetful=frozenset(self._forgetful),
        )
