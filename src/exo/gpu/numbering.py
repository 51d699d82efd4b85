"""The number that a device has within its node: what people, labels of metrics and allocations call it. Pure."""

import re
from collections.abc import Iterable, Mapping

from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId

_PARTS = re.compile(r"(\d+)")


def numbered(devices: Iterable[GPUDevice]) -> list[GPUDevice]:
    """Return a node's devices in the order of their numbers: GPUs as their drivers count them, the processor last.

    Ids are no order: those with a UUID would come in any, and `cuda:10` before `cuda:2`.
    """
    return sorted(devices, key=lambda device: (device.backend == "cpu", _natural(device.local_alias)))


def with_numbers(devices: Iterable[GPUDevice]) -> list[tuple[int, GPUDevice]]:
    """Return a node's devices with their numbers, in that order: those that it gave them, else as counted here."""
    there = list(devices)
    numbers = assigned(there, {one.device_id: one.number for one in there if one.number is not None})
    following = max(numbers.values(), default=-1) + 1
    gpus = [(numbers[one.device_id], one) for one in there if one.backend != "cpu"]
    return [
        *sorted(gpus, key=lambda one: one[0]),
        *enumerate(numbered(one for one in there if one.backend == "cpu"), following),
    ]


def assigned(devices: Iterable[GPUDevice], known: Mapping[DeviceId, int]) -> dict[DeviceId, int]:
    """Return the numbers of a node's GPUs. One that has a number keeps it, whatever others come or go.

    Drivers keep counting a GPU that is gone, and so does this: without `cuda:1`, `cuda:2` stays 2. Otherwise what is
    told of one GPU would be taken for the story of another. Those of a second driver follow those of the first; where
    there is no room left between them, a new one comes behind all.

    Args:
        devices: Those that are there; processors among them have no number of their own.
        known: Numbers that were given before, also to GPUs that are away.
    """
    numbers = dict(known)
    firsts: dict[str, int] = {}
    gpus = [one for one in numbered(devices) if one.backend != "cpu"]
    for one in gpus:
        driver, own = _place(one)
        if own is not None and one.device_id in known and known[one.device_id] >= own:
            firsts.setdefault(driver, known[one.device_id] - own)
    for one in gpus:
        if one.device_id in numbers:
            continue
        driver, own = _place(one)
        taken = set(numbers.values())
        behind = max(taken, default=-1) + 1
        wanted = firsts.setdefault(driver, behind) + own if own is not None else behind
        numbers[one.device_id] = wanted if wanted not in taken else behind
    return numbers


def _place(device: GPUDevice) -> tuple[str, int | None]:
    """Return which driver counts it, and as which."""
    driver, _, own = device.local_alias.rpartition(":")
    return driver, int(own) if own.isdecimal() else None


def _natural(alias: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers within a text by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _PARTS.split(alias) if part]
