"""One blocking call on its way through a device's thread, with its outcome."""

import asyncio
from collections.abc import Callable
from typing import Any

from exo.gpu.countdown import Countdown


class DriverCall:
    """What two threads change is guarded by the `DriverThread`'s lock."""

    __slots__ = (
        "changed",
        "discard",
        "doing",
        "error",
        "function",
        "has_waited",
        "is_awaited",
        "is_done",
        "is_dropped",
        "is_never_skipped",
        "loop",
        "result",
        "started_at_s",
        "timeout_s",
        "together",
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
        together: Countdown | None = None,
    ) -> None:
        self.function = function
        self.doing = doing
        self.timeout_s = timeout_s
        self.discard = discard
        self.is_never_skipped = is_never_skipped
        self.loop = loop
        self.together = together
        """Of whoever waits for this and others; it is told once, when this is over."""
        self.changed = asyncio.Event()
        self.has_waited = False
        self.is_awaited = False
        """Somebody waits for this one alone."""
        self.started_at_s: float | None = None
        self.is_done = False
        self.is_dropped = False
        """Nobody waits for the outcome any more."""
        self.result: Any = None
        self.error: BaseException | None = None

    def notify(self) -> None:
        """Wake who waits for it alone; from the driver's thread."""
        if self.loop is not None and self.is_awaited:
            try:
                self.loop.call_soon_threadsafe(self.changed.set)
            except RuntimeError:
                return  # The loop is closed: nobody waits.

    def leave_countdown(self) -> None:
        """Tell those who wait for several that this one is over. Its outcome stands, if it has one."""
        together, self.together = self.together, None
        if together is not None:
            together.one_is_over()
