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


def with_numbers(devices: Iterable[GPUDevice]) -> list[tuple[int, GPUDevice]]:
    """Return a node's devices with their numbers, in that order.

    Drivers keep counting a GPU that is gone, and so does this: without `cuda:1`, `cuda:2` stays 2. Otherwise what is
    told of one GPU would be taken for the story of another. Those of a second driver follow those of the first.
    """
    found: list[tuple[int, GPUDevice]] = []
    first = following = 0
    driver = None
    for device in numbered(devices):
        name, _, own = device.local_alias.rpartition(":")
        if name != driver:
            driver, first = name, following
        number = max(following, first + int(own) if own.isdecimal() else following)
        found.append((number, device))
        following = number + 1
    return found


def _natural(alias: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers within a text by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _PARTS.split(alias) if part]
