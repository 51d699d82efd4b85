"""One run from a seed: a cluster under load, faults for half a minute, repair, and then everything has to be well."""

import traceback
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec

from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from exo_sim.cluster import Cluster, StoryLine
from exo_sim.errors import BrokenPromiseError
from exo_sim.faults import Faults
from exo_sim.policy import PlainPolicy, Policy, RealPolicy
from exo_sim.timeline import US_PER_S

FAULTY_S = 30.0
FAULTS_MIN = 5
LEADER_WITHIN_S = 6.0
"""After everything is repaired; an election takes up to a second, and a few may be split."""
ONE_WITHIN_S = 25.0
"""Time for snapshots that were lost, for members that come and go, and for those who lost their log."""

MODES = ("3", "5", "2", "grow", "3", "5", "2", "grow", "3", "1")
"""Which kind of cluster a seed means, by its last digit."""

_NETWORK = {"loss": 3, "duplication": 3, "reordering": 3, "delay": 3, "partition": 6, "one-way partition": 4}
_MACHINE = {
    "crash": 6,
    "crash of the leader": 5,
    "crash after a vote": 4,
    "disk full": 2,
    "slow disk": 3,
    "clock stall": 3,
    "frozen process": 3,
    "wrong clock": 2,
}
_PEOPLE = {"bit rot": 3, "membership change": 3, "hand-over": 3, "forced history": 1}


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a run."""

    seed: int
    mode: str
    virtual_s: float
    healed_s: float = 0.0
    faults: dict[str, int]
    counts: dict[str, int]
    messages: dict[str, int]
    failovers_s: list[float]
    broken: str | None = None
    """The first promise that was broken."""
    is_defect: bool = False
    """Code failed in a way that is no broken promise."""
    story: list[StoryLine] = []

    @property
    def counts_as_schedule(self) -> bool:
        """A run in which little went wrong proves little."""
        return self.virtual_s >= FAULTY_S and sum(self.faults.values()) >= FAULTS_MIN


def nodes(names: str) -> tuple[NodeId, ...]:
    return tuple(NodeId(name) for name in names)


class Schedule:
    """Args:
    seed: Where everything random comes from.
    mode: Kind of cluster: a number of nodes, or "grow"; by the seed when not given.
    is_telling: Keep the story.
    policy: Who should vote, instead of the rule that the mode has.
    """

    def __init__(
        self, seed: int, mode: str | None = None, *, is_telling: bool = False, policy: Policy | None = None
    ) -> None:
        self.seed = seed
        self.mode = mode or MODES[seed % len(MODES)]
        self._random = Random(f"schedule {seed}")
        self.cluster, self.faults = self._build(is_telling, policy)
        self._is_over = False

    def _build(self, is_telling: bool, policy: Policy | None) -> tuple[Cluster, Faults]:
        weights = {**_NETWORK, **_MACHINE, **_PEOPLE}
        is_real = self.seed // len(MODES) % 2 == 1
        usual = RealPolicy() if is_real else PlainPolicy(3)
        memberships: Sequence[frozenset[NodeId]] = ()
        members: frozenset[NodeId] | None = None
        match self.mode:
            case "1":
                names, voters, weights = nodes("a"), Voters(voters=nodes("a")), dict(_MACHINE)
            case "2":
                names, voters = nodes("ab"), Voters(voters=nodes("a"), replicas=nodes("b"))
                weights |= {"forced history": 3}
            case "3":
                names, voters = nodes("abcd"), Voters(voters=nodes("abc"))
                members = frozenset(nodes("abc"))
                memberships = [frozenset(nodes(text)) for text in ("abc", "abcd", "abd", "bcd", "acd")]
            case "5":
                names, voters = nodes("abcde"), Voters(voters=nodes("abcde"))
                usual = PlainPolicy(5)  # The real one has five voters of seven members or more.
                memberships = [frozenset(nodes(text)) for text in ("abcde", "abcd", "bcde", "abce")]
            case "grow":
                names, voters = nodes("abcde"), Voters(voters=nodes("a"))
                members = frozenset(nodes("a"))
                usual = RealPolicy() if is_real else PlainPolicy(self._random.choice((3, 5)))
                texts = ("a", "ab", "abc", "abcd", "abcde", "bcde", "cde", "bd", "e", "de", "ace")
                memberships = [frozenset(nodes(text)) for text in texts]
                weights |= {"membership change": 12}
            case _:
                raise ValueError(f"{self.mode!r} is no kind of cluster; there are 1, 2, 3, 5 and grow")
        cluster = Cluster(
            self.seed, names, voters, members=members, policy=policy or usual, is_telling=is_telling
        )
        return cluster, Faults(cluster, self._random, weights, memberships)

    def run(self) -> Outcome:
        """Let it happen. Never raises: what was broken is part of the outcome."""
        cluster = self.cluster
        broken, is_defect, healed_s = None, False, 0.0
        try:
            healed_s = self._tell()
        except BrokenPromiseError as error:
            broken = str(error)
        except Exception:
            broken, is_defect = traceback.format_exc(), True
        if broken is not None:
            cluster.tell("", f"BROKEN: {broken}")
        return Outcome(
            seed=self.seed,
            mode=self.mode,
            virtual_s=cluster.timeline.now_s,
            healed_s=healed_s,
            faults=dict(self.faults.counts),
            counts=dict(cluster.ledger.counts),
            messages=dict(cluster.network.counts),
            failovers_s=[took_us / US_PER_S for took_us in cluster.failover_us],
            broken=broken,
            is_defect=is_defect,
            story=cluster.story,
        )

    def _tell(self) -> float:
        cluster, faults = self.cluster, self.faults
        for machine in cluster.machines:
            machine.clock_rate = self._random.uniform(0.98, 1.02)
            self._fact_later(machine.node_id)
        cluster.start()
        self._decide()
        self._read()
        cluster.run_for(1.5)
        faults.begin()
        cluster.run_for(FAULTY_S - 1.5)
        while sum(faults.counts.values()) < FAULTS_MIN:
            cluster.run_for(1.0)
        faults.end()
        cluster.tell("", "everything is repaired")
        self._require_leader()
        self._is_over = True
        return cluster.require_one(ONE_WITHIN_S)

    def _require_leader(self) -> None:
        """While the load goes on, somebody leads soon, and something new is committed."""
        cluster = self.cluster
        before = cluster.ledger.counts["commits"]
        began_s = cluster.timeline.now_s
        while cluster.leader is None or cluster.ledger.counts["commits"] == before:
            if cluster.timeline.now_s - began_s > LEADER_WITHIN_S:
                raise BrokenPromiseError(
                    f"nothing is committed {LEADER_WITHIN_S:g} s after everything was repaired: "
                    f"{cluster.why_not_one()}"
                )
            cluster.run_for(0.1)
        cluster.run_for(1.0)

    # --- load ---------------------------------------------------------------------------------------------------

    def _fact_later(self, node_id: NodeId) -> None:
        delay_us = int(self._random.expovariate(1.2) * US_PER_S)
        self.cluster.timeline.after(delay_us, self._fact, node_id)

    def _fact(self, node_id: NodeId) -> None:
        if self._is_over:
            return
        count = self._random.choice((1, 1, 1, 2, 3))
        if node_id in self.cluster.members:
            self.cluster.machine(node_id).propose([self.cluster.fact(node_id) for _ in range(count)])
        self._fact_later(node_id)

    def _decide(self) -> None:
        """Whoever leads decides something, which is void in any other term."""
        if self._is_over:
            return
        for machine in self.cluster.running:
            if machine.leads:
                machine.decide(
                    [self.cluster.fact(machine.node_id) for _ in range(self._random.choice((1, 3)))]
                )
        self.cluster.timeline.after(int(self._random.expovariate(1.5) * US_PER_S), self._decide)

    def _read(self) -> None:
        if self._is_over:
            return
        for machine in self.cluster.running:
            if not machine.is_frozen and (machine.leads or self._random.random() < 0.05):
                machine.read()
        self.cluster.timeline.after(int(self._random.expovariate(2.0) * US_PER_S), self._read)


def run_schedule(
    seed: int, mode: str | None = None, *, is_telling: bool = False, policy: Policy | None = None
) -> Outcome:
    """Build a run from its seed and let it happen."""
    return Schedule(seed, mode, is_telling=is_telling, policy=policy).run()


def total(outcomes: Sequence[Outcome], of: str) -> Counter[str]:
    """Add up one of the counters of many runs."""
    added: Counter[str] = Counter()
    for outcome in outcomes:
        added.update(getattr(outcome, of))
    return added
