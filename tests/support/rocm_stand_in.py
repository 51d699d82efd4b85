"""ROCm as the contract suite of backends sees it: a tree of the kernel's files, and the stand-in for CuPy with HIP."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from exo.gpu.backends.rocm import ROCmDriver
from support.fake_cupy import FakeCuPy, FakeDevice
from support.fake_sysfs import FakeSysfs, kfd_node, radeon

_ADDRESSES = ("0000:03:00.0", "0000:83:00.0")


class StandInROCmDriver(ROCmDriver):
    """Finds the stand-in when it imports CuPy."""

    def open(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            _cupy().install(patch)
            super().open()


def make() -> ROCmDriver:
    """Return a driver of two cards."""
    return StandInROCmDriver(sysfs=_tree(), pci_ids=(), environment={})


@cache
def _tree() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="exo-sysfs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree = FakeSysfs(folder / "sys")
    for number, address in enumerate(_ADDRESSES):
        tree.card(number, address, "amdgpu", "1002:744C", radeon(unique_id=f"{number + 1:016x}"))
        tree.write(kfd_node(number + 1, number + 1, address))
    return tree.folder


@cache
def _cupy() -> FakeCuPy:
    return FakeCuPy([FakeDevice(pci=address, architecture="gfx1100") for address in _ADDRESSES], is_hip=True)
