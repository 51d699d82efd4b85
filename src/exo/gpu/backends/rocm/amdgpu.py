"""Watches AMD's GPUs through the files of the kernel's driver amdgpu: no library and no rights are needed for them.

Source: "drm/amdgpu AMDgpu driver" in https://docs.kernel.org/gpu/amdgpu/.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from exo.gpu.backends.card_book import CardBook
from exo.gpu.backends.rocm import kfd
from exo.gpu.backends.rocm.amd_smi import AmdSmi
from exo.gpu.backends.rocm.gpu_metrics import throttle_reasons
from exo.gpu.backends.rocm.kfd import KfdNode
from exo.gpu.backends.sysfs import (
    PCI_IDS,
    SYSFS,
    Card,
    Sensors,
    is_asleep,
    read_bytes,
    read_lines,
    read_number,
    read_text,
)
from exo.gpu.driver import FoundDevice
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

_HOTTEST_FIRST = ("junction", "edge", "")
"""Clocks are held back for the hottest spot; older cards and processors have one sensor only."""


class AmdgpuWatcher:
    """The cards of amdgpu.

    Args:
        sysfs: Where the kernel's files are.
        pci_ids: Lists of names.
        host_memory: What a GPU that is one with the processor may use of the host's.
    """

    def __init__(
        self,
        *,
        sysfs: Path = SYSFS,
        pci_ids: tuple[Path, ...] = PCI_IDS,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._sysfs = sysfs
        self._book = CardBook("AMD", "1002", ("amdgpu",), sysfs=sysfs, pci_ids=pci_ids)
        self._host_memory = host_memory
        self._smi = AmdSmi()
        self._nodes: dict[str, KfdNode] = {}
        self.is_open = False

    def open(self) -> None:
        """Look whether there is a card.

        Raises:
            BackendUnavailableError: There is none.
        """
        self._book.check()
        self._smi.open()
        self.is_open = True

    def close(self) -> None:
        """Leave it. May be called twice."""
        self.is_open = False
        self._smi.close()
        self._book.clear()

    def find_devices(self) -> Sequence[FoundDevice]:
        """Return the cards that are there now, in the order of their PCI addresses."""
        self._nodes = kfd.nodes(self._sysfs)
        found: list[FoundDevice] = []
        for index, card in self._book.look():
            memory = self._memory(card)
            if memory is not None:
                found.append(self._described(index, card, memory))
        return found

    def read(self, index: int) -> DeviceReading:
        """Return a card's telemetry.

        Raises:
            DeviceLostError: It does not answer.
        """
        card = self._book.card(index)
        if is_asleep(card):
            return DeviceReading()
        memory = self._memory(card)
        sensors = Sensors(card)
        temperature_c = _thousandth(sensors.read("temp", _HOTTEST_FIRST, "input"))
        busy = read_number(card.device / "gpu_busy_percent")
        if memory is None and temperature_c is None and busy is None:
            raise self._book.lost(card, "answers nothing")
        power_uw = sensors.read("power", ("PPT", "slowPPT", ""), "average", "input")
        limit_uw = sensors.read("power", ("PPT", "slowPPT", ""), "cap")
        clock_hz = sensors.read("freq", ("sclk",), "input")
        states = _states(card)
        corrected_count, uncorrected_count = self._memory_errors(card)
        reasons = throttle_reasons(read_bytes(card.device / "gpu_metrics"))
        node = self._nodes.get(card.pci_address)
        return DeviceReading(
            memory_total_bytes=None if memory is None else memory.total_bytes,
            memory_used_bytes=None if memory is None else memory.used_bytes,
            compute_utilization_percent=None if busy is None else float(busy),
            temperature_c=temperature_c,
            throttle_threshold_c=_thousandth(sensors.read("temp", _HOTTEST_FIRST, "crit")),
            is_thermal_throttling=None if reasons is None else "thermal" in reasons,
            throttle_reasons=reasons,
            power_watts=None if power_uw is None else power_uw / 1e6,
            power_limit_watts=None if limit_uw is None else limit_uw / 1e6,
            clock_mhz=states[0] if clock_hz is None else clock_hz / 1e6,
            clock_max_mhz=states[1],
            ecc_corrected_count=corrected_count,
            ecc_uncorrected_count=uncorrected_count,
            processes=None if node is None else kfd.processes(self._sysfs, node.gpu_id),
        )

    def memory_info(self, index: int) -> MemoryInfo:
        """Return how much memory there is, and how much is in use.

        Raises:
            DeviceLostError: It does not answer.
        """
        card = self._book.card(index)
        memory = self._memory(card)
        if memory is None:
            raise self._book.lost(card, "does not tell its memory any more")
        return memory

    def _is_unified(self, card: Card) -> bool:
        node = self._nodes.get(card.pci_address)
        return node is not None and node.has_processor

    def _memory(self, card: Card) -> MemoryInfo | None:
        total, used = (read_number(card.device / f"mem_info_vram_{name}") for name in ("total", "used"))
        if total is None:
            return None
        if not self._is_unified(card):
            return MemoryInfo(total_bytes=total, used_bytes=used)
        shared, shared_used = (
            read_number(card.device / f"mem_info_gtt_{name}") for name in ("total", "used")
        )
        if shared is None or shared_used is None or used is None:
            return MemoryInfo(total_bytes=total, used_bytes=used)
        # Of what it shares with the host no more is free than the host has left.
        shared_free = min(shared - shared_used, self._host_memory().available_bytes)
        return MemoryInfo(total_bytes=total + shared, used_bytes=used + shared - shared_free)

    def _memory_errors(self, card: Card) -> tuple[int | None, int | None]:
        counts = {
            line[0]: line[1] for line in read_lines(card.device / "ras" / "umc_err_count") if len(line) == 2
        }
        if not counts:
            return self._smi.memory_errors(card.pci_address)
        corrected, uncorrected = (counts.get(name, "") for name in ("ce:", "ue:"))
        return (
            int(corrected) if corrected.isdecimal() else None,
            int(uncorrected) if uncorrected.isdecimal() else None,
        )

    def _described(self, index: int, card: Card, memory: MemoryInfo) -> FoundDevice:
        node = self._nodes.get(card.pci_address)
        unique_id = read_text(card.device / "unique_id")
        return FoundDevice(
            index=index,
            name=self._book.name(
                card, read_text(card.device / "product_name") or self._smi.name(card.pci_address)
            ),
            vendor="amd",
            memory_kind="unified" if self._is_unified(card) else "vram",
            memory_total_bytes=memory.total_bytes,
            uuid=f"GPU-{unique_id}" if unique_id and unique_id.strip("0") else None,
            pci_address=card.pci_address,
            compute_units=None if node is None else node.compute_units,
            compute_capability=None if node is None else node.architecture,
            clock_mhz=_states(card)[1],
            driver_version=read_text(self._sysfs / "module" / "amdgpu" / "version"),
        )


def _states(card: Card) -> tuple[float | None, float | None]:
    """Return the graphics clock (now, at most) in MHz, from lines such as `1: 2482Mhz *`."""
    now: float | None = None
    most: float | None = None
    for line in read_lines(card.device / "pp_dpm_sclk"):
        digits = line[1].lower().removesuffix("mhz") if len(line) > 1 else ""
        if digits.isdecimal():
            most = max(most or 0.0, float(digits))
            now = float(digits) if line[-1] == "*" else now
    return now, most


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000
