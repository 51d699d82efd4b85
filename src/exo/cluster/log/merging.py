"""Several writes to disk as one: what they come to when nobody hears of any before all are done. Pure.

That is why they may be taken together. Term and vote go first, and only the last ones: no entry is ever there whose
term the node would not remember, and a vote that was superseded before it was told to anybody need not be kept.
"""

from collections.abc import Sequence

from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState, Write
from exo.shared.types.events import LogEntry


def merge(writes: Sequence[Write]) -> Write:
    """Return the write that leads to the same disk as `writes` in their order; there is at least one."""
    hard_state: HardState | None = None
    snapshot: Snapshot | None = None
    truncate_after: int | None = None
    entries: list[LogEntry] = []
    for write in writes:
        hard_state = write.hard_state or hard_state
        if write.snapshot is not None:
            # It replaces the log, and so all that was to be done to the log.
            snapshot, truncate_after, entries = write.snapshot, None, []
        if write.truncate_after is not None:
            if entries and write.truncate_after >= entries[0].index - 1:
                del entries[write.truncate_after - entries[0].index + 1 :]
            else:
                entries = []
                truncate_after = min(
                    write.truncate_after, write.truncate_after if truncate_after is None else truncate_after
                )
        entries += write.entries
    return Write(
        number=writes[-1].number,
        hard_state=hard_state,
        snapshot=snapshot,
        truncate_after=truncate_after,
        entries=tuple(entries),
    )
