"""Whether copies and products stay within the memory that they name. Pure."""

from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import MemoryRangeError
from exo.gpu.memory import DeviceMemory

ITEM_BYTES: dict[Precision, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
PRODUCT_ITEM_BYTES = 4


def flat(data: bytes | bytearray | memoryview) -> memoryview:
    """Return the bytes of contiguous data.

    Raises:
        ValueError: It has gaps.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise ValueError("only contiguous data can be copied to a device")
    return view.cast("B") if view.nbytes else memoryview(b"")


def checked_range(memory: DeviceMemory, offset_bytes: int, size_bytes: int | None) -> int:
    """Return the size of a copy: what was asked for, or all from the offset on.

    Raises:
        MemoryRangeError: It goes beyond the memory.
    """
    wanted_bytes = memory.size_bytes - offset_bytes if size_bytes is None else size_bytes
    if offset_bytes < 0 or wanted_bytes < 0 or offset_bytes + wanted_bytes > memory.size_bytes:
        raise MemoryRangeError(
            f"{wanted_bytes} bytes from {offset_bytes} on are not within the {memory.size_bytes} bytes "
            f"of this memory of {memory.device_id}"
        )
    return wanted_bytes


def check_product(left: DeviceMemory, right: DeviceMemory, shape: MatrixShape, precision: Precision) -> int:
    """Return the size of the product in bytes.

    Raises:
        MemoryRangeError: A matrix is larger than its memory, or has no elements.
    """
    if min(shape.rows, shape.inner, shape.columns) <= 0:
        raise MemoryRangeError(f"there is no product of {shape.rows} x {shape.inner} x {shape.columns}")
    item_bytes = ITEM_BYTES[precision]
    checked_range(left, 0, shape.rows * shape.inner * item_bytes)
    checked_range(right, 0, shape.inner * shape.columns * item_bytes)
    return shape.rows * shape.columns * PRODUCT_ITEM_BYTES
