"""Products of every backend in every precision, against float64 within the error that its arithmetic allows.

A sum of n products in an arithmetic with unit roundoff u differs from the exact one by at most
n u / (1 - n u) times the sum of the products' sizes, in whatever order it is summed up (N. J. Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). The factors of 16-bit and 8-bit products are exact in float32.
"""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import NotComputingError
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import NodeId
from support.gpu_drivers import CASES, DriverCase

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8")
SHAPES = [(1, 1, 1), (3, 5, 7), (1, 300, 17), (64, 129, 33), (33, 1024, 2)]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> DriverCase:
    found: DriverCase = request.param
    reason = found.why_not()
    if reason is not None:
        pytest.skip(reason)
    return found


@pytest.fixture
async def backend(case: DriverCase) -> AsyncIterator[ThreadedBackend]:
    made = ThreadedBackend(case.make(), NodeId("n"))
    await made.initialize()
    if not made.computes:
        await made.shutdown()
        pytest.skip(f"{made.name} only watches its devices")
    yield made
    await made.shutdown()


def encoded(values: NDArray[np.float64], precision: Precision) -> tuple[bytes, NDArray[np.float64]]:
    """Return the values in the precision, and exactly what they became."""
    match precision:
        case "float32":
            rounded: NDArray[Any] = values.astype(np.float32)
            return rounded.tobytes(), rounded.astype(np.float64)
        case "float16":
            rounded = values.astype(np.float16)
            return rounded.tobytes(), rounded.astype(np.float64)
        case "bfloat16":
            # Cut off behind the upper half of a float32: any bfloat16 will do here.
            upper = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            exact = (upper.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            return upper.tobytes(), exact
        case "int8":
            rounded = np.clip(np.round(values * 100), -128, 127).astype(np.int8)
            return rounded.tobytes(), rounded.astype(np.float64)


async def product(
    backend: ThreadedBackend, left: bytes, right: bytes, shape: MatrixShape, precision: Precision
) -> NDArray[np.float64]:
    device_id = (await backend.list_devices())[-1].device_id
    a = await backend.allocate(device_id, len(left))
    b = await backend.allocate(device_id, len(right))
    await backend.copy_to_device(a, left)
    await backend.copy_to_device(b, right)
    c = await backend.matrix_multiply(a, b, shape, precision)
    assert c.size_bytes == shape.rows * shape.columns * 4
    content = await backend.copy_from_device(c)
    for memory in (a, b, c):
        await backend.deallocate(memory)
    values = np.frombuffer(content, dtype=np.int32 if precision == "int8" else np.float32)
    return values.astype(np.float64).reshape(shape.rows, shape.columns)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda sizes: "x".join(map(str, sizes)))
async def test_products_are_right_within_what_their_precision_allows(
    case: DriverCase, backend: ThreadedBackend, precision: Precision, sizes: tuple[int, int, int]
) -> None:
    if precision not in case.precisions:
        pytest.skip(f"{case.name} does not compute in {precision}")
    rows, inner, columns = sizes
    random = np.random.default_rng(abs(hash(sizes)) % 2**32)
    left, exact_left = encoded(random.standard_normal((rows, inner)), precision)
    right, exact_right = encoded(random.standard_normal((inner, columns)), precision)
    shape = MatrixShape(rows=rows, inner=inner, columns=columns)
    got = await product(backend, left, right, shape, precision)
    exact = exact_left @ exact_right
    unit = case.precisions[precision]
    allowed = inner * unit / (1 - inner * unit) * (np.abs(exact_left) @ np.abs(exact_right))
    assert np.all(np.abs(got - exact) <= allowed), (
        f"off by up to {np.max(np.abs(got - exact) - allowed)} more than allowed"
    )


async def test_extreme_whole_numbers_are_summed_up_exactly(
    case: DriverCase, backend: ThreadedBackend
) -> None:
    if "int8" not in case.precisions:
        pytest.skip(f"{case.name} does not compute in int8")
    shape = MatrixShape(rows=1, inner=5000, columns=2)
    left = bytes([128]) * shape.inner  # -128
    right = bytes([128, 127]) * shape.inner
    got = await product(backend, left, right, shape, "int8")
    assert got.tolist() == [[5000 * 128 * 128, -5000 * 128 * 127]]


async def test_large_and_small_halves_are_widened_before_they_are_multiplied(
    case: DriverCase, backend: ThreadedBackend
) -> None:
    if "float16" not in case.precisions:
        pytest.skip(f"{case.name} does not compute in float16")
    # 60000 squared is no float16, but it is a float32.
    numbers = np.array([60000.0, 2.0**-14], dtype=np.float16)
    shape = MatrixShape(rows=1, inner=2, columns=1)
    got = await product(backend, numbers.tobytes(), numbers.tobytes(), shape, "float16")
    exact = float(numbers[0]) ** 2 + 2.0**-28
    assert got[0, 0] == pytest.approx(exact, rel=1e-6)


async def test_a_precision_that_a_device_does_not_have_is_refused(
    case: DriverCase, backend: ThreadedBackend
) -> None:
    missing = [precision for precision in PRECISIONS if precision not in case.precisions]
    if not missing:
        pytest.skip(f"{case.name} has all of them")
    shape = MatrixShape(rows=1, inner=1, columns=1)
    for precision in missing:
        with pytest.raises(NotComputingError, match=precision):
            await product(backend, bytes(8), bytes(8), shape, precision)
