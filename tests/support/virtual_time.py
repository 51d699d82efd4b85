"""An event loop whose clock jumps to the next timer instead of waiting: minutes of a cluster in a second."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
TURNS_MAX = 100_000
"""Of the loop without the clock moving; the busiest story here takes a few hundred."""


class _Selector(selectors.SelectSelector):
    """Never waits; says how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        self._turns = self._turns + 1 if timeout == 0 else 0
        if self._turns > TURNS_MAX:
            self._turns = 0
            raise AssertionError(
                f"{TURNS_MAX} turns of the loop at {self.now_s:.3f} s: something goes in circles"
            )
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen again: every task waits for another")
            self.now_s += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` stands still while anything can run. No threads, no sockets."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
