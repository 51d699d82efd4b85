"""Reading a log back into the state that it led to."""

from collections import deque

import msgspec

from exo.cluster.log.base import EventLog
from exo.shared.apply import apply_entry
from exo.shared.types.events import LogEntry
from exo.shared.types.state import State


class Recovered(msgspec.Struct, frozen=True):
    """The state after the last entry, and the last entries themselves."""

    state: State
    recent: tuple[LogEntry, ...]


def replay(log: EventLog, recent_max: int) -> Recovered:
    """Fold the whole log.

    Raises:
        LogCorruptError: The log is damaged, or was written by a newer release.
        LogOrderError: The log has a gap.
    """
    state = State()
    recent: deque[LogEntry] = deque(maxlen=recent_max)
    for entry in log.read():
        state = apply_entry(state, entry)
        recent.append(entry)
    return Recovered(state, tuple(recent))
