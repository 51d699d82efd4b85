"""One blocking call on its way through a device's thread, with its outcome."""

import asyncio
from collections.abc import Callable
from typing import Any


class DriverCall:
    """What two threads change is guarded by the `DriverThread`'s lock."""

    __slots__ = (
        "changed",
        "discard",
        "doing",
        "error",
        "function",
        "has_waited",
        "is_done",
        "is_dropped",
        "is_never_skipped",
        "loop",
        "result",
        "started_at_s",
        "timeout_s",
    )

    def __init__(
        self,
        function: Callable[[], Any],
        *,
        doing: str,
        timeout_s: float,
        discard: Callable[[Any], object] | None = None,
        is_never_skipped: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.function = function
        self.doing = doing
        self.timeout_s = timeout_s
        self.discard = discard
        self.is_never_skipped = is_never_skipped
        self.loop = loop
        self.changed = asyncio.Event()
        self.has_waited = False
        self.started_at_s: float | None = None
        self.is_done = False
        self.is_dropped = False
        """Nobody waits for the outcome any more."""
        self.result: Any = None
        self.error: BaseException | None = None

    def notify(self) -> None:
        """Wake who waits; from the driver's thread."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(self.changed.set)
            except RuntimeError:
                return  # The loop is closed: nobody waits.
