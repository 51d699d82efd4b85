"""What the host tells beyond single values of psutil: the processor's load and power, and how its memory is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_POWERCAP = Path("/sys/class/powercap")
_EDAC = Path("/sys/devices/system/edac/mc")
_PRESSURE = Path("/proc/pressure/memory")
_STALLED_PERCENT = 10.0
"""Of the last ten seconds that some process waited for memory: from here on people notice."""


_LOAD_WINDOW_S = 0.1
"""The kernel counts processor time in steps of up to a hundredth of a second: of less than this it says nothing."""


class ProcessorLoad:
    """How busy the processor is, whoever asks and however often.

    psutil's own figure compares with the last question of the same thread: the first answer is always 0, and one of
    two in a row is of a moment.

    Args:
        clock: Monotonic seconds.
        times: Seconds by kind, as of `psutil.cpu_times`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, times: Callable[[], Any] = psutil.cpu_times
    ) -> None:
        self._clock = clock
        self._times = times
        self._before: tuple[float, float, float] | None = None
        """(when, busy seconds, seconds in all)"""
        self._percent: float | None = None

    def percent(self) -> float | None:
        """Return the mean since a while ago, 0 to 100; None while there is nothing to compare with."""
        at_s = self._clock()
        if self._before is not None and at_s - self._before[0] < _LOAD_WINDOW_S:
            return self._percent
        times = self._times()
        # What guests take is in the user's time already.
        guests_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        total_s = sum(times) - guests_s
        busy_s = total_s - times.idle - getattr(times, "iowait", 0.0)
        before, self._before = self._before, (at_s, busy_s, total_s)
        if before is not None and total_s > before[2]:
            share = (busy_s - before[1]) / (total_s - before[2])
            self._percent = round(100 * min(1.0, max(0.0, share)), 1)
        return self._percent


_ZONES_KEPT_S = 60.0
"""Until counters are looked for again."""


class PackagePower:
    """Watts of all processor packages, from the energy that they count (RAPL). Most systems tell it only to root.

    Args:
        clock: Monotonic seconds.
        powercap: The kernel's folder of energy counters.
        of_platform: Of the whole machine instead (`psys`), which only some count.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        powercap: Path = _POWERCAP,
        *,
        of_platform: bool = False,
    ) -> None:
        self._clock = clock
        self._powercap = powercap
        self._of_platform = of_platform
        self._zones: tuple[float, tuple[str, ...]] | None = None
        """When they were looked for, and their names."""
        self._before: tuple[float, dict[str, int]] | None = None

    def watts(self) -> float | None:
        """Return the mean since the last call; None the first time, and where the system does not tell."""
        energies = self._energies_uj()
        at_s = self._clock()
        before, self._before = self._before, (at_s, energies)
        if before is None or not energies or before[1].keys() != energies.keys() or at_s <= before[0]:
            return None
        total_uj = 0
        for name, energy_uj in energies.items():
            used_uj = energy_uj - before[1][name]
            if used_uj < 0:  # The counter began anew.
                range_uj = _number(self._powercap / name / "max_energy_range_uj")
                if range_uj is None:
                    return None
                used_uj += range_uj
            total_uj += used_uj
        return total_uj / 1e6 / (at_s - before[0])

    def _energies_uj(self) -> dict[str, int]:
        found = {name: _number(self._powercap / name / "energy_uj") for name in self._zone_names()}
        return {name: value for name, value in found.items() if value is not None}

    def _zone_names(self) -> tuple[str, ...]:
        at_s = self._clock()
        if self._zones is None or at_s - self._zones[0] >= _ZONES_KEPT_S:
            # `intel-rapl:0` is a package, of AMD's processors too; `intel-rapl:0:1` is a part of it. The whole machine
            # stands among the packages.
            names = sorted(one.parent.name for one in self._powercap.glob("intel-rapl:*/energy_uj"))
            wanted = [
                name
                for name in names
                if name.count(":") == 1 and self._is_platform(name) is self._of_platform
            ]
            self._zones = at_s, tuple(wanted)
        return self._zones[1]

    def _is_platform(self, name: str) -> bool:
        try:
            return (self._powercap / name / "name").read_text(encoding="ascii").strip() == "psys"
        except (OSError, ValueError):
            return False


def memory_errors(edac: Path = _EDAC) -> tuple[int | None, int | None]:
    """Return how many errors of the host's memory were (corrected, not corrected); None without ECC."""
    corrected = [_number(file) for file in edac.glob("mc*/ce_count")]
    uncorrected = [_number(file) for file in edac.glob("mc*/ue_count")]
    return _sum(corrected), _sum(uncorrected)


def is_memory_pressed(pressure: Path = _PRESSURE) -> bool | None:
    """Say whether processes wait for memory; None where the kernel does not tell (PSI)."""
    try:
        fields = pressure.read_text(encoding="ascii").split("\n", 1)[0].split()
        name, _, percent = fields[1].partition("=")
        return float(percent) >= _STALLED_PERCENT if (fields[0], name) == ("some", "avg10") else None
    except (OSError, ValueError, IndexError):
        return None


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
