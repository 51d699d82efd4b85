"""What the whole machine draws and how busy its efficiency cores are, where Linux tells it; else None."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from exo.gpu.backends.host_sensors import PackagePower

_SYSTEM = Path("/sys/devices")
_WINDOW_S = 0.1
"""The kernel counts processor time in steps of up to a hundredth of a second."""


class PlatformPower:
    """Watts of the machine as its platform counts them (RAPL's `psys`): some laptops and servers do.

    Args:
        clock: Monotonic seconds.
        powercap: The kernel's folder of energy counters.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, powercap: Path | None = None) -> None:
        self._power = (
            PackagePower(clock, of_platform=True)
            if powercap is None
            else PackagePower(clock, powercap, of_platform=True)
        )

    def watts(self) -> float | None:
        """Return the mean since the last call; None the first time, and where the machine does not tell."""
        return self._power.watts()


def efficiency_cores(system: Path = _SYSTEM) -> frozenset[int]:
    """Return the processors that are slower than the fastest by design; none where all are alike, or nobody tells.

    Intel's hybrid processors list them as `cpu_atom`; on ARM each has a `cpu_capacity` of 1024 at most.
    """
    atoms = _ranges(_text(system / "cpu_atom" / "cpus"))
    if atoms:
        return atoms
    capacities = {
        int(folder.name.removeprefix("cpu")): int(said)
        for folder in _cores(system)
        if (said := _text(folder / "cpu_capacity")).isdecimal()
    }
    fastest = max(capacities.values(), default=0)
    # Of three kinds (as in telephones) the middle one counts as fast: it does the work.
    slowest = min(capacities.values(), default=0)
    return frozenset(core for core, capacity in capacities.items() if capacity == slowest < fastest)


class CoreLoads:
    """How busy the efficiency cores are, and the others.

    Args:
        clock: Monotonic seconds.
        efficient: The efficiency cores; none: nothing is ever read.
        times: Seconds by kind of each processor, as of `psutil.cpu_times(percpu=True)`.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        efficient: frozenset[int],
        times: Callable[[], Sequence[Any]] = lambda: psutil.cpu_times(percpu=True),
    ) -> None:
        self._clock = clock
        self._efficient = efficient
        self._times = times
        self._before: tuple[float, list[tuple[float, float]]] | None = None
        self._percents: tuple[float | None, float | None] = (None, None)

    def percents(self) -> tuple[float | None, float | None]:
        """Return the means (of the efficiency cores, of the others) since a while ago; None: there is no such thing."""
        if not self._efficient:
            return None, None
        at_s = self._clock()
        if self._before is not None and at_s - self._before[0] < _WINDOW_S:
            return self._percents
        now = [_busy_of_total(one) for one in self._times()]
        before, self._before = self._before, (at_s, now)
        if before is not None and len(before[1]) == len(now):
            gone = [
                (busy_s - old_busy_s, total_s - old_s)
                for (busy_s, total_s), (old_busy_s, old_s) in zip(now, before[1], strict=True)
            ]
            self._percents = (
                _percent([one for core, one in enumerate(gone) if core in self._efficient]),
                _percent([one for core, one in enumerate(gone) if core not in self._efficient]),
            )
        return self._percents


def _busy_of_total(times: Any) -> tuple[float, float]:
    # What guests take is in the user's time already.
    guests_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    total_s = sum(times) - guests_s
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s


def _percent(gone: Sequence[tuple[float, float]]) -> float | None:
    total_s = sum(total for _, total in gone)
    if total_s <= 0:
        return None
    return round(100 * min(1.0, max(0.0, sum(busy for busy, _ in gone) / total_s)), 1)


def _cores(system: Path) -> list[Path]:
    try:
        return [one for one in (system / "system" / "cpu").iterdir() if re.fullmatch(r"cpu\d+", one.name)]
    except OSError:
        return []


def _ranges(text: str) -> frozenset[int]:
    """Read the kernel's lists of processors, such as `12-15,20`."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
