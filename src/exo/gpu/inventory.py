"""What a node has: devices that are used, devices that are not with the reason, and backends that are missing. Pure."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from exo.gpu.backend import GPUBackend
from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId


class MissingBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that does not work here, and what to do about it."""

    name: Backend
    reason: str
    install_command: str = ""
    """What brings what is missing; empty where the reason says all."""
    is_late: bool = False
    """It has not answered yet, and may still come."""
    is_absent: bool = False
    """Nothing speaks for such a device being here: no news for who starts a node."""


class UsedDevice(msgspec.Struct, frozen=True):
    """A device and what reaches it."""

    backend: GPUBackend
    device: GPUDevice


class RefusedDevice(msgspec.Struct, frozen=True):
    """A device that is there and is not used.

    Attributes:
        device: What it is.
        kind: Another backend has it, its check has not ended, it computed wrongly, or its driver hung meanwhile.
        reason: The same for people.
    """

    device: GPUDevice
    kind: Literal["duplicate", "unchecked", "wrong", "hanging"]
    reason: str


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a look."""

    used: tuple[UsedDevice, ...] = ()
    """By device id."""
    refused: tuple[RefusedDevice, ...] = ()
    missing: tuple[MissingBackend, ...] = ()

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """Those that are used, by id."""
        return tuple(one.device for one in self.used)

    def why_not(self, device_id: DeviceId) -> str | None:
        """Return why a device is not used; None for one that is, or is not there."""
        return next((one.reason for one in self.refused if one.device.device_id == device_id), None)


def signature(device: GPUDevice) -> tuple[object, ...]:
    """Return what makes a device another one when it changes. Its clock, for one, does not."""
    return (
        device.device_id,
        device.local_alias,
        device.name,
        device.memory_kind,
        device.memory_total_bytes,
        device.uuid,
        device.pci_address,
        device.driver_version,
        device.support_level,
        device.measured_memory_bandwidth_bytes_per_s,
        device.measured_flops_per_s,
    )


def settle_claims(
    claims: Sequence[tuple[GPUBackend, Sequence[GPUDevice]]],
) -> tuple[list[UsedDevice], list[RefusedDevice]]:
    """Give each device to the first backend that claims it: the same UUID or PCI address is the same device.

    Parts of one GPU share its address, so that devices of one backend never take each other's place.

    Args:
        claims: What each backend found, preferred first.
    """
    used: list[UsedDevice] = []
    refused: list[RefusedDevice] = []
    owners: dict[tuple[str, str], UsedDevice] = {}
    for backend, devices in claims:
        taken: list[UsedDevice] = []
        for device in devices:
            owner = next((owners[mark] for mark in _marks(device) if mark in owners), None)
            if owner is None:
                taken.append(UsedDevice(backend, device))
                continue
            reason = f"{owner.backend.name} has it already, as {owner.device.local_alias}"
            refused.append(RefusedDevice(device, "duplicate", reason))
        owners |= {mark: one for one in taken for mark in _marks(one.device)}
        used += taken
    return used, refused


def _marks(device: GPUDevice) -> Iterable[tuple[str, str]]:
    if device.uuid:
        yield "uuid", device.uuid.strip().lower().removeprefix("gpu-")
    if device.pci_address:
        yield "pci", _pci(device.pci_address)


def _pci(address: str) -> str:
    """Return an address as all drivers would write it: some write the domain with four digits, some with eight."""
    parts = address.strip().lower().split(":")
    if len(parts) == 2:
        parts = ["0", *parts]
    return ":".join([parts[0].lstrip("0"), *parts[1:]])
