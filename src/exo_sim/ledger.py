"""What the cluster has promised so far, kept by somebody who sees every disk: each step is held against it.

It knows nothing of how the core decides. It looks at what nodes say, at what they fold, and at what is on the disks.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from exo.cluster.raft.messages import AppendAnswer, PeerMessage, VoteAnswer
from exo.shared.types.events import HistoryForced, LogEntry, TermOpened, VotersChanged
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from exo_sim.disk import Disk
from exo_sim.errors import BrokenPromiseError
from exo_sim.history import History

Place = tuple[int, int]
"""(incarnation, term) or (incarnation, index)."""


class Witnessed(Protocol):
    """What is looked at of a node."""

    node_id: NodeId
    disk: Disk
    state: State

    @property
    def incarnation(self) -> int: ...


class Ledger:
    """Args:
    first_entries: What every node began with.
    voters: Who agreed on it.
    disks: All disks, by node.
    """

    def __init__(
        self, first_entries: Sequence[LogEntry], voters: Voters, disks: Callable[[NodeId], Disk | None]
    ) -> None:
        self.histories: dict[int, History] = {1: History(first_entries, voters)}
        self._disk = disks
        self._leaders: dict[Place, NodeId] = {}
        self._openings: dict[Place, EventId] = {}
        self._reads: dict[tuple[NodeId, int, int], Place] = {}
        self._highest: dict[NodeId, tuple[int, int, int]] = {}
        self.counts: Counter[str] = Counter()
        self.on_news: Callable[[LogEntry], None] = lambda _: None
        """Called with what is committed for the first time."""

    @property
    def newest(self) -> History:
        return self.histories[max(self.histories)]

    def history(self, incarnation: int) -> History:
        found = self.histories.get(incarnation)
        if found is None:
            raise BrokenPromiseError(f"nobody has begun incarnation {incarnation}")
        return found

    # --- what nodes say -----------------------------------------------------------------------------------------

    def said(self, node: Witnessed, to: NodeId, message: PeerMessage) -> None:
        """A vote and an acknowledgement are promises: what they speak of has to be on the disk already."""
        if isinstance(message, VoteAnswer):
            if message.is_granted and not message.is_trial:
                self._has_voted(node, to, message.term)
        elif isinstance(message, AppendAnswer) and message.is_accepted:
            if node.disk.hard_state.term < message.term:
                raise BrokenPromiseError(
                    f"{node.node_id} takes part in term {message.term}, and its disk says {node.disk.hard_state.term}"
                )
            if node.disk.synced.last_index < message.index:
                raise BrokenPromiseError(
                    f"{node.node_id} acknowledges entry {message.index} to {to}, and its disk ends at "
                    f"{node.disk.synced.last_index}"
                )

    def _has_voted(self, node: Witnessed, candidate: NodeId, term: int) -> None:
        kept = node.disk.hard_state
        if (kept.term, kept.voted_for) != (term, candidate) and kept.term <= term:
            raise BrokenPromiseError(
                f"{node.node_id} votes for {candidate} in term {term}, and its disk says "
                f"{kept.voted_for} in term {kept.term}"
            )
        if node.disk.is_forgetful:
            raise BrokenPromiseError(f"{node.node_id} has lost its log and votes for {candidate}")

    # --- who leads ----------------------------------------------------------------------------------------------

    def leads(self, node: Witnessed, term: int, *, is_forced: bool) -> None:
        """One leader per term, whose own vote is on its disk, and whose log has everything that is committed."""
        place = (node.incarnation, term)
        before = self._leaders.get(place)
        if before is not None:
            raise BrokenPromiseError(f"{before} and {node.node_id} both lead term {term}")
        self._leaders[place] = node.node_id
        self.counts["elections"] += 1
        self._has_voted(node, node.node_id, term)
        if is_forced:
            return
        # Raft's leader completeness speaks of what was committed in earlier terms: a candidate that was asleep may
        # learn late that it won an election, after later terms. It will commit nothing.
        history = self.history(node.incarnation)
        position = history.last_index
        while position and history.terms_at[position - 1] >= term:
            position -= 1
        if node.disk.written.base_index < position:
            newest = history.entries[position - 1]
            if node.disk.written.term_at(position) != newest.term:
                raise BrokenPromiseError(
                    f"{node.node_id} leads term {term} without entry {newest.index} of term {newest.term}, "
                    f"which was committed in term {history.terms_at[position - 1]}"
                )

    # --- what is committed --------------------------------------------------------------------------------------

    def committed(
        self, node: Witnessed, entries: Sequence[LogEntry], voters: Voters, *, term_led: int
    ) -> None:
        """A node folds entries: the same ones at the same places as everybody, each of them once."""
        history = self.history(node.incarnation)
        expected = node.state.index + 1
        for entry in entries:
            if entry.index != expected:
                raise BrokenPromiseError(f"{node.node_id} folds entry {entry.index}, its next is {expected}")
            expected += 1
            if entry.index <= history.last_index:
                known = history.entries[entry.index - 1]
                if (known.term, known.event_id) != (entry.term, entry.event_id):
                    raise BrokenPromiseError(
                        f"{node.node_id} has {entry.event_id} of term {entry.term} committed at {entry.index}, "
                        f"where {known.event_id} of term {known.term} was committed before"
                    )
            else:
                self._is_new(history, node, entry, voters, term_led=term_led)

    def _is_new(
        self, history: History, node: Witnessed, entry: LogEntry, voters: Voters, *, term_led: int
    ) -> None:
        if entry.index != history.last_index + 1:
            raise BrokenPromiseError(
                f"{node.node_id} folds entry {entry.index}, only {history.last_index} are committed"
            )
        if not term_led:
            raise BrokenPromiseError(
                f"{node.node_id} folds entry {entry.index} as a follower before any leader did"
            )
        if entry.event_id in history.event_ids:
            raise BrokenPromiseError(f"{entry.event_id} is committed a second time, at {entry.index}")
        previous_seq = history.last_seq.get(entry.origin, 0)
        # What a leader decides, or an operator, takes none of the numbers that a node's facts are bound to.
        is_numbered = not (isinstance(entry.event, HistoryForced) or entry.cause_id.startswith("decided in "))
        if not (entry.seq > previous_seq if is_numbered else entry.seq == previous_seq):
            raise BrokenPromiseError(
                f"entry {entry.index} is proposal {entry.seq} of {entry.origin}, behind its {previous_seq}"
            )
        self._is_agreed(node, entry, voters)
        self._is_in_place(history, node, entry)
        history.add(entry, voters, term_led)
        self.counts["commits"] += 1
        self.on_news(entry)

    def _is_agreed(self, node: Witnessed, entry: LogEntry, voters: Voters) -> None:
        """Count the disks by hand.

        A disk that rotted has had it, as far as anybody can know, and so has one that was given to a history begun
        anew: what goes on in the old one is given up already.
        """

        def has(node_id: NodeId) -> bool:
            disk = self._disk(node_id)
            if disk is None:
                return False
            log = disk.synced
            if disk.is_forgetful or disk.incarnation > node.incarnation:
                return True
            return entry.index < log.base_index or log.term_at(entry.index) == entry.term

        having = [node_id for node_id in voters.voters if has(node_id)]
        if 2 * len(having) <= len(voters.voters):
            raise BrokenPromiseError(
                f"{node.node_id} commits entry {entry.index}, which is on {len(having)} of the disks of "
                f"{' '.join(voters.voters)}"
            )
        missing = [node_id for node_id in voters.replicas if not has(node_id)]
        if missing:
            raise BrokenPromiseError(
                f"{node.node_id} commits entry {entry.index}, which is not on the disk of replica {missing[0]}"
            )

    def _is_in_place(self, history: History, node: Witnessed, entry: LogEntry) -> None:
        event = entry.event
        if isinstance(event, TermOpened):
            place = (node.incarnation, entry.term)
            if self._openings.setdefault(place, entry.event_id) != entry.event_id:
                raise BrokenPromiseError(f"term {entry.term} is opened twice")
        elif isinstance(event, VotersChanged):
            before, after = history.voters, event.voters
            changed = set(before.voters) ^ set(after.voters)
            if len(changed) > 1:
                raise BrokenPromiseError(
                    f"entry {entry.index} changes voters {' '.join(sorted(changed))} at once"
                )
            self.counts["changes of voters"] += 1
        if entry.cause_id.startswith("decided in ") and entry.cause_id != f"decided in {entry.term}":
            raise BrokenPromiseError(
                f"entry {entry.index} of term {entry.term} was {entry.cause_id} and void since"
            )

    def folded(self, node: Witnessed) -> None:
        """A node has a new state: equal to everybody's at that index."""
        history = self.history(node.incarnation)
        state = node.state
        known = history.states.setdefault(state.index, state)
        if known is not state and known != state:
            raise BrokenPromiseError(
                f"{node.node_id} has another state at index {state.index} than others had"
            )

    def restored(self, node: Witnessed, index: int, before_index: int) -> None:
        """A node goes on from a snapshot: a newer one than what it had, and of what is committed."""
        if index <= before_index:
            raise BrokenPromiseError(
                f"{node.node_id} goes back from index {before_index} to a snapshot at {index}"
            )
        if index > self.history(node.incarnation).last_index:
            raise BrokenPromiseError(f"{node.node_id} restores a snapshot at {index}, which is not committed")
        if node.state.index != index:
            raise BrokenPromiseError(f"{node.node_id} restores {node.state.index} from a snapshot at {index}")
        self.folded(node)

    def acknowledged(self, node: Witnessed, event_ids: Sequence[EventId]) -> None:
        """A node tells its caller that a proposal is done."""
        history = self.history(node.incarnation)
        for event_id in event_ids:
            if event_id not in history.event_ids:
                raise BrokenPromiseError(f"{node.node_id} acknowledges {event_id}, which is not committed")
        self.counts["acknowledged"] += len(event_ids)

    # --- what never goes back -----------------------------------------------------------------------------------

    def stepped(self, node: Witnessed, boot: int, term: int, commit_index: int) -> None:
        """A node has taken a step: its term never goes back, nor does its commit index while it runs."""
        incarnation = node.incarnation
        high_boot, high_term, high_commit = self._highest.get(node.node_id, (0, 0, 0))
        if boot == high_boot:
            if term < high_term:
                raise BrokenPromiseError(f"{node.node_id} goes back from term {high_term} to {term}")
            if commit_index < high_commit:
                raise BrokenPromiseError(
                    f"{node.node_id} goes back from commit index {high_commit} to {commit_index}"
                )
        if incarnation not in self.histories:
            raise BrokenPromiseError(f"{node.node_id} is in incarnation {incarnation}, which nobody began")
        self._highest[node.node_id] = (boot, term, commit_index)

    # --- reads --------------------------------------------------------------------------------------------------

    def read_asked(self, node: Witnessed, boot: int, read_id: int) -> None:
        self._reads[(node.node_id, boot, read_id)] = (
            node.incarnation,
            self.history(node.incarnation).last_index,
        )

    def read_confirmed(self, node: Witnessed, boot: int, read_id: int, index: int) -> None:
        """A confirmed read sees everything that was committed when it was asked for."""
        incarnation, wanted = self._reads.pop((node.node_id, boot, read_id))
        if index < wanted and incarnation == node.incarnation:
            raise BrokenPromiseError(
                f"{node.node_id} confirms a read at index {index}; {wanted} was committed when it was asked for"
            )
        self.counts["reads confirmed"] += 1

    def read_refused(self, node: Witnessed, boot: int, read_id: int) -> None:
        self._reads.pop((node.node_id, boot, read_id), None)
        self.counts["reads refused"] += 1

    # --- force --------------------------------------------------------------------------------------------------

    def forced(self, node: Witnessed, before_incarnation: int) -> None:
        """An operator begins the history anew on a node: what its disk has stays, the rest is given up knowingly.

        What was committed while it was in sync, as a replica or as one of two voters, must not be among the rest.
        """
        before = self.history(before_incarnation)
        log = node.disk.written
        kept = 0
        for entry in before.entries:
            if entry.index > log.base_index and log.term_at(entry.index) != entry.term:
                break
            kept = entry.index
        for entry, voters in zip(before.entries[kept:], before.voters_at[kept:], strict=True):
            if node.node_id in voters.replicas or voters.voters == (node.node_id,):
                raise BrokenPromiseError(
                    f"{node.node_id} was in sync when entry {entry.index} was committed, and lacks it"
                )
        self.histories[before_incarnation + 1] = before.up_to(kept)
        self.counts["given up by force"] += before.last_index - kept

    def stillborn(self, node: Witnessed, incarnation: int) -> None:
        """The node that began the history anew has lost that in a crash: as if nobody had asked for it."""
        begun = self.histories.pop(incarnation)
        self._leaders = {place: one for place, one in self._leaders.items() if place[0] != incarnation}
        self._openings = {place: one for place, one in self._openings.items() if place[0] != incarnation}
        if any(
            isinstance(e.event, HistoryForced) and e.event.incarnation == incarnation for e in begun.entries
        ):
            raise BrokenPromiseError(
                f"{node.node_id} has lost incarnation {incarnation}, which was committed"
            )
