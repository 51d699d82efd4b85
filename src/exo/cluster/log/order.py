"""The one rule of every log: indices follow each other without a gap."""

from collections.abc import Sequence

from exo.shared.errors import LogOrderError
from exo.shared.types.events import LogEntry


def require_order(last_index: int, entries: Sequence[LogEntry]) -> None:
    """Check that entries continue behind `last_index`.

    Raises:
        LogOrderError: They do not.
    """
    for expected, entry in enumerate(entries, start=last_index + 1):
        if entry.index != expected:
            raise LogOrderError(expected_index=expected, got_index=entry.index)
