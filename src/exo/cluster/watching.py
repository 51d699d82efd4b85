"""Bounded feeds of what is folded, for those who watch. A slow consumer loses its feed, never a part of it."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Self
from weakref import WeakSet

from exo.cluster.signal import Signal
from exo.shared.types.events import LogEntry, TelemetryFrame

Item = LogEntry | TelemetryFrame


class Feed(AsyncIterator[Item]):
    """What one consumer has not taken yet."""

    def __init__(self, first: Iterable[Item], backlog_max: int) -> None:
        self._items: deque[Item] = deque(first)
        self._backlog_max = backlog_max
        self._is_ended = False
        self._signal = Signal()

    def push(self, items: Sequence[Item]) -> None:
        """Add what comes next. Where that is more than there is room for, the first of it, and then the end."""
        if self._is_ended or not items:
            return
        room = self._backlog_max - len(self._items)
        if room < len(items):
            self._items.extend(items[: max(0, room)])
            self.end()
            return
        self._items.extend(items)
        self._signal.fire()

    def end(self) -> None:
        """Nothing more comes; what is here is still delivered."""
        self._is_ended = True
        self._signal.fire()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._is_ended:
                raise StopAsyncIteration
            await self._signal.wait()
        return self._items.popleft()


class Feeds:
    """All feeds; one that nobody holds any more is forgotten."""

    def __init__(self, backlog_max: int) -> None:
        self._backlog_max = backlog_max
        self._feeds: WeakSet[Feed] = WeakSet()

    def open(self, first: Iterable[Item] = ()) -> Feed:
        """Return a feed that begins with `first` and goes on with everything pushed from now on."""
        feed = Feed(first, self._backlog_max)
        self._feeds.add(feed)
        return feed

    def push(self, items: Sequence[Item]) -> None:
        """Pass on what was folded, to each feed at once."""
        for feed in self._now():
            feed.push(items)

    def end_all(self) -> None:
        for feed in self._now():
            feed.end()
        self._feeds.clear()

    def _now(self) -> Iterator[Feed]:
        return iter(list(self._feeds))
