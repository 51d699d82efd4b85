"""What the errors of CUDA's runtime and of its matrix library mean: HIP's have the same numbers. Pure.

Sources: cudaError_t in https://docs.nvidia.com/cuda/cuda-runtime-api/, cublasStatus_t in
https://docs.nvidia.com/cuda/cublas/.
"""

from typing import Any

from exo.gpu.errors import DeviceLostError, NotComputingError, OutOfDeviceMemoryError

_OUT_OF_MEMORY = 2
_OF_THE_PROGRAM = frozenset({1, 12, 16, 17, 21, 98, 400, 600, 801})
"""Invalid arguments and handles, work that is not over, not supported: everything else is the device's."""
_LASTING = frozenset({700, 702, 709, 710, *range(714, 721)})
"""After these CUDA answers nothing but the same error until the process ends."""
_BLAS_OUT_OF_MEMORY = frozenset({1, 3})
"""Not initialised, which is how it says that its workspace does not fit; allocation failed."""
_BLAS_NOT_ABLE = frozenset({8, 15})
"""The architecture has no such arithmetic; not supported."""


def status_of(error: BaseException) -> int | None:
    """Return the number that a library gave with its error."""
    status: Any = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def translated(runtime: Any, error: Exception, doing: str) -> Exception:
    """Return the error as one of ours, or as it is where the mistake is the program's.

    Args:
        runtime: CuPy's module of the runtime.
        error: What was raised.
        doing: What was being done, as in `copying to it`.
    """
    status = status_of(error)
    if status is None:
        return error
    then = "restart exo to use it again" if status in _LASTING else "it is used again when it passes a check"
    lost = DeviceLostError(f"the GPU failed at {doing} ({error}): {then}")
    full = OutOfDeviceMemoryError(f"the GPU has too little free memory for {doing}: free some and try again")
    if isinstance(error, runtime.CUDARuntimeError):
        if status == _OUT_OF_MEMORY:
            return full
        return error if status in _OF_THE_PROGRAM else lost
    if type(error).__name__ == "CUBLASError":
        if status in _BLAS_OUT_OF_MEMORY:
            return full
        if status in _BLAS_NOT_ABLE:
            return NotComputingError(f"the GPU is not capable of {doing} ({error}): use another precision")
        return lost
    return error
