"""The rules of every log: indices follow each other without a gap, and what is compacted cannot be cut off."""

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


def require_cuttable(start_index: int, index: int) -> None:
    """Check that a log that begins behind `start_index` can be cut off behind `index`.

    Raises:
        ValueError: It would have to forget what is compacted, and so not there to be cut off.
    """
    if index < start_index:
        raise ValueError(f"entries up to {start_index} are compacted: none can be cut off behind {index}")
