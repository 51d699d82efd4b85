"""Watches Intel's GPUs through the files of the kernel's drivers xe and i915: no library and no rights are needed.

Sources: "drm/xe Intel GFX Driver" and "drm/i915 Intel GFX Driver" in https://docs.kernel.org/gpu/, and the kernel's
Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon and -i915-hwmon.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from exo.gpu.backends.card_book import CardBook
from exo.gpu.backends.intel.growth import Growth
from exo.gpu.backends.sysfs import (
    PCI_IDS,
    SYSFS,
    Card,
    Sensors,
    is_asleep,
    read_number,
    read_text,
)
from exo.gpu.driver import FoundDevice
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo, ThrottleReason

_OF_THE_PROCESSOR = "0000:00:02.0"
"""Where Intel's processors have their graphics."""
_CARD_FIRST = ("card", "pkg", "")
_CHIP_FIRST = ("pkg", "")


class _Places:
    """Where a driver keeps its values of a card's first tile and its first engine for graphics and computing."""

    def __init__(self, card: Card) -> None:
        if card.driver == "xe":
            gt = card.device / "tile0" / "gt0"
            self.clock, self.clock_max = gt / "freq0" / "act_freq", gt / "freq0" / "rp0_freq"
            self.throttle, self.prefix = gt / "freq0" / "throttle", ""
            self.idle_ms = gt / "gtidle" / "idle_residency_ms"
            self.memory = sorted(card.device.glob("tile*/physical_vram_size_bytes")) or sorted(
                card.device.glob("tile*/memory/physical_vram_size_bytes")
            )
        else:
            gt = card.folder / "gt" / "gt0"
            self.clock, self.clock_max = gt / "rps_act_freq_mhz", gt / "rps_RP0_freq_mhz"
            self.throttle, self.prefix = gt, "throttle_"
            self.idle_ms = gt / "rc6_residency_ms"
            # Only drivers that Intel publishes beside the kernel have it.
            self.memory = [file for file in (card.folder / "lmem_total_bytes",) if file.exists()]


class IntelWatcher:
    """The cards of xe and i915.

    Args:
        sysfs: Where the kernel's files are.
        pci_ids: Lists of names.
        clock: Monotonic seconds.
        host_memory: What a GPU that is one with the processor may use of the host's.
    """

    def __init__(
        self,
        *,
        sysfs: Path = SYSFS,
        pci_ids: tuple[Path, ...] = PCI_IDS,
        clock: Callable[[], float] = time.monotonic,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._sysfs = sysfs
        self._book = CardBook(
            "Intel",
            "8086",
            ("xe", "i915"),
            sysfs=sysfs,
            pci_ids=pci_ids,
            # The processor's own first.
            order=lambda one: (not _is_unified(one), one.pci_address),
        )
        self._clock = clock
        self._host_memory = host_memory
        self._growths: dict[tuple[int, str], Growth] = {}

    def open(self) -> None:
        """Look whether there is a card whose memory is known.

        Raises:
            BackendUnavailableError: There is none.
        """
        self._book.check()

    def close(self) -> None:
        """Leave it. May be called twice."""
        self._book.clear()
        self._growths.clear()

    def find_devices(self) -> Sequence[FoundDevice]:
        """Return the cards that are there now and tell how much memory they have: the processor's own first."""
        found: list[FoundDevice] = []
        for index, card in self._book.look():
            memory = self._memory(card)
            if memory is None:
                self._book.complain(
                    f"the card at {card.pci_address} is left out: {card.driver} does not tell its memory"
                )
                continue
            clock_max_mhz = read_number(_Places(card).clock_max)
            found.append(
                FoundDevice(
                    index=index,
                    name=self._book.name(card),
                    vendor="intel",
                    memory_kind="unified" if _is_unified(card) else "vram",
                    memory_total_bytes=memory.total_bytes,
                    pci_address=card.pci_address,
                    clock_mhz=None if clock_max_mhz is None else float(clock_max_mhz),
                    driver_version=read_text(self._sysfs / "module" / card.driver / "version"),
                )
            )
        return found

    def read(self, index: int) -> DeviceReading:
        """Return a card's telemetry.

        Raises:
            DeviceLostError: It is gone.
        """
        card = self._book.card(index)
        if is_asleep(card):
            return DeviceReading()
        places, sensors, memory = _Places(card), Sensors(card), self._memory(card)
        reasons = _throttle_reasons(places)
        clock_mhz, clock_max_mhz = read_number(places.clock), read_number(places.clock_max)
        limit_uw = sensors.read("power", _CARD_FIRST, "max")
        energy_uj = sensors.read("energy", _CARD_FIRST, "input")
        temperature = sensors.read("temp", _CHIP_FIRST, "input")
        threshold = sensors.read("temp", _CHIP_FIRST, "crit", "max")
        return DeviceReading(
            memory_total_bytes=None if memory is None else memory.total_bytes,
            memory_used_bytes=None if memory is None else memory.used_bytes,
            compute_utilization_percent=self._awake_percent(index, places),
            temperature_c=None if temperature is None else temperature / 1000,
            throttle_threshold_c=None if threshold is None else threshold / 1000,
            is_thermal_throttling=None if reasons is None else "thermal" in reasons,
            throttle_reasons=reasons,
            power_watts=self._power_watts(index, energy_uj),
            power_limit_watts=None if limit_uw is None else limit_uw / 1e6,
            clock_mhz=None if clock_mhz is None else float(clock_mhz),
            clock_max_mhz=None if clock_max_mhz is None else float(clock_max_mhz),
            energy_joules=None if energy_uj is None else energy_uj / 1e6,
        )

    def memory_info(self, index: int) -> MemoryInfo:
        """Return how much memory there is; how much is in use is told of the host's only.

        Raises:
            DeviceLostError: It is gone.
        """
        card = self._book.card(index)
        memory = self._memory(card)
        if memory is None:
            raise self._book.lost(card, "does not tell its memory any more")
        return memory

    def _memory(self, card: Card) -> MemoryInfo | None:
        if _is_unified(card):
            host = self._host_memory()
            return MemoryInfo(
                total_bytes=host.total_bytes, used_bytes=host.total_bytes - host.available_bytes
            )
        sizes = [size for size in map(read_number, _Places(card).memory) if size]
        if not sizes:
            return None
        left = read_number(card.folder / "lmem_avail_bytes")
        return MemoryInfo(total_bytes=sum(sizes), used_bytes=None if left is None else sum(sizes) - left)

    def _awake_percent(self, index: int, places: _Places) -> float | None:
        """The share of time in which the GPU did not sleep: it sleeps when it has nothing to do for milliseconds."""
        idle_per_s = self._growth(index, "idle", read_number(places.idle_ms))
        return None if idle_per_s is None else min(100.0, max(0.0, 100.0 - idle_per_s / 10))

    def _power_watts(self, index: int, energy_uj: float | None) -> float | None:
        per_s = self._growth(index, "energy", None if energy_uj is None else int(energy_uj))
        return None if per_s is None else per_s / 1e6

    def _growth(self, index: int, what: str, value: int | None) -> float | None:
        return self._growths.setdefault((index, what), Growth(self._clock)).per_s(value)


def _is_unified(card: Card) -> bool:
    return card.pci_address == _OF_THE_PROCESSOR


def _throttle_reasons(places: _Places) -> tuple[ThrottleReason, ...] | None:
    """Return what holds the clocks back, from one file for each reason."""
    if read_number(places.throttle / f"{places.prefix}{'reason_' if places.prefix else ''}status") is None:
        return None
    found: dict[ThrottleReason, None] = {}
    for file in sorted(places.throttle.glob(f"{places.prefix}reason_*")):
        name = file.name.removeprefix(f"{places.prefix}reason_")
        if name != "status" and read_number(file):
            found[_reason(name)] = None
    return tuple(found)


def _reason(name: str) -> ThrottleReason:
    if "therm" in name or name == "prochot" or name == "ratl":
        return "thermal"
    if name.startswith(("pl", "psys")) or name in {"vr_tdc", "iccmax"}:
        return "power"
    return "other"
