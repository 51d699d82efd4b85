"""The number that a device has within its node: what people, labels of metrics and allocations call it. Pure."""

import re
from collections.abc import Iterable

from exo.shared.types.devices import GPUDevice

_PARTS = re.compile(r"(\d+)")


def numbered(devices: Iterable[GPUDevice]) -> list[GPUDevice]:
    """Return a node's devices in the order of their numbers: GPUs as their drivers count them, the processor last.

    Ids are no order: those with a UUID would come in any, and `cuda:10` before `cuda:2`.
    """
    return sorted(devices, key=lambda device: (device.backend == "cpu", _natural(device.local_alias)))


def _natural(alias: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers within a text by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _PARTS.split(alias) if part]
