"""Keeps values that change slowly, and reads only a few of them at a time: every question costs milliseconds."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
ABSENT_S = 60.0
"""Until something is looked for again that was not there."""


class Rarely:
    """Values by name, each with how long it may be kept and how it is read. Of one thread at a time.

    Args:
        questions: (seconds, how to read it) by name.
        clock: Monotonic seconds.
    """

    def __init__(
        self, questions: Mapping[str, tuple[float, Callable[[], Any]]], clock: Callable[[], float]
    ) -> None:
        self._questions = dict(questions)
        self._clock = clock
        self._values: dict[str, Any] = {}
        self._read_at_s: dict[str, float] = {}

    def refresh(self, count_max: int) -> None:
        """Read those never read, and of the others the most overdue, no more than so many."""
        if len(self._read_at_s) < len(self._questions):
            for name in [name for name in self._questions if name not in self._read_at_s]:
                self._read(name)
        now_s = self._clock()
        overdue = [
            (now_s - self._read_at_s[name] - kept_s, name) for name, (kept_s, _) in self._questions.items()
        ]
        for _, name in sorted(one for one in overdue if one[0] >= 0)[::-1][:count_max]:
            self._read(name)

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name)

    def _read(self, name: str) -> None:
        self._values[name] = self._questions[name][1]()
        self._read_at_s[name] = self._clock()


class WhereThere(Generic[T]):
    """Asks every time for what a machine has; whether it has by now what it had not, it asks once in a while.

    Args:
        ask: Returns None where there is nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, ask: Callable[[], T | None], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._absent_at_s: float | None = None

    def __call__(self) -> T | None:
        """Return what there is now."""
        now_s = self._clock()
        if self._absent_at_s is not None and now_s - self._absent_at_s < ABSENT_S:
            return None
        found = self._ask()
        self._absent_at_s = now_s if found is None else None
        return found
