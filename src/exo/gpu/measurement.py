"""What a device really reads and computes in a second: a moment's work, for where nobody tells.

Each is taken from the difference of a large and a small piece of work, so that what every call costs anyhow does not
count, and from the fastest of some runs, so that what else goes on at the time counts little. A processor's bandwidth
is that of a row times a matrix that no cache holds: reading weights is what it does when it generates tokens. A GPU's
is that of a copy within its memory, which reads and writes every byte.
"""

import contextlib
import math
from array import array
from collections.abc import Awaitable, Callable

import anyio

from exo.gpu.backend import GPUBackend
from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.memory import DeviceMemory
from exo.shared.errors import ExoError
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId

MIB = 1024**2
READ_BYTES_MAX = 256 * MIB
"""More than the largest common cache; a processor whose cache holds it is measured too fast."""
COPIED_BYTES_MAX = 512 * MIB
MEMORY_SHARE = 1 / 16
"""Of what is free, so much is taken for a moment at most."""
_SMALL_SHARE = 8
_FREE_S = 2.0
_LEAST_BYTES = 16 * MIB
_ROW = 1024
_RUNS_MIN, _RUNS_MAX = 3, 10
_RUNS_S = 0.1
"""Short runs are repeated for so long: the fastest of some was not held up by anything."""
_SIDES = (512, 1024, 2048, 4096)
"""Of square matrices: larger until one takes long enough to be measured."""
_ENOUGH_S = 0.02
_LONG_S = 0.5
"""Whatever takes so long is measured well enough by itself."""
_LEAST_S = 0.0005
"""A difference below this is as likely the noise of the calls."""
_CHUNK = array("f", [0.5]) * (MIB // 4)
"""Numbers, not what lies there by chance: some processors compute with tiny ones many times slower."""

Clock = Callable[[], float]


async def measure_bandwidth(backend: GPUBackend, device: GPUDevice, *, clock: Clock) -> float | None:
    """Return the bytes per second that a device reads, or reads and writes; None: it cannot be measured now.

    Args:
        backend: Reaches the device.
        device: The device.
        clock: Monotonic seconds.

    Raises:
        GPUError: As `GPUBackend` raises it.
    """
    memory = await backend.get_device_memory_info(device.device_id)
    free_bytes = max(0, memory.total_bytes - (memory.used_bytes or 0))
    most = READ_BYTES_MAX if device.backend == "cpu" else COPIED_BYTES_MAX
    size_bytes = min(most, int(free_bytes * MEMORY_SHARE)) // MIB * MIB
    if size_bytes < _LEAST_BYTES:
        return None
    if device.backend == "cpu":
        return await _reading(backend, device.device_id, size_bytes, clock)
    return await _copying(backend, device.device_id, size_bytes, clock)


async def measure_compute(
    backend: GPUBackend, device_id: DeviceId, precision: Precision, *, clock: Clock
) -> float | None:
    """Return the operations per second of products of square matrices; None: it is too fast or slow to measure.

    Args:
        backend: Reaches the device.
        device_id: The device.
        precision: Of the matrices: float32 or float16.
        clock: Monotonic seconds.

    Raises:
        NotComputingError: The device has no arithmetic of this precision.
        GPUError: As `GPUBackend` raises it.
    """
    before: tuple[int, float] | None = None
    for side in _SIDES:
        took_s = await _square(backend, device_id, side, precision, clock)
        if before is not None and (took_s >= _ENOUGH_S or side == _SIDES[-1]):
            return _by_difference(2 * side**3, took_s, 2 * before[0] ** 3, before[1])
        if took_s >= _LONG_S:
            return _rate(2 * side**3, took_s)
        before = (side, took_s)
    return None


def _by_difference(large: float, large_s: float, small: float, small_s: float) -> float | None:
    """Return the rate of what the large piece has more than the small one; of all of it, where that cannot be true.

    A small piece that took most of the large one's time was held up: what it was subtracted from would seem too fast.
    """
    if small_s > large_s / 2 and large_s >= _ENOUGH_S:
        return _rate(large, large_s)
    return _rate(large - small, large_s - small_s)


async def _reading(backend: GPUBackend, device_id: DeviceId, size_bytes: int, clock: Clock) -> float | None:
    columns = size_bytes // 4 // _ROW
    async with _Held(backend, device_id) as held:
        row, matrix = await held.filled(4 * _ROW), await held.filled(size_bytes)

        async def read(part: int) -> None:
            shape = MatrixShape(rows=1, inner=_ROW, columns=columns // part)
            await backend.deallocate(await backend.matrix_multiply(row, matrix, shape, "float32"))

        large_s = await _fastest(lambda: read(1), clock)
        small_s = await _fastest(lambda: read(_SMALL_SHARE), clock)
    # The small one may fit a cache, which makes it faster, and the whole seem a little slower than it is.
    return _by_difference(size_bytes, large_s, size_bytes / _SMALL_SHARE, small_s)


async def _copying(backend: GPUBackend, device_id: DeviceId, size_bytes: int, clock: Clock) -> float | None:
    async with _Held(backend, device_id) as held:
        source, destination = await held.filled(size_bytes // 2), await held.filled(size_bytes // 2)

        async def copy(part: int) -> None:
            await backend.copy_device_to_device(source, destination, size_bytes=size_bytes // 2 // part)
            await backend.synchronize(device_id)

        large_s = await _fastest(lambda: copy(1), clock)
        small_s = await _fastest(lambda: copy(_SMALL_SHARE), clock)
    return _by_difference(size_bytes, large_s, size_bytes / _SMALL_SHARE, small_s)


async def _square(
    backend: GPUBackend, device_id: DeviceId, side: int, precision: Precision, clock: Clock
) -> float:
    size_bytes = side * side * (4 if precision == "float32" else 2)
    shape = MatrixShape(rows=side, inner=side, columns=side)
    async with _Held(backend, device_id) as held:
        matrix = await held.filled(size_bytes)

        async def multiply() -> None:
            product = await backend.matrix_multiply(matrix, matrix, shape, precision)
            await backend.synchronize(device_id)
            await backend.deallocate(product)

        return await _fastest(multiply, clock)


async def _fastest(work: Callable[[], Awaitable[None]], clock: Clock) -> float:
    """Return the seconds of the fastest run; the first does not count, in which libraries make themselves ready."""
    await work()
    least_s = math.inf
    started_s = clock()
    for run in range(_RUNS_MAX):
        begun_s = clock()
        if run >= _RUNS_MIN and begun_s - started_s >= _RUNS_S:
            break
        await work()
        least_s = min(least_s, clock() - begun_s)
    return least_s


def _rate(amount: float, took_s: float) -> float | None:
    return amount / took_s if took_s >= _LEAST_S else None


class _Held:
    """Memory of a device that is given back in the end, whatever happens."""

    def __init__(self, backend: GPUBackend, device_id: DeviceId) -> None:
        self._backend = backend
        self._device_id = device_id
        self._held: list[DeviceMemory] = []

    async def __aenter__(self) -> "_Held":
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.move_on_after(_FREE_S, shield=True):
            for memory in self._held:
                with contextlib.suppress(ExoError):
                    await self._backend.deallocate(memory)

    async def filled(self, size_bytes: int) -> DeviceMemory:
        """Return new memory, full of numbers of which both halves of each are numbers as well."""
        memory = await self._backend.allocate(self._device_id, size_bytes)
        self._held.append(memory)
        chunk = memoryview(_CHUNK).cast("B")
        for start in range(0, size_bytes, len(chunk)):
            part = chunk[: min(len(chunk), size_bytes - start)]
            await self._backend.copy_to_device(memory, part, offset_bytes=start)
        return memory
