"""A call that concerns two devices has its place in the order of both."""

import threading
from collections.abc import Callable
from typing import TypeVar

from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import DeviceHangError

T = TypeVar("T")


async def call_together(
    first: DriverThread, second: DriverThread, function: Callable[[], T], *, doing: str, timeout_s: float
) -> T:
    """Run a function that concerns two devices, on the first one's thread while the second one's stands still.

    So it has its place in the order of both, and neither can free meanwhile what it uses. It runs even if the caller
    is cancelled before its turn.

    Raises:
        DeviceHangError: One of them hangs.
    """
    if first is second:
        return await first.call(function, doing=doing, timeout_s=timeout_s, is_never_skipped=True)
    first.check()
    second.check()
    until_both_s = first.backlog_s + second.backlog_s
    is_second_there, is_over = threading.Event(), threading.Event()

    def stand_still() -> None:
        is_second_there.set()
        is_over.wait()

    def work() -> T:
        try:
            if not is_second_there.wait(until_both_s + timeout_s):
                raise DeviceHangError(
                    f"{second.name} did not become free for {doing} with {first.name} in time; try again later"
                )
            return function()
        finally:
            is_over.set()

    longest_s = until_both_s + 2 * timeout_s
    # Both at once, without a pause between: all such pairs have the same order on every thread, so none wait in a ring.
    second.post(stand_still, doing=f"{doing} with {first.name}", timeout_s=longest_s)
    return await first.call(work, doing=doing, timeout_s=longest_s, is_never_skipped=True)
