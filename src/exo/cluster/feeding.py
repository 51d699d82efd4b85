"""What was decided and measured, in order, for whoever watches: from disk, then from memory, then as it happens."""

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from itertools import islice

from exo.cluster.board import Board
from exo.cluster.log.store import NodeStore
from exo.cluster.recent import Recent
from exo.cluster.situation import Situation
from exo.cluster.writer import RunBlocking
from exo.shared.types.events import LogEntry, TelemetryFrame

READ_ENTRIES = 1000
"""How many are read from disk at once."""

Feed = AsyncIterator[LogEntry | TelemetryFrame]


class Feeding:
    """Opens feeds that begin in the past."""

    def __init__(
        self,
        situation: Situation,
        board: Board,
        recent: Recent,
        store: NodeStore,
        run_blocking: RunBlocking,
    ) -> None:
        self._situation = situation
        self._board = board
        self._recent = recent
        self._store = store
        self._run_blocking = run_blocking

    def open(self, after_index: int | None) -> Feed:
        """See EmbeddedCoordinator.feed."""
        recent, rest = self._recent, self._board.feeds.open()
        if after_index is None:
            return rest
        entries = recent.after(after_index)
        if entries is not None:
            return _chain(entries, rest)
        oldest_index = recent.oldest_index
        entries = recent.after(oldest_index - 1) or ()
        if self._situation.is_agreeing and after_index < oldest_index:
            return self._from_log(after_index, oldest_index - 1, _chain(entries, rest))
        return _chain(entries, rest)

    async def _from_log(self, after_index: int, until_index: int, rest: Feed) -> Feed:
        reader = self._store.log.read(after_index)
        while after_index < until_index:
            part = partial(_take, reader, min(READ_ENTRIES, until_index - after_index))
            try:
                entries: list[LogEntry] = await self._run_blocking(part)
            except OSError:
                return  # The log was reset or compacted meanwhile.
            for entry in entries:
                after_index = entry.index
                yield entry
            if not entries:
                return
        async for item in rest:
            yield item


async def _chain(entries: Sequence[LogEntry], rest: Feed) -> Feed:
    for entry in entries:
        yield entry
    async for item in rest:
        yield item


def _take(reader: Iterator[LogEntry], count: int) -> list[LogEntry]:
    return list(islice(reader, count))
