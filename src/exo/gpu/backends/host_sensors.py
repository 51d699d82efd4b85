"""What Linux tells of the host beyond psutil: the processor's power, corrected memory errors, shortage of memory."""

import time
from collections.abc import Callable
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
_EDAC = Path("/sys/devices/system/edac/mc")
_PRESSURE = Path("/proc/pressure/memory")
_STALLED_PERCENT = 10.0
"""Of the last ten seconds that some process waited for memory: from here on people notice."""


class PackagePower:
    """Watts of all processor packages, from the energy that they count (RAPL). Most systems tell it only to root.

    Args:
        clock: Monotonic seconds.
        powercap: The kernel's folder of energy counters.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, powercap: Path = _POWERCAP) -> None:
        self._clock = clock
        self._powercap = powercap
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
        # `intel-rapl:0` is a package, of AMD's processors too; `intel-rapl:0:1` is a part of it.
        found = {one.parent.name: _number(one) for one in self._powercap.glob("intel-rapl:*/energy_uj")}
        return {name: value for name, value in found.items() if value is not None and name.count(":") == 1}


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
