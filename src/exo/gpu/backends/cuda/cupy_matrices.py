"""Products of matrices on a GPU, given as addresses: through cuBLAS on NVIDIA, through CuPy's arrays on AMD.

cuBLAS takes all four precisions with exact accumulation and needs no kernel to be compiled first, and CuPy has arrays
of bfloat16 only in its newest releases. What CuPy hands to AMD's library knows neither bfloat16 nor int8: there the
numbers are widened first. Sources: cublasGemmEx in https://docs.nvidia.com/cuda/cublas/, CuPy's low-level interface.
"""

import ctypes
from typing import Any

from exo.gpu.driver import MatrixShape, Precision

_R_32F, _R_16F, _R_8I, _R_32I, _R_16BF = 0, 2, 3, 10, 14
"""cudaDataType; CuPy names only some of them."""
_COMPUTE_32F, _COMPUTE_32I = 68, 72
"""cublasComputeType_t."""
_GEMM_DEFAULT = -1
_NOT_TRANSPOSED = 0
_DEVICE_TO_DEVICE = 3
_TYPES: dict[Precision, tuple[int, int]] = {
    "float32": (_R_32F, 4),
    "float16": (_R_16F, 2),
    "bfloat16": (_R_16BF, 2),
    "int8": (_R_8I, 1),
}
"""(cudaDataType, size in bytes)"""
_RESULT_SIZE_BYTES = 4
_INT8_MULTIPLE = 4
"""cuBLAS multiplies int8 where lines are so many bytes, or a multiple of it."""

Pointers = tuple[int, int, int]
"""Left, right and product, in the current device's memory."""


def product_size_bytes(shape: MatrixShape) -> int:
    """Return the size of a product: four bytes for each number, in every precision."""
    return shape.rows * shape.columns * _RESULT_SIZE_BYTES


def multiply_with_cublas(cupy: Any, pointers: Pointers, shape: MatrixShape, precision: Precision) -> None:
    """Multiply on the current device.

    Raises:
        CUBLASError: As CuPy raises it.
    """
    inner, columns = _padded(shape.inner), _padded(shape.columns)
    if precision != "int8" or (inner, columns) == (shape.inner, shape.columns):
        _gemm(cupy, pointers, shape, precision)
        return
    padded = MatrixShape(rows=shape.rows, inner=inner, columns=columns)
    runtime = cupy.cuda.runtime
    sizes = (shape.rows * inner, inner * columns, product_size_bytes(padded))
    made: list[int] = []
    try:
        for size in sizes:
            made.append(int(runtime.malloc(size)))
        left, right, product = made
        for pointer, size in ((left, sizes[0]), (right, sizes[1])):
            runtime.memset(pointer, 0, size)
        _copy_lines(runtime, left, inner, pointers[0], shape.inner, shape.inner, shape.rows)
        _copy_lines(runtime, right, columns, pointers[1], shape.columns, shape.columns, shape.inner)
        _gemm(cupy, (left, right, product), padded, precision)
        width = shape.columns * _RESULT_SIZE_BYTES
        _copy_lines(runtime, pointers[2], width, product, columns * _RESULT_SIZE_BYTES, width, shape.rows)
        runtime.deviceSynchronize()
    finally:
        for pointer in made:
            runtime.free(pointer)


def multiply_as_arrays(
    cupy: Any, ordinal: int, pointers: Pointers, shape: MatrixShape, precision: Precision
) -> None:
    """Multiply on the current device through CuPy's arrays, in float32, or for int8 exactly in float64."""
    sizes = ((shape.rows, shape.inner), (shape.inner, shape.columns))
    left, right = (
        _widened(cupy, _array(cupy, ordinal, pointer, size, precision), precision)
        for pointer, size in zip(pointers[:2], sizes, strict=True)
    )
    result = cupy.matmul(left, right)
    kind = "int32" if precision == "int8" else "float32"
    product = _view(cupy, ordinal, pointers[2], (shape.rows, shape.columns), kind, _RESULT_SIZE_BYTES)
    product[...] = result.astype(kind)


def _gemm(cupy: Any, pointers: Pointers, shape: MatrixShape, precision: Precision) -> None:
    """Multiply row-major matrices with a library that thinks in columns: the product transposed, factors swapped."""
    left, right, product = pointers
    kind, _ = _TYPES[precision]
    is_whole = precision == "int8"
    number = ctypes.c_int32 if is_whole else ctypes.c_float
    one, zero = number(1), number(0)
    cupy.cuda.cublas.gemmEx(
        cupy.cuda.device.get_cublas_handle(),
        _NOT_TRANSPOSED,
        _NOT_TRANSPOSED,
        shape.columns,
        shape.rows,
        shape.inner,
        ctypes.addressof(one),
        right,
        kind,
        shape.columns,
        left,
        kind,
        shape.inner,
        ctypes.addressof(zero),
        product,
        _R_32I if is_whole else _R_32F,
        shape.columns,
        _COMPUTE_32I if is_whole else _COMPUTE_32F,
        _GEMM_DEFAULT,
    )


def _padded(length: int) -> int:
    return -(-length // _INT8_MULTIPLE) * _INT8_MULTIPLE


def _copy_lines(
    runtime: Any, target: int, target_line: int, source: int, source_line: int, width: int, lines: int
) -> None:
    runtime.memcpy2D(target, target_line, source, source_line, width, lines, _DEVICE_TO_DEVICE)


def _array(cupy: Any, ordinal: int, pointer: int, size: tuple[int, int], precision: Precision) -> Any:
    kind = "uint16" if precision == "bfloat16" else precision
    return _view(cupy, ordinal, pointer, size, kind, _TYPES[precision][1])


def _view(
    cupy: Any, ordinal: int, pointer: int, size: tuple[int, int], kind: str, item_size_bytes: int
) -> Any:
    size_bytes = size[0] * size[1] * item_size_bytes
    memory = cupy.cuda.UnownedMemory(pointer, size_bytes, None, ordinal)
    return cupy.ndarray(size, dtype=kind, memptr=cupy.cuda.MemoryPointer(memory, 0))


def _widened(cupy: Any, array: Any, precision: Precision) -> Any:
    if precision == "bfloat16":
        # The upper half of a float32.
        return cupy.left_shift(array.astype("uint32"), 16).view("float32")
    return array.astype("float64" if precision == "int8" else "float32")
