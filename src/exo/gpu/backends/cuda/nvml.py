"""Watches NVIDIA's GPUs through their management library: which there are, and how each is."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from loguru import logger

from exo.gpu.backends.cuda.nvml_device import MEMORY_CLOCK, SM_CLOCK, WatchedDevice
from exo.gpu.backends.cuda.nvml_library import NvmlDevice, NvmlLibrary
from exo.gpu.driver import FoundDevice
from exo.gpu.errors import DeviceLostError, DeviceNotFoundError
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

_MIG_ON = 1


class NvidiaMonitor:
    """NVML's devices: GPUs, and in place of a GPU that is divided (MIG) its parts.

    A device keeps its index while this is open, also when others come and go.

    Args:
        clock: Monotonic seconds.
        host_memory: What a GPU without memory of its own has.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._clock = clock
        self._host_memory = host_memory
        self._library = NvmlLibrary(clock)
        self._watched: dict[int, WatchedDevice] = {}
        self._indices: dict[str, int] = {}
        self._complaints: set[str] = set()

    @property
    def driver_version(self) -> str | None:
        """Of the NVIDIA driver, such as 580.95.05."""
        return self._library.driver_version

    @property
    def cuda_version(self) -> int | None:
        """The newest CUDA that the driver knows: 12040 is 12.4."""
        return self._library.cuda_version

    @property
    def is_open(self) -> bool:
        """Whether it may be asked."""
        return self._library.is_open

    def open(self) -> None:
        """Load the library and reach the driver.

        Raises:
            BackendUnavailableError: Something is missing or too old; the message says what to do.
        """
        self._library.open()

    def close(self) -> None:
        """Leave the library. May be called twice."""
        for device in self._watched.values():
            device.close()
        self._watched.clear()
        self._indices.clear()
        self._library.close()

    def find_devices(self) -> Sequence[FoundDevice]:
        """Return the devices that are there now, in NVML's order, which is that of their PCI addresses.

        Raises:
            DeviceLostError: The driver is gone.
        """
        found: list[FoundDevice] = []
        for position in range(self._library.ask("nvmlDeviceGetCount") or 0):
            found += self._found_at(position)
        return found

    def read(self, index: int) -> DeviceReading:
        """Return a device's telemetry.

        Raises:
            DeviceLostError: It does not answer.
        """
        return self._device(index).read()

    def memory_info(self, index: int) -> MemoryInfo:
        """Return how much memory there is, and how much is in use.

        Raises:
            DeviceLostError: It does not answer.
        """
        return self._device(index).memory()

    def _device(self, index: int) -> WatchedDevice:
        device = self._watched.get(index)
        if device is None:
            raise DeviceNotFoundError(f"there is no NVIDIA device {index}: look for devices again")
        return device

    def _found_at(self, position: int) -> list[FoundDevice]:
        """Return the device there, or its parts; nothing, with a word in the log, if it cannot be used."""
        uuid = self._uuid_of(position)
        if uuid is None:
            return []
        chip = NvmlDevice(uuid)
        try:
            mode: Any = self._library.ask_device(chip, "nvmlDeviceGetMigMode")
            if mode is None or mode[0] != _MIG_ON:
                described = self._described(chip, chip, None)
                return [] if described is None else [described]
            parts = self._parts_of(chip)
        except DeviceLostError as error:
            self._complain(f"a GPU is left out: {error.message}")
            return []
        if not parts:
            self._complain(
                f"the GPU {uuid} is to be divided (MIG), but has no parts: make some with nvidia-smi mig"
            )
        return parts

    def _uuid_of(self, position: int) -> str | None:
        try:
            return self._library.call(
                "nvmlDeviceGetUUID", self._library.call("nvmlDeviceGetHandleByIndex", position)
            )
        except Exception as error:
            if self._library.error_code(error) is None:
                raise
            self._complain(f"GPU {position} is left out: {error}")
            return None

    def _parts_of(self, chip: NvmlDevice) -> list[FoundDevice]:
        found: list[FoundDevice] = []
        for place in range(self._library.ask_device(chip, "nvmlDeviceGetMaxMigDeviceCount") or 0):
            try:
                handle: Any = self._library.call(
                    "nvmlDeviceGetMigDeviceHandleByIndex", self._library.handle_of(chip), place
                )
                part = NvmlDevice(self._library.call("nvmlDeviceGetUUID", handle))
            except Exception as error:
                if self._library.error_code(error) is None:
                    raise
                continue  # Places between parts are empty.
            instance = self._library.ask_device(part, "nvmlDeviceGetGpuInstanceId")
            described = self._described(part, chip, instance)
            found += [] if described is None else [described]
        return found

    def _described(
        self, itself: NvmlDevice, chip: NvmlDevice, gpu_instance: int | None
    ) -> FoundDevice | None:
        library = self._library
        memory: Any = library.ask_device(itself, "nvmlDeviceGetMemoryInfo")
        is_unified = memory is None and library.is_unsupported(itself, "nvmlDeviceGetMemoryInfo")
        if memory is None and not is_unified:
            self._complain(
                f"the GPU {itself.uuid} is left out: it does not tell its memory ({itself.last_failure})"
            )
            return None
        capability: Any = library.ask_device(chip, "nvmlDeviceGetCudaComputeCapability")
        attributes: Any = library.ask_device(itself, "nvmlDeviceGetAttributes_v2")
        pci: Any = library.ask_device(chip, "nvmlDeviceGetPciInfo")
        clock_mhz = library.ask_device(chip, "nvmlDeviceGetMaxClockInfo", SM_CLOCK)
        found = FoundDevice(
            index=self._indices.setdefault(itself.uuid, len(self._indices)),
            name=library.ask_device(itself, "nvmlDeviceGetName") or "NVIDIA GPU",
            vendor="nvidia",
            memory_kind="unified" if is_unified else "vram",
            memory_total_bytes=self._host_memory().total_bytes if memory is None else int(memory.total),
            uuid=itself.uuid,
            pci_address=None if pci is None else pci_address(_text(pci.busId)),
            compute_units=None if attributes is None else int(attributes.multiprocessorCount) or None,
            compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
            clock_mhz=None if clock_mhz is None else float(clock_mhz),
            # A part has a share that nobody tells.
            memory_bandwidth_bytes_per_s=self._bandwidth(chip) if itself is chip else None,
            driver_version=library.driver_version,
        )
        self._watch(found, itself, chip, gpu_instance)
        return found

    def _watch(
        self, found: FoundDevice, itself: NvmlDevice, chip: NvmlDevice, gpu_instance: int | None
    ) -> None:
        known = self._watched.get(found.index)
        if known is not None:
            known.found = found
            return
        # Each part has the chip's handle to itself: its thread is another than those of the other parts.
        own_chip = itself if itself is chip else NvmlDevice(chip.uuid)
        self._watched[found.index] = WatchedDevice(
            self._library,
            found,
            itself,
            own_chip,
            gpu_instance,
            clock=self._clock,
            host_memory=self._host_memory,
        )

    def _bandwidth(self, chip: NvmlDevice) -> float | None:
        """Bytes per second in theory: NVML's memory clock counts half of the transfers of a line."""
        clock_mhz = self._library.ask_device(chip, "nvmlDeviceGetMaxClockInfo", MEMORY_CLOCK)
        width_bits = self._library.ask_device(chip, "nvmlDeviceGetMemoryBusWidth")
        return clock_mhz * 1e6 * 2 * width_bits / 8 if clock_mhz and width_bits else None

    def _complain(self, message: str) -> None:
        if message not in self._complaints:
            self._complaints.add(message)
            logger.warning("NVIDIA: {}", message)


def pci_address(text: str) -> str:
    """Return an address as CUDA and Linux write it: `00000000:0A:00.0` is `0000:0a:00.0`."""
    domain, separator, rest = text.lower().partition(":")
    return f"{domain[-4:]}{separator}{rest}"


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
