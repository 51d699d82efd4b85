"""A node's memory of the devices that were seen to compute right, so that its next start need not wait for that."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from loguru import logger

from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId

REGISTRY_FILE = "gpu_registry.json"
"""In the data directory."""
_FORMAT = 1


class RegisteredDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What a device was when it was seen to compute right. Whatever of it changes, it has to show that again."""

    device_id: DeviceId
    backend: Backend
    name: str
    memory_total_bytes: int
    uuid: str | None = None
    pci_address: str | None = None
    driver_version: str | None = None
    exo_version: str

    @staticmethod
    def of(device: GPUDevice, exo_version: str) -> "RegisteredDevice":
        """Return a device's entry."""
        return RegisteredDevice(
            device_id=device.device_id,
            backend=device.backend,
            name=device.name,
            memory_total_bytes=device.memory_total_bytes,
            uuid=device.uuid,
            pci_address=device.pci_address,
            driver_version=device.driver_version,
            exo_version=exo_version,
        )


class Measurement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured on a device: see `GPUDevice.measured_flops_per_s` for the precision."""

    memory_bandwidth_bytes_per_s: float | None = None
    flops_per_s: float | None = None


class _Measured(msgspec.Struct, frozen=True, kw_only=True):
    device: RegisteredDevice
    measurement: Measurement


class _Registry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    format: int
    devices: tuple[RegisteredDevice, ...]
    measured: tuple[_Measured, ...] = ()


class DeviceRegistry:
    """The file. Only ever a help: without it everything works, a little later.

    Args:
        file: Where it is.
        exo_version: Another release may check devices in another way.
    """

    def __init__(self, file: Path, exo_version: str) -> None:
        self._file = file
        self._exo_version = exo_version
        self._known: frozenset[RegisteredDevice] | None = None
        self._measured: dict[RegisteredDevice, Measurement] = {}
        self._is_readable = False

    def knows(self, device: GPUDevice) -> bool:
        """Say whether this very device, with this very driver, was seen to compute right. Reads the file once."""
        return RegisteredDevice.of(device, self._exo_version) in self._read()

    def remember(self, devices: Iterable[GPUDevice]) -> None:
        """Replace what the file says by these devices. Where it cannot be written, that is logged once."""
        entries = sorted(
            (RegisteredDevice.of(one, self._exo_version) for one in devices),
            key=lambda one: one.device_id,
        )
        if frozenset(entries) == self._read() and self._is_readable:
            return
        self._is_readable = True
        self._known = frozenset(entries)
        self._write()

    def measured(self, device: GPUDevice) -> Measurement | None:
        """Return what was measured on this very device, by this release; None: nothing was."""
        self._read()
        return self._measured.get(RegisteredDevice.of(device, self._exo_version))

    def note_measured(self, device: GPUDevice, measurement: Measurement) -> None:
        """Keep what was measured, until the device, its driver or exo is another."""
        entry = RegisteredDevice.of(device, self._exo_version)
        self._read()
        # What was measured on the device when it was another one is of no use any more.
        self._measured = {
            one: value for one, value in self._measured.items() if one.device_id != entry.device_id
        }
        self._measured[entry] = measurement
        self._is_readable = True
        self._write()

    def _write(self) -> None:
        known = sorted(self._known or (), key=lambda one: one.device_id)
        measured = [
            _Measured(device=one, measurement=value)
            for one, value in sorted(self._measured.items(), key=lambda one: one[0].device_id)
        ]
        registry = _Registry(format=_FORMAT, devices=tuple(known), measured=tuple(measured))
        content = msgspec.json.format(msgspec.json.encode(registry))
        temporary = self._file.with_name(f"{self._file.name}.new")
        try:
            temporary.write_bytes(content)
            temporary.replace(self._file)
        except OSError as error:
            logger.warning(
                "cannot write {}, so that the next start checks all devices: {}", self._file, error.strerror
            )
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _read(self) -> frozenset[RegisteredDevice]:
        if self._known is None:
            self._known = frozenset(self._entries())
        return self._known

    def _entries(self) -> tuple[RegisteredDevice, ...]:
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=_Registry)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            logger.warning("{} cannot be read and is made anew: {}", self._file, error)
            return ()
        self._is_readable = found.format == _FORMAT
        if self._is_readable:
            self._measured = {one.device: one.measurement for one in found.measured}
        return found.devices if self._is_readable else ()
