"""Virtual time: what happens when, in one order that depends on nothing but who asked first."""

import heapq
from collections.abc import Callable
from typing import Any

US_PER_S = 1_000_000


class Timeline:
    """Microseconds as integers, so that adding them up gives the same sum everywhere."""

    def __init__(self) -> None:
        self.now_us = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    @property
    def now_s(self) -> float:
        return self.now_us / US_PER_S

    def after(self, delay_us: int, function: Callable[..., None], *arguments: object) -> None:
        """Call a function later; of two at the same time, the one asked for first goes first."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._count, function, arguments))

    def run_until(self, until_us: int) -> None:
        """Let everything happen up to and including a moment; the moment is then now."""
        queue = self._queue
        while queue and queue[0][0] <= until_us:
            self.now_us, _, function, arguments = heapq.heappop(queue)
            function(*arguments)
        self.now_us = max(self.now_us, until_us)

    def run_for(self, duration_us: int) -> None:
        self.run_until(self.now_us + duration_us)
