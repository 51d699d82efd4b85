"""What waits for the disk: the core's writes, and a snapshot when one is due."""

from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import Write
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.cluster.snapshotting import snapshot_of


class DiskWork:
    """Gathered here by the kernel, taken from here by the writer.

    Args:
        situation: This node.
        snapshot_entries: After how many decisions a snapshot is due.
    """

    def __init__(self, situation: Situation, *, snapshot_entries: int) -> None:
        self.added = Signal()
        self._situation = situation
        self._snapshot_entries = snapshot_entries
        self._writes: list[Write] = []
        self._snapshot_index = 0

    def add(self, write: Write) -> None:
        self._writes.append(write)
        self.added.fire()

    def take(self) -> list[Write]:
        taken, self._writes = self._writes, []
        return taken

    def drop(self) -> None:
        """The log that this was for is about to be forgotten."""
        self._writes.clear()

    def snapshot_at(self, index: int) -> None:
        """A snapshot at this index is, or is about to be, on disk: the next one is due so many decisions later."""
        self._snapshot_index = index

    def take_snapshot(self) -> Snapshot | None:
        """Return a snapshot to keep, when enough was decided since the last one."""
        state, core = self._situation.state, self._situation.core
        is_due = state.index - self._snapshot_index >= self._snapshot_entries
        if not is_due or not self._situation.is_agreeing or core.commit_index < state.index:
            return None
        if core.durable_index < state.index:
            return None  # The log on disk has to reach as far as the snapshot.
        self._snapshot_index = state.index
        return snapshot_of(state, core.voters)
