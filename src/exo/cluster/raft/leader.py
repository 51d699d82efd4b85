"""What only a leader does: admit proposals, send entries, count who has them, confirm reads, hand over. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from exo.cluster.raft.log_window import LogWindow
from exo.cluster.raft.options import CoreOptions
from exo.cluster.raft.progress import Progress
from exo.cluster.raft.quorum import agreed_index, has_majority
from exo.shared.types.events import ClusterDissolved, LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


class _Read(msgspec.Struct):
    read_id: int
    index: int
    confirmed_by: set[NodeId]


class Leader:
    """One term of one leader.

    Args:
        node_id: The leader.
        log: Its log; shared with the core, which appends to it.
        options: Bounds and times in ticks.
        first_index: Of the term.
    """

    def __init__(self, node_id: NodeId, log: LogWindow, options: CoreOptions, *, first_index: int) -> None:
        self._node_id = node_id
        self._log = log
        self._options = options
        self.first_index = first_index
        """Nothing is committed before this is (Raft, 5.4.2)."""
        self.progress: dict[NodeId, Progress] = {}
        self.learners: set[NodeId] = set()
        self.ticks = 0
        self.hand_over_to: NodeId | None = None
        self.hand_over_ticks = 0
        self.is_dissolving = False
        """The log has a ClusterDissolved that counts: nothing may follow it but what opens the term."""
        self.read_id_asked = 0
        """The newest read that was asked for, waiting or not."""
        self._reads: list[_Read] = []
        self._snapshot_ticks: dict[NodeId, int] = {}
        self.reconcile()

    @property
    def voters(self) -> Voters:
        return self._log.voters.voters

    @property
    def peers(self) -> Iterable[NodeId]:
        """Everybody that is sent entries."""
        return self.progress

    def reconcile(self) -> None:
        """The voters or learners changed: follow those who count, and nobody else."""
        wanted = {*self.voters.members, *self.learners} - {self._node_id}
        for node_id in sorted(wanted - self.progress.keys()):  # In an order that a replay repeats.
            progress = Progress(self._log.last_index + 1, inflight_max=self._options.inflight_max)
            progress.is_active = True  # It gets a full timeout to answer for the first time.
            self.progress[node_id] = progress
        for node_id in self.progress.keys() - wanted:
            del self.progress[node_id]

    def note_farewell(self, entries: Iterable[LogEntry]) -> None:
        """These are in the log: whether it ends with the end of the cluster."""
        if any(isinstance(entry.event, ClusterDissolved) for entry in entries):
            self.is_dissolving = True

    # --- committing ---------------------------------------------------------------------------------------------

    def committed_index(self, durable_index: int) -> int:
        """Return how far the log is agreed on, given how much of it is on this node's own disk.

        Until a change of the voters is on this disk, those who had to agree before it have to as well: a leader that
        dropped a replica, committed without it and then lost the change would believe the replica to have it all.

        A newcomer counts once its disk has the change that made it count: before that it knows of no promise, and may
        drop its log when it starts again.
        """

        def index_at(node_id: NodeId) -> int:
            if node_id == self._node_id:
                return durable_index
            progress = self.progress.get(node_id)
            if progress is None or progress.match_index < self._log.member_since(node_id):
                return 0
            return progress.match_index

        agreed = agreed_index(self.voters, index_at)
        if self._log.voters.index > durable_index:
            agreed = min(agreed, agreed_index(self._log.voters_before, index_at))
        return agreed if agreed >= self.first_index else 0

    # --- presence -----------------------------------------------------------------------------------------------

    def take_attendance(self) -> bool:
        """Say whether a majority of the voters was heard of since the last time."""
        present = [node_id for node_id, progress in self.progress.items() if progress.is_active]
        for progress in self.progress.values():
            progress.is_active = False
        return has_majority(self.voters, [*present, self._node_id])

    def retry_snapshots(self) -> None:
        """One tick has passed: a snapshot that got lost is tried again, late enough not to send one twice."""
        for node_id, progress in self.progress.items():
            if progress.mode != "snapshot":
                self._snapshot_ticks.pop(node_id, None)
                continue
            ticks = self._snapshot_ticks.get(node_id, 0) + 1
            self._snapshot_ticks[node_id] = ticks
            if ticks >= self._options.snapshot_patience_ticks:
                del self._snapshot_ticks[node_id]
                progress.ask_again()

    # --- confirmed reads ----------------------------------------------------------------------------------------

    @property
    def read_id(self) -> int:
        """The newest read that waits; heartbeats carry it."""
        return self._reads[-1].read_id if self._reads else 0

    def read_asked(self, read_id: int, commit_index: int) -> None:
        self.read_id_asked = max(read_id, self.read_id_asked)
        self._reads.append(_Read(read_id, max(commit_index, self.first_index), {self._node_id}))

    def read_acknowledged(self, source: NodeId, read_id: int) -> None:
        for read in self._reads:
            if read.read_id <= read_id:
                read.confirmed_by.add(source)

    def take_confirmed(self, commit_index: int) -> Sequence[tuple[int, int]]:
        """Return (read id, index) of the reads that a majority has confirmed and that can be answered by now."""
        confirmed: list[tuple[int, int]] = []
        # A majority for a later read confirms the earlier ones too.
        while self._reads and commit_index >= self.first_index:
            position = next(
                (
                    position
                    for position in reversed(range(len(self._reads)))
                    if has_majority(self.voters, self._reads[position].confirmed_by)
                ),
                None,
            )
            if position is None:
                break
            confirmed += [(read.read_id, read.index) for read in self._reads[: position + 1]]
            del self._reads[: position + 1]
        return confirmed

    def drop_reads(self) -> Sequence[int]:
        """Return the reads that will not be confirmed by this leader."""
        dropped = [read.read_id for read in self._reads]
        self._reads.clear()
        return dropped

    # --- hand-over ----------------------------------------------------------------------------------------------

    def successor(self, wanted: NodeId | None) -> NodeId | None:
        """Return who should lead next: the wanted voter, or the active one with the longest log."""
        candidates = [
            (progress.is_active and not progress.is_lost, progress.match_index, node_id)
            for node_id, progress in self.progress.items()
            if node_id in self.voters.voters and wanted in (None, node_id)
        ]
        return max(candidates)[2] if candidates else None
