"""Memory and products through MLX: arrays of bytes, read as numbers when they are multiplied."""

from typing import Any

import numpy

from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import DeviceLostError, OutOfDeviceMemoryError

_PIECE_BYTES_MAX = 2**31 - 1
"""MLX counts an array's elements in 32 bits."""
_EXACT_TERMS = 1024
"""So many products of int8 sum up exactly in float32: 2^24 is the first whole number that has no successor there."""


class MetalBuffer:
    """Memory of the GPU: MLX replaces its array at every write."""

    def __init__(self, array: Any) -> None:
        self.array = array


class MetalArrays:
    """MLX on one device, from any thread.

    Args:
        mlx: The module `mlx.core`.
        device: Where to compute.
    """

    def __init__(self, mlx: Any, device: Any) -> None:
        self._mlx = mlx
        self._device = device

    def allocate(self, size_bytes: int, free_bytes: int | None) -> MetalBuffer:
        """Return new memory.

        Raises:
            OutOfDeviceMemoryError: There is less, as far as is known, or it is too much for one piece.
        """
        if size_bytes > _PIECE_BYTES_MAX:
            raise OutOfDeviceMemoryError(
                f"MLX holds at most {_PIECE_BYTES_MAX} bytes in one piece, not {size_bytes}: take several"
            )
        if free_bytes is not None and size_bytes > free_bytes:
            raise OutOfDeviceMemoryError(
                f"the GPU has {free_bytes} bytes free, {size_bytes - free_bytes} fewer than the {size_bytes} asked for"
            )
        mlx = self._mlx
        return MetalBuffer(self._done(lambda: mlx.zeros((size_bytes,), dtype=mlx.uint8)))

    def write(self, buffer: MetalBuffer, data: memoryview, offset_bytes: int) -> None:
        """Copy from the host."""
        content = numpy.frombuffer(data, dtype=numpy.uint8)

        def work() -> Any:
            array = buffer.array
            array[offset_bytes : offset_bytes + content.nbytes] = self._mlx.array(content)
            return array

        buffer.array = self._done(work)

    def fetch(self, buffer: MetalBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        """Copy to the host."""
        part = self._done(lambda: buffer.array[offset_bytes : offset_bytes + size_bytes])
        return numpy.array(part).tobytes()

    def copy(self, source: MetalBuffer, destination: MetalBuffer, size_bytes: int) -> None:
        """Copy within the GPU."""

        def work() -> Any:
            array = destination.array
            array[:size_bytes] = source.array[:size_bytes]
            return array

        destination.array = self._done(work)

    def synchronize(self) -> None:
        """Wait for everything that was begun from this thread."""
        self._done(lambda: self._mlx.array(0))
        self._mlx.synchronize(self._device)

    def multiply(
        self, left: MetalBuffer, right: MetalBuffer, shape: MatrixShape, precision: Precision
    ) -> MetalBuffer:
        """Return the product: float32, or int32 for int8.

        16-bit numbers are widened first. MLX multiplies no whole numbers: those of int8 are multiplied in float32, a
        few terms at a time, so that every sum is exact.
        """
        mlx = self._mlx

        def work() -> Any:
            a = self._numbers(left, shape.rows, shape.inner, precision)
            b = self._numbers(right, shape.inner, shape.columns, precision)
            if precision != "int8":
                return (a @ b).reshape(-1).view(mlx.uint8)
            total = mlx.zeros((shape.rows, shape.columns), dtype=mlx.int32)
            for begin in range(0, shape.inner, _EXACT_TERMS):
                end = begin + _EXACT_TERMS
                total = total + (a[:, begin:end] @ b[begin:end]).astype(mlx.int32)
            return total.reshape(-1).view(mlx.uint8)

        return MetalBuffer(self._done(work))

    def _numbers(self, buffer: MetalBuffer, rows: int, columns: int, precision: Precision) -> Any:
        mlx = self._mlx
        kinds: dict[Precision, tuple[Any, int]] = {
            "float32": (mlx.float32, 4),
            "float16": (mlx.float16, 2),
            "bfloat16": (mlx.bfloat16, 2),
            "int8": (mlx.int8, 1),
        }
        kind, size_bytes = kinds[precision]
        numbers = buffer.array[: rows * columns * size_bytes].view(kind)
        return numbers.reshape(rows, columns).astype(mlx.float32)

    def _done(self, work: Any) -> Any:
        """Carry work out: MLX is lazy, and its errors come when it is."""
        try:
            with self._mlx.stream(self._device):
                result = work()
                self._mlx.eval(result)
                return result
        except (RuntimeError, MemoryError) as error:
            text = str(error)
            if "malloc" in text or "allocate" in text or isinstance(error, MemoryError):
                raise OutOfDeviceMemoryError(f"the GPU has too little free memory ({text})") from error
            if "ommand buffer" in text:
                raise DeviceLostError(f"the GPU failed ({text}): restart exo to use it again") from error
            raise
