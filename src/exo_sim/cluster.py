"""A simulated cluster: machines, what is between them, and somebody who takes note of everything."""

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from exo.cluster.raft.options import CoreOptions
from exo.shared.apply import apply_entries
from exo.shared.types.events import (
    ClusterFormed,
    Decision,
    LogEntry,
    NodeDisconnected,
    NodeJoined,
    TermOpened,
)
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from exo_sim.errors import BrokenPromiseError
from exo_sim.ledger import Ledger
from exo_sim.machine import Machine
from exo_sim.network import Network
from exo_sim.origin import CLUSTER
from exo_sim.policy import PlainPolicy, Policy, identity
from exo_sim.timeline import US_PER_S, Timeline
from exo_sim.wording import describe

FIRST_TERM = 1

SMALL = CoreOptions(recent_max=24, entries_per_message=6, inflight_max=4, snapshot_patience_ticks=60)
"""Bounds that a short run reaches."""


class StoryLine(msgspec.Struct, frozen=True):
    """Something that happened."""

    at_s: float
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_s:8.3f}  {self.who:<4} {self.what}"


def first_entries(node_ids: Sequence[NodeId], voters: Voters) -> tuple[LogEntry, ...]:
    """What the first voters have agreed on before the story begins."""
    events: list[Decision] = [
        ClusterFormed(cluster_id=CLUSTER, namespace="simulated", voters=voters),
        TermOpened(master_node_id=voters.voters[0]),
        *(NodeJoined(identity=identity(node_id)) for node_id in node_ids),
    ]
    return tuple(
        LogEntry(
            index=index,
            term=FIRST_TERM,
            event_id=EventId(f"first-{index}"),
            cause_id="first",
            origin=voters.voters[0],
            seq=index,
            at="",
            event=event,
        )
        for index, event in enumerate(events, start=1)
    )


class Cluster:
    """Args:
    seed: Everything random comes from it.
    node_ids: All machines there are, members or not.
    voters: Who votes in the beginning.
    members: Whom people want in it; all machines unless said otherwise.
    options: Bounds of the core.
    policy: Who should vote.
    snapshot_entries: A node keeps a snapshot of its own after so many entries.
    is_telling: Whether the story is kept.
    """

    def __init__(
        self,
        seed: int,
        node_ids: Sequence[NodeId],
        voters: Voters,
        *,
        members: frozenset[NodeId] | None = None,
        options: CoreOptions = SMALL,
        policy: Policy | None = None,
        snapshot_entries: int = 40,
        is_telling: bool = False,
    ) -> None:
        self.random = Random(seed)
        self.timeline = Timeline()
        self.network = Network(self.timeline, self.random)
        self.options = options
        self.policy = policy or PlainPolicy()
        self.members = members if members is not None else frozenset(node_ids)
        self.snapshot_entries = snapshot_entries
        self.is_telling = is_telling
        self.is_telling_facts = False
        """What nodes tell is part of the story; else it is only load."""
        self.story: list[StoryLine] = []
        self._id_count = 0
        entries = first_entries(node_ids, voters)
        self.first_index = len(entries)
        """Of the last entry that everybody agreed on before the story begins."""
        self.ledger = Ledger(entries, voters, lambda node_id: self._machines[node_id].disk)
        self.ledger.on_news = self._is_news
        self._machines: dict[NodeId, Machine] = {}
        state = apply_entries(State(), entries)
        self.ledger.newest.states[state.index] = state
        for node_id in node_ids:
            is_first = node_id in voters.members
            machine = Machine(self, node_id, voters if is_first else Voters())
            if is_first:
                machine.disk.synced.append(entries)
                machine.disk.written.append(entries)
            self._machines[node_id] = machine
        self.failover_us: list[int] = []
        """From the end of a leader's process to the next commit, where nothing else was wrong."""
        self._failed_at_us: int | None = None
        self.on_stop: Callable[[Machine, str], None] = lambda _machine, _why: None

    # --- machines -----------------------------------------------------------------------------------------------

    @property
    def machines(self) -> Sequence[Machine]:
        return tuple(self._machines.values())

    def machine(self, node_id: NodeId) -> Machine:
        return self._machines[node_id]

    @property
    def running(self) -> list[Machine]:
        return [machine for machine in self._machines.values() if machine.is_running]

    @property
    def leader(self) -> Machine | None:
        """Of the newest term that anybody leads."""
        leading = [machine for machine in self._machines.values() if machine.leads]
        return max(leading, key=lambda one: (one.incarnation, one.up.term), default=None)

    def start(self) -> None:
        for machine in self._machines.values():
            if machine.node_id in self.members:
                machine.start()

    def run_for(self, duration_s: float) -> None:
        self.timeline.run_for(int(duration_s * US_PER_S))

    # --- what machines report -----------------------------------------------------------------------------------

    def tell(self, who: str, what: str) -> None:
        if self.is_telling:
            self.story.append(StoryLine(self.timeline.now_s, who, what))

    def tell_fact(self, who: str, fact: str, what: str) -> None:
        """Tell of a fact, in the place of {}; those that are mere numbers are load."""
        if self.is_telling_facts and not fact.isdigit():
            self.tell(who, what.format(repr(fact)))

    def new_id(self) -> str:
        self._id_count += 1
        return f"e{self._id_count}"

    def has_stopped(self, machine: Machine, why: str) -> None:
        """Others notice soon that the process is gone: most connections are reset."""
        for other in self._machines.values():
            is_reset = other is not machine and other.is_running and self.random.random() < 0.7
            if is_reset and not self.network.is_cut(machine.node_id, other.node_id):
                delay_us = self.random.randint(500, 20_000)
                self.timeline.after(delay_us, self._lost, other, machine.node_id, True)
        self.on_stop(machine, why)

    def watch_failover(self, is_wanted: bool) -> None:
        """Measure from here to the next commit, or do not: something else is wrong too."""
        self._failed_at_us = self.timeline.now_us if is_wanted else None

    def cut(self, sources: Sequence[NodeId], targets: Sequence[NodeId], *, is_one_way: bool = False) -> None:
        """Cut links; connections over them end some time later, on both sides."""
        self.network.cut(sources, targets, is_one_way=is_one_way)
        for source in sources:
            for target in targets:
                for here, there in ((source, target), (target, source)):
                    if here != there and self.random.random() < 0.5:
                        delay_us = self.random.randint(500_000, 3_000_000)
                        self.timeline.after(delay_us, self._lost, self._machines[here], there, False)

    def _lost(self, machine: Machine, node_id: NodeId, is_ended: bool) -> None:
        if machine.is_running:
            machine.peer_lost(node_id, is_ended=is_ended)

    def _is_news(self, entry: LogEntry) -> None:
        if self._failed_at_us is not None:
            self.failover_us.append(self.timeline.now_us - self._failed_at_us)
            self._failed_at_us = None
        if not self.is_telling:
            return
        event = entry.event
        if not isinstance(event, NodeDisconnected):
            self.tell("", f"entry {entry.index} is committed: {type(event).__name__}, term {entry.term}")
        else:
            what = f"entry {entry.index} is committed: {{}} of {entry.origin}, term {entry.term}"
            self.tell_fact("", event.reason, what)

    # --- how it is ----------------------------------------------------------------------------------------------

    def fact(self, node_id: NodeId, text: str | None = None) -> Decision:
        """Something that a node says of itself; it changes the state in a way that depends on the order."""
        self._id_count += 1
        return NodeDisconnected(node_id=node_id, reason=text or str(self._id_count))

    def is_one(self) -> bool:
        """One leads, every member has everything that is committed, and nobody waits for anything."""
        leader = self.leader
        if leader is None or not leader.up.is_term_committed:
            return False
        last_index = self.ledger.newest.last_index
        return (
            leader.up.log.last_index == last_index
            and all(
                machine.is_running
                and machine.state.index == last_index
                and machine.incarnation == leader.incarnation
                and machine.origin.pending == 0
                and not (machine.disk.is_impaired and machine.node_id in leader.up.voters.members)
                for machine in self._machines.values()
                if machine.node_id in self.members
            )
            and leader.up.voters.members <= self.members
        )

    def why_not_one(self) -> str:
        """Return what `is_one` waits for."""
        leader = self.leader
        last_index = self.ledger.newest.last_index
        led = "nobody leads"
        if leader is not None:
            led = f"{leader.node_id} leads term {leader.up.term}, {describe(leader.up.voters)} vote"
        return f"{led}, {last_index} committed; " + "; ".join(
            f"{one.node_id} at {one.state.index}, {one.origin.pending} waiting"
            + (", may not vote" if one.disk.is_impaired else "")
            if one.is_running
            else f"{one.node_id} stopped"
            for one in self._machines.values()
            if one.node_id in self.members
        )

    def require_one(self, within_s: float) -> float:
        """Let time pass until the cluster is one; returns how long that took.

        Raises:
            BrokenPromiseError: It took too long.
        """
        began_s = self.timeline.now_s
        while not self.is_one():
            if self.timeline.now_s - began_s > within_s:
                raise BrokenPromiseError(
                    f"not one cluster {within_s:g} s after it was healed: {self.why_not_one()}"
                )
            self.run_for(0.1)
        return self.timeline.now_s - began_s
