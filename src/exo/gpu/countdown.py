"""Things that were begun together: whoever waits for all of them is woken once, not with each.

To wake a thread costs more than what it then does with one reading.
"""

import asyncio
import threading


class Countdown:
    """Counts what is still under way. Made and waited for in an event loop; `one_is_over` is for any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._open = 0
        self._is_waited_for = False
        self._changed = asyncio.Event()

    def one_begins(self) -> None:
        """Take in that one more is under way."""
        with self._lock:
            self._open += 1

    def one_is_over(self) -> None:
        """Take in that one is no longer under way; the last one wakes who waits."""
        with self._lock:
            self._open -= 1
            if self._open or not self._is_waited_for:
                return
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:
            return  # The loop is closed: nobody waits.

    async def wait(self, timeout_s: float) -> None:
        """Return when none is under way any more, or when the time is over."""
        with self._lock:
            if not self._open:
                return
            self._is_waited_for = True
        timer = self._loop.call_later(timeout_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
