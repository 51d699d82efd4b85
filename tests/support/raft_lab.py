"""A few agreement cores on a table: every message, write and tick is moved by hand, and nothing happens by itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

import msgspec

from exo.cluster.raft.core import Core
from exo.cluster.raft.messages import InstallSnapshot, PeerMessage, Snapshot
from exo.cluster.raft.options import CoreOptions, SnapshotPoint
from exo.cluster.raft.steps import (
    Campaign,
    Commit,
    Effect,
    HardState,
    Input,
    Propose,
    Received,
    Restore,
    RoleChanged,
    Send,
    SendSnapshot,
    Tick,
    Write,
    Written,
)
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import Decision, LogEntry, NodeDisconnected, TermOpened, VotersChanged
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.voters import Voters

OPTIONS = CoreOptions(election_ticks=(10, 20), heartbeat_ticks=2)


def voters(names: str, replicas: str = "") -> Voters:
    """`voters("abc")`: three voters; `voters("a", "b")`: one, with a replica."""
    return Voters(voters=tuple(NodeId(n) for n in names), replicas=tuple(NodeId(n) for n in replicas))


def entry(index: int, term: int, event: Decision | None = None) -> LogEntry:
    """An entry that is told from others by its place: leaders of a term put one entry at an index."""
    return LogEntry(
        index=index,
        term=term,
        event_id=EventId(f"{index}/{term}"),
        cause_id="",
        origin=NodeId(f"origin of {term}"),
        seq=index,
        at="",
        event=event or NodeDisconnected(node_id=NodeId("x"), reason=f"{index}/{term}"),
    )


def log_of(terms: Iterable[int]) -> list[LogEntry]:
    """Entries from 1 on, of these terms."""
    return [entry(index, term) for index, term in enumerate(terms, start=1)]


class Mail(msgspec.Struct, frozen=True):
    """A message on the table."""

    source: NodeId
    to: NodeId
    message: PeerMessage


class Desk:
    """One core, its disk, and what it said."""

    def __init__(self, lab: "Lab", name: str, entries: Sequence[LogEntry], term: int) -> None:
        self.lab = lab
        self.node_id = NodeId(name)
        self._random = Random(name)
        self.hard_state = HardState(term=term)
        self.log = list(entries)
        self.is_syncing = True
        """Writes are synced at once; else they wait for `sync`."""
        self.unsynced: list[Write] = []
        self.committed: list[LogEntry] = []
        self.effects: list[Effect] = []
        """Everything that it wanted since it was started."""
        self.may_vote = True
        self.core = self._new_core()

    def _new_core(self) -> Core:
        return Core(
            self.node_id,
            hard_state=self.hard_state,
            incarnation=1,
            snapshot=SnapshotPoint(voters=self.lab.first_voters),
            entries=self.log,
            options=self.lab.options,
            random=self._random.random,
            may_vote=self.may_vote,
        )

    def restart(self) -> None:
        """Lose what was not synced, and begin again."""
        self.unsynced.clear()
        self.committed.clear()
        self.effects.clear()
        self.core = self._new_core()

    def sync(self, count: int | None = None) -> None:
        """Make what was written durable, or the first few writes of it."""
        writes = self.unsynced[:count]
        del self.unsynced[:count]
        for write in writes:
            self.hard_state = write.hard_state or self.hard_state
            if write.truncate_after is not None:
                del self.log[write.truncate_after :]
            self.log += write.entries
        if writes:
            self.step(Written(number=writes[-1].number))

    def step(self, *inputs: Input) -> list[Effect]:
        """Give it inputs; what it says is put on the table."""
        effects = self.core.step(*inputs)
        self.effects += effects
        for effect in effects:
            match effect:
                case Write():
                    self.unsynced.append(effect)
                case Send(to=to, message=message):
                    self.lab.mail.append(Mail(self.node_id, to, message))
                case SendSnapshot(to=to):
                    self.lab.mail.append(Mail(self.node_id, to, self._snapshot()))
                case Commit(entries=entries):
                    self.committed += entries
                case Restore(snapshot=snapshot):
                    self.committed = log_of([0] * snapshot.index)
                case RoleChanged(role="leader") if self.lab.is_opening:
                    self.decide(TermOpened(master_node_id=self.node_id))
                case _:
                    pass
        if self.is_syncing and self.unsynced:
            self.sync()
        return effects

    def _snapshot(self) -> InstallSnapshot:
        index = self.core.commit_index
        snapshot = Snapshot(
            index=index,
            term=self.core.log.term_at(index) or 0,
            incarnation=self.core.incarnation,
            voters=self.core.voters,
            last_seq={},
            data=b"",
        )
        return InstallSnapshot(incarnation=self.core.incarnation, term=self.core.term, snapshot=snapshot)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.step(Tick())

    def decide(self, *events: Decision) -> list[Effect]:
        """Propose as the leader itself."""
        return self.step(self.proposal(*events))

    def proposal(
        self,
        *events: Decision,
        origin: str | None = None,
        first_seq: int = 0,
        after_seq: int | None = None,
        session: int | None = None,
    ) -> Propose:
        self.lab.count += 1
        return Propose(
            session=session,
            origin=NodeId(origin) if origin is not None else self.node_id,
            term=self.core.term,
            first_seq=first_seq,
            after_seq=max(0, first_seq - 1) if after_seq is None else after_seq,
            cause_id="test",
            at="",
            events=tuple(
                ProposedEvent(event_id=EventId(f"event {self.lab.count}.{number}"), event=event)
                for number, event in enumerate(events)
            ),
        )

    def fact(self) -> None:
        """Propose something about which nothing matters."""
        self.decide(NodeDisconnected(node_id=self.node_id, reason="fact"))

    def change(self, after: Voters) -> list[Effect]:
        return self.decide(VotersChanged(voters=after, reason="test"))

    @property
    def leads(self) -> bool:
        return self.core.role == "leader"

    @property
    def terms(self) -> list[int]:
        """Of the entries in its log."""
        last_index = self.core.log.last_index
        return [one.term for one in self.core.log.between(self.core.log.base_index, last_index)]


class Lab:
    """Args:
    first_voters: Who votes as of the beginning of every log.
    logs: What they have in their logs, as terms; nothing where a name is missing.
    names: Who there is; the members of `first_voters` and those with logs unless given.
    terms: Terms that they are in, where it is a later one than that of their last entry.
    options: Bounds and times.
    is_opening: A new leader opens its term.
    """

    def __init__(
        self,
        first_voters: Voters,
        logs: Mapping[str, Sequence[int]] | None = None,
        *,
        names: str = "",
        terms: Mapping[str, int] | None = None,
        options: CoreOptions = OPTIONS,
        is_opening: bool = True,
    ) -> None:
        self.first_voters = first_voters
        self.options = options
        self.is_opening = is_opening
        self.mail: list[Mail] = []
        self.count = 0
        self.cuts: set[tuple[str, str]] = set()
        """(source, target): what is not let through."""
        logs = logs or {}
        everybody = sorted({*first_voters.members, *logs, *names})
        self.desks = {
            name: Desk(self, name, log_of(logs.get(name, ())), (terms or {}).get(name, 0))
            for name in everybody
        }

    def __getitem__(self, name: str) -> Desk:
        return self.desks[name]

    def cut(self, here: str, there: str, *, is_one_way: bool = False) -> None:
        """Let nothing through from any of `here` to any of `there`, nor back."""
        for source in here:
            for target in there:
                self.cuts.add((source, target))
                if not is_one_way:
                    self.cuts.add((target, source))

    def heal(self) -> None:
        self.cuts.clear()

    def deliver(self, where: Callable[[Mail], bool] = lambda _: True, *, rounds: int = 100) -> None:
        """Deliver what is on the table and what that leads to. What does not fit stays, what is cut is lost."""
        for _ in range(rounds):
            ready = [one for one in self.mail if where(one)]
            if not ready:
                return
            self.mail = [one for one in self.mail if not where(one)]
            for one in ready:
                if (one.source, one.to) not in self.cuts:
                    self.desks[one.to].step(Received(source=one.source, message=one.message))
        raise AssertionError("they never stop talking")

    def drop(self) -> None:
        """Lose everything that is on the table."""
        self.mail.clear()

    def run(self, ticks: int) -> None:
        """Let time pass for all, with all mail delivered between the ticks."""
        for _ in range(ticks):
            for desk in self.desks.values():
                desk.tick()
            self.deliver()

    def elect(self, name: str) -> Desk:
        """Have a node stand for election, and everybody hear of it. It may have to hear first which term it is."""
        desk = self.desks[name]
        for _ in range(3):
            if not desk.leads:
                desk.step(Campaign())
                self.deliver()
        assert desk.leads, f"{name} did not win"
        return desk

    def elect_among(self, names: str) -> Desk:
        """Let time pass for some nodes only, until one of them leads."""
        for _ in range(200):
            for name in names:
                self.desks[name].tick()
                self.deliver()
                if self.desks[name].leads:
                    return self.desks[name]
        raise AssertionError(f"none of {names} was elected")

    def leaders(self) -> list[str]:
        return [name for name, desk in self.desks.items() if desk.leads]
