"""Which devices a user lets this process see, and which of them is which for CUDA's runtime. Pure.

Source: CUDA_VISIBLE_DEVICES in the CUDA C++ Programming Guide, "Environment Variables".
"""

from collections.abc import Sequence

from exo.gpu.backends.cuda.cupy import CuPyDevice
from exo.gpu.driver import FoundDevice


def visible_devices(found: Sequence[FoundDevice], text: str | None) -> list[FoundDevice]:
    """Return what `CUDA_VISIBLE_DEVICES` leaves, in its order.

    Numbers count GPUs, of a divided one the first part; names are UUIDs or their beginnings. As CUDA does, everything
    from the first entry on that names no device is left out, and all of it if an entry comes twice.

    Args:
        found: All devices, in the order of their PCI addresses.
        text: The variable's value; None: all may be seen.
    """
    if text is None:
        return list(found)
    chips = _first_of_each_chip(found)
    kept: list[FoundDevice] = []
    for entry in text.split(","):
        device = _named(entry.strip(), found, chips)
        if device is None:
            break
        if device in kept:
            return []
        kept.append(device)
    return kept


def is_by_number(text: str | None) -> bool:
    """Whether the value counts devices, in an order that only CUDA itself knows."""
    return text is not None and text.split(",")[0].strip().isdecimal()


def matched(
    found: Sequence[FoundDevice], counted: Sequence[CuPyDevice], visible: Sequence[FoundDevice]
) -> dict[int, FoundDevice]:
    """Return which device each of the runtime's ordinals is: the same UUID, or the only one left at its address.

    Args:
        found: All devices.
        counted: What the runtime counts.
        visible: Those that the user lets this process see: of several parts at one address the first is meant.
    """
    pairs: dict[int, FoundDevice] = {}
    for device in counted:
        here = [one for one in found if one not in pairs.values() and _is_at(one, device)]
        same = [one for one in here if device.uuid is not None and (one.uuid or "").endswith(device.uuid)]
        named = [one for one in visible if one in here]
        best = same or (here if len(here) == 1 else named or here)
        if best:
            pairs[device.ordinal] = best[0]
    return pairs


def _is_at(one: FoundDevice, device: CuPyDevice) -> bool:
    if device.pci_address is None or one.pci_address is None:
        return device.uuid is not None and (one.uuid or "").endswith(device.uuid)
    return one.pci_address == device.pci_address


def _named(entry: str, found: Sequence[FoundDevice], chips: Sequence[FoundDevice]) -> FoundDevice | None:
    if entry.isdecimal():
        return chips[int(entry)] if int(entry) < len(chips) else None
    named = [one for one in found if entry and (one.uuid or "").startswith(entry)]
    return named[0] if len(named) == 1 else None


def _first_of_each_chip(found: Sequence[FoundDevice]) -> list[FoundDevice]:
    chips: dict[str | int, FoundDevice] = {}
    for one in found:
        chips.setdefault(one.pci_address or one.index, one)
    return list(chips.values())
