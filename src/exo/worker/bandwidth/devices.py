"""Measures the way between two devices of this node, through their backends' own copies."""

from collections.abc import Callable
from statistics import median

import anyio

from exo.gpu.backend import GPUBackend
from exo.gpu.memory import DeviceMemory
from exo.shared.errors import ExoError
from exo.shared.types.devices import GPUDevice
from exo.worker.bandwidth.errors import NotMeasurableError
from exo.worker.bandwidth.estimate import Estimate, Sample, TransferLimits, estimate, next_size_bytes

DEVICE_LIMITS = TransferLimits(first_bytes=1024 * 1024, bytes_max=256 * 1024 * 1024, wanted_s=0.02)
"""Devices copy fast, and their memory is wanted: less time, and never more than a part of what is free."""
_OVER_THE_HOST_BYTES_MAX = 64 * 1024 * 1024
_SHARE_OF_FREE = 8
_SMALL_BYTES = 4096
_SMALL_COUNT = 7


async def measure_devices(
    source: tuple[GPUBackend, GPUDevice],
    dest: tuple[GPUBackend, GPUDevice],
    *,
    clock: Callable[[], float],
    limits: TransferLimits = DEVICE_LIMITS,
) -> Estimate:
    """Copy from one device to the other and take the time; all memory is given back, whatever happens.

    Devices of one backend copy as the backend does it, directly where the hardware can; others over the host.

    Args:
        source: The device to copy from, with its backend.
        dest: The device to copy to, with its backend.
        clock: Seconds, as fine as there is.
        limits: How far to go.

    Raises:
        NotMeasurableError: There is no room, or the copies take no time.
        ExoError: A device fails.
    """
    room_bytes = min([await _room_bytes(*source), await _room_bytes(*dest)])
    if room_bytes < limits.first_bytes:
        raise NotMeasurableError(
            f"there is too little memory free on {source[1].local_alias} or {dest[1].local_alias} to measure"
        )
    bytes_max = min(limits.bytes_max, room_bytes)
    if source[0] is not dest[0]:
        bytes_max = min(bytes_max, max(limits.first_bytes, _OVER_THE_HOST_BYTES_MAX))
    held: list[tuple[GPUBackend, DeviceMemory]] = []
    try:
        buffers: list[DeviceMemory] = []
        for backend, device in (source, dest):
            buffers.append(await backend.allocate(device.device_id, bytes_max))
            held.append((backend, buffers[-1]))
        # What was never written may not be there: the first use of memory is no copy.
        await _copy(source, dest, buffers, bytes_max)
        small = [await _timed(source, dest, buffers, _SMALL_BYTES, clock) for _ in range(_SMALL_COUNT)]
        asking_s = median(one.duration_s for one in small)
        size_bytes = min(limits.first_bytes, bytes_max)
        while True:
            sample = await _timed(source, dest, buffers, size_bytes, clock)
            larger_bytes = next_size_bytes(size_bytes, sample, limits)
            if larger_bytes is None or size_bytes == bytes_max:
                break
            size_bytes = min(larger_bytes, bytes_max)
        more = [await _timed(source, dest, buffers, size_bytes, clock) for _ in range(limits.count - 1)]
    finally:
        await _free(held)
    # A copy goes one way: what a small one takes is the latency, not half of it. The large ones take that as well.
    samples = [Sample(one.size_bytes, one.duration_s - asking_s) for one in (sample, *more)]
    found = estimate(samples, [2 * one.duration_s for one in small])
    if found is None:
        raise NotMeasurableError(
            f"copies from {source[1].local_alias} to {dest[1].local_alias} take no time that could be measured"
        )
    return found


async def _room_bytes(backend: GPUBackend, device: GPUDevice) -> int:
    memory = await backend.get_device_memory_info(device.device_id)
    if memory.used_bytes is None:
        return 0
    return (memory.total_bytes - memory.used_bytes) // _SHARE_OF_FREE


async def _timed(
    source: tuple[GPUBackend, GPUDevice],
    dest: tuple[GPUBackend, GPUDevice],
    buffers: list[DeviceMemory],
    size_bytes: int,
    clock: Callable[[], float],
) -> Sample:
    begun_s = clock()
    await _copy(source, dest, buffers, size_bytes)
    return Sample(size_bytes, clock() - begun_s)


async def _copy(
    source: tuple[GPUBackend, GPUDevice],
    dest: tuple[GPUBackend, GPUDevice],
    buffers: list[DeviceMemory],
    size_bytes: int,
) -> None:
    if source[0] is dest[0]:
        await source[0].copy_device_to_device(buffers[0], buffers[1], size_bytes=size_bytes)
    else:
        data = await source[0].copy_from_device(buffers[0], size_bytes=size_bytes)
        await dest[0].copy_to_device(buffers[1], data)
    # A copy may only have been begun.
    await source[0].synchronize(source[1].device_id)
    await dest[0].synchronize(dest[1].device_id)


async def _free(held: list[tuple[GPUBackend, DeviceMemory]]) -> None:
    with anyio.CancelScope(shield=True):
        for backend, memory in held:
            try:
                await backend.deallocate(memory)
            except ExoError:
                continue  # What is wrong with the device has been said.
