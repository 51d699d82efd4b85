"""What the errors of CUDA's libraries mean."""

import pytest

from exo.gpu.backends.cuda.cupy_errors import translated
from exo.gpu.errors import DeviceLostError, NotComputingError, OutOfDeviceMemoryError
from support import fake_cupy
from support.fake_cupy import CUBLASError, CUDARuntimeError


class OtherError(RuntimeError):
    status = 2


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (CUDARuntimeError(2), OutOfDeviceMemoryError, "free some"),
        (CUDARuntimeError(214), DeviceLostError, "passes a check"),
        (CUDARuntimeError(719), DeviceLostError, "restart exo"),
        (CUDARuntimeError(1), CUDARuntimeError, "cudaError1"),
        (CUBLASError(1), OutOfDeviceMemoryError, "free some"),
        (CUBLASError(15), NotComputingError, "another precision"),
        (CUBLASError(14), DeviceLostError, "passes a check"),
        (OtherError("mine"), OtherError, "mine"),
        (ValueError("no status"), ValueError, "no status"),
    ],
)
def test_translation(error: Exception, kind: type[Exception], words: str) -> None:
    ours = translated(fake_cupy, error, "a test")
    assert type(ours) is kind
    assert words in str(ours)
