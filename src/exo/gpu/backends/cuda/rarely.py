"""Keeps values that change slowly, and reads only a few of them at a time: every question costs milliseconds."""

from collections.abc import Callable, Mapping
from typing import Any


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
        for name in [name for name in self._questions if name not in self._read_at_s]:
            self._read(name)
        overdue = sorted((self._overdue_s(name), name) for name in self._questions)
        for overdue_s, name in overdue[::-1][:count_max]:
            if overdue_s >= 0:
                self._read(name)

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name)

    def _overdue_s(self, name: str) -> float:
        return self._clock() - self._read_at_s[name] - self._questions[name][0]

    def _read(self, name: str) -> None:
        self._values[name] = self._questions[name][1]()
        self._read_at_s[name] = self._clock()
