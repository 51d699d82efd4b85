"""Has a device compute something, and sees whether the answer is right.

The product of two matrices of small whole numbers is exact in float32, and is checked with R. Freivalds' algorithm
("Probabilistic machines can use less running time", 1977): A (B x) has to be C x for a random x. That takes a fraction
of the product's work, and a wrong product passes with a probability below one in a million. New numbers each time: an
answer that was left over from the check before is no answer.
"""

import random
from array import array
from collections.abc import Sequence
from operator import mul

import anyio

from exo.gpu.backend import GPUBackend
from exo.gpu.driver import MatrixShape
from exo.gpu.errors import NotComputingError
from exo.gpu.failures import Failure, of_exception
from exo.gpu.health import CheckFailed, CheckPassed
from exo.gpu.memory import DeviceMemory
from exo.shared.errors import ExoError
from exo.shared.types.ids import DeviceId

SIDE = 70
"""Rows and columns: small enough to take no time, and no multiple of the tiles that GPUs compute in."""
_LARGEST = 8
_FACTOR_MAX = 2**20
_FLOAT_BYTES = 4
_FREE_S = 0.5
"""A device that hangs holds up nobody's end."""


async def check_device(
    backend: GPUBackend, device_id: DeviceId, *, source: random.Random
) -> CheckPassed | CheckFailed | None:
    """Allocate, copy, compute, copy back, free; return what came of it, or None where nothing can be computed.

    Args:
        backend: Reaches the device.
        device_id: The device.
        source: Of the numbers.
    """
    if not backend.computes:
        return None
    left, right = _matrix(source), _matrix(source)
    held: list[DeviceMemory] = []
    try:
        for values in (left, right):
            held.append(await backend.allocate(device_id, len(values) * _FLOAT_BYTES))
            await backend.copy_to_device(held[-1], values.tobytes())
        echo = await backend.copy_from_device(held[0])
        if echo != left.tobytes():
            return _wrong("it gave other bytes back than it was given")
        shape = MatrixShape(rows=SIDE, inner=SIDE, columns=SIDE)
        held.append(await backend.matrix_multiply(held[0], held[1], shape, "float32"))
        answer = await backend.copy_from_device(held[-1])
    except NotComputingError:
        return None
    except ExoError as error:
        return CheckFailed(of_exception(error))
    finally:
        await _free(backend, held)
    product = array("f")
    product.frombytes(answer)
    wrong_count = count_wrong_rows(left, right, product, source)
    if wrong_count:
        return _wrong(f"it computed {wrong_count} of {SIDE} rows of a product wrongly")
    return CheckPassed()


def count_wrong_rows(
    left: Sequence[float], right: Sequence[float], product: Sequence[float], source: random.Random
) -> int:
    """Return how many rows of a product of square matrices of whole numbers cannot be right.

    Args:
        left: Row by row.
        right: Row by row.
        product: What is claimed.
        source: Of the random vector.
    """
    factors = [source.randint(1, _FACTOR_MAX) for _ in range(SIDE)]
    try:
        claimed = [int(value) for value in product]
    except (ValueError, OverflowError):
        return SIDE  # What is no number at all is not looked at any closer.
    if len(claimed) != SIDE * SIDE:
        return SIDE
    inner = _times([int(value) for value in right], factors)
    expected = _times([int(value) for value in left], inner)
    found = _times(claimed, factors)
    fractions = {
        index // SIDE
        for index, (value, whole) in enumerate(zip(product, claimed, strict=True))
        if value != whole
    }
    return len(fractions | {row for row in range(SIDE) if expected[row] != found[row]})


def _times(matrix: Sequence[int], vector: Sequence[int]) -> list[int]:
    return [sum(map(mul, matrix[start : start + SIDE], vector)) for start in range(0, SIDE * SIDE, SIDE)]


def _matrix(source: random.Random) -> "array[float]":
    return array("f", source.choices(range(-_LARGEST, _LARGEST + 1), k=SIDE * SIDE))


def _wrong(message: str) -> CheckFailed:
    return CheckFailed(Failure(kind="wrong_result", message=message, weight="bad"))


async def _free(backend: GPUBackend, held: Sequence[DeviceMemory]) -> None:
    """Give back what was taken. Where the device hangs that is in its turn, and nobody waits for it."""
    with anyio.move_on_after(_FREE_S, shield=True):
        async with anyio.create_task_group() as tasks:
            for memory in held:
                tasks.start_soon(_deallocate, backend, memory)


async def _deallocate(backend: GPUBackend, memory: DeviceMemory) -> None:
    try:
        await backend.deallocate(memory)
    except ExoError:
        return  # What is wrong with the device has been said.
