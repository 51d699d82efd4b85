"""Handles to device memory, and the book of those that are valid."""

from collections.abc import Iterator
from typing import Any

import msgspec

from exo.gpu.errors import FreedMemoryError
from exo.shared.types.ids import DeviceId


class DeviceMemory:
    """Memory of a device, as its backend gave it out. Worth nothing once it is given back, nor to another backend."""

    __slots__ = ("_device_id", "_size_bytes")

    def __init__(self, device_id: DeviceId, size_bytes: int) -> None:
        self._device_id = device_id
        self._size_bytes = size_bytes

    @property
    def device_id(self) -> DeviceId:
        """The device that it is of."""
        return self._device_id

    @property
    def size_bytes(self) -> int:
        """How much was asked for."""
        return self._size_bytes

    def __repr__(self) -> str:
        return f"DeviceMemory({self._device_id}, {self._size_bytes} bytes)"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind a handle: the driver's own object, and which stay of the device it is from."""

    buffer: Any
    stay: int
    """Counts how often the device came back: what it held before is lost."""


class MemoryBook:
    """The handles that are valid now."""

    def __init__(self) -> None:
        self._held: dict[DeviceMemory, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[DeviceMemory]:
        return iter(list(self._held))

    def enter(self, memory: DeviceMemory, held: Held) -> DeviceMemory:
        """Make a handle valid, and return it."""
        self._held[memory] = held
        return memory

    def of(self, memory: DeviceMemory) -> Held:
        """Return what is behind a handle.

        Raises:
            FreedMemoryError: It was given back, or is of another backend.
        """
        held = self._held.get(memory)
        if held is None:
            raise _unknown(memory)
        return held

    def strike(self, memory: DeviceMemory) -> Held:
        """Make a handle invalid, and return what was behind it.

        Raises:
            FreedMemoryError: It was given back before, or is of another backend.
        """
        held = self._held.pop(memory, None)
        if held is None:
            raise _unknown(memory)
        return held


def _unknown(memory: DeviceMemory) -> FreedMemoryError:
    return FreedMemoryError(
        f"these {memory.size_bytes} bytes of {memory.device_id} were given back, or are of another backend; "
        "allocate new memory"
    )
