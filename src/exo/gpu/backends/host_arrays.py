"""Memory and products on the host's processor, for the CPU and for simulated devices. Imported when first computed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import OutOfDeviceMemoryError
from exo.gpu.host_memory import read_host_memory

HostArray = NDArray[np.uint8]


def allocate(size_bytes: int, name: str) -> HostArray:
    """Return new memory of the host.

    Raises:
        OutOfDeviceMemoryError: There is not so much; the system would promise it all the same.
    """
    free_bytes = read_host_memory().available_bytes
    if size_bytes <= free_bytes:
        try:
            return np.empty(size_bytes, dtype=np.uint8)
        except MemoryError:
            pass
    raise OutOfDeviceMemoryError(
        f"{name} has {free_bytes} bytes free, {size_bytes - free_bytes} fewer than the {size_bytes} asked for; "
        "end other programs, or use another device"
    )


def write(array: HostArray, data: memoryview, offset_bytes: int) -> None:
    """Copy bytes into it."""
    array[offset_bytes : offset_bytes + data.nbytes] = np.frombuffer(data, dtype=np.uint8)


def fetch(array: HostArray, offset_bytes: int, size_bytes: int) -> bytes:
    """Copy bytes out of it."""
    return array[offset_bytes : offset_bytes + size_bytes].tobytes()


def copy(source: HostArray, destination: HostArray, size_bytes: int) -> None:
    """Copy from one to another, or within one."""
    destination[:size_bytes] = source[:size_bytes]


def multiply(left: HostArray, right: HostArray, shape: MatrixShape, precision: Precision) -> HostArray:
    """Return the product: float32, or int32 for int8.

    16-bit numbers are widened to float32, which is exact, and summed up there. Products of int8 are summed in float64,
    where they are exact up to 2^39 terms, because that is what the processor's matrix routines are fast in.
    """
    a = _elements(left, shape.rows * shape.inner, precision).reshape(shape.rows, shape.inner)
    b = _elements(right, shape.inner * shape.columns, precision).reshape(shape.inner, shape.columns)
    with np.errstate(all="ignore"):  # Infinities and NaNs are answers, too.
        product: NDArray[Any] = a @ b
        if precision == "int8":
            product = product.astype(np.int64).astype(np.int32)
    return np.ascontiguousarray(product).reshape(-1).view(np.uint8)


def _elements(array: HostArray, count: int, precision: Precision) -> NDArray[Any]:
    match precision:
        case "float32":
            return array[: count * 4].view(np.float32)
        case "float16":
            return array[: count * 2].view(np.float16).astype(np.float32)
        case "bfloat16":
            # The upper half of a float32.
            return (array[: count * 2].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        case "int8":
            return array[:count].view(np.int8).astype(np.float64)
