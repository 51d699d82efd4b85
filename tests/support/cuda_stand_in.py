"""CUDA as the contract suite of backends sees it: the real `pynvml` over the stub, and the stand-in for CuPy."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from exo.gpu.backends.cuda import CUDADriver
from support import nvml_stub
from support.fake_cupy import FakeCuPy, FakeDevice
from support.nvml_stub import H100, RTX_4090


class StandInCUDADriver(CUDADriver):
    """Finds the stand-in when it imports CuPy."""

    def open(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            _cupy().install(patch)
            super().open()


def make() -> CUDADriver:
    """Return a driver of two cards that reach each other's memory."""
    os.environ["EXO_NVML_STUB_STATE"] = str(_state_file())
    return StandInCUDADriver(environment={})


def why_not() -> str | None:
    """Say why there is none on this machine."""
    if shutil.which("cc") is None:
        return "there is no C compiler `cc` on this machine"
    return None if importlib.util.find_spec("pynvml") else "nvidia-ml-py is not installed"


def has_hardware() -> bool:
    """Say whether this machine has NVIDIA's driver."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def why_no_hardware() -> str | None:
    """Say why the real driver cannot be used by this process."""
    if nvml_stub.library.cache_info().currsize:
        return "the stub was loaded in place of the driver's library: run with -k hardware"
    return why_not()


@cache
def _state_file() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="exo-nvml-stub-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    stub = nvml_stub.start(folder)
    stub.add(0, RTX_4090)
    stub.add(1, H100)
    return folder / "nvml.state"


@cache
def _cupy() -> FakeCuPy:
    return FakeCuPy(
        [
            FakeDevice(pci="0000:01:00.0", peers=[1]),
            FakeDevice(pci="0000:02:00.0", peers=[0], capability=(9, 0)),
        ]
    )
