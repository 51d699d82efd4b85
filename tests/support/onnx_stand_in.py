"""DirectML and Intel as the contract suite of backends sees them: the real ONNX Runtime, on the processor."""

import atexit
import importlib.util
import shutil
import tempfile
from functools import cache
from pathlib import Path

from exo.gpu.backends.directml import DirectMLDriver
from exo.gpu.backends.directml.dxgi import Adapter
from exo.gpu.backends.intel import IntelDriver
from exo.gpu.backends.onnx.arrays import OnnxArrays
from support.fake_sysfs import FakeSysfs

GIB = 2**30
ARC, PROCESSOR = "0000:03:00.0", "0000:00:02.0"


def on_the_processor() -> OnnxArrays:
    """Return ONNX Runtime with the provider that is always there."""
    return OnnxArrays("CPUExecutionProvider", lambda ordinal: {}, memory="cpu", package="onnxruntime")


def arc(**more: object) -> dict[str, object]:
    """Return the files of an Arc B580 under xe."""
    files: dict[str, object] = {
        "tile0/physical_vram_size_bytes": 12 * GIB,
        "tile0/gt0/freq0/act_freq": 1200,
        "tile0/gt0/freq0/rp0_freq": 2850,
        "tile0/gt0/freq0/throttle/status": 0,
        "tile0/gt0/freq0/throttle/reason_pl1": 0,
        "tile0/gt0/freq0/throttle/reason_thermal": 0,
        "tile0/gt0/gtidle/idle_residency_ms": 10_000,
        "power/runtime_status": "active",
        "hwmon/hwmon5/temp2_label": "pkg",
        "hwmon/hwmon5/temp2_input": 52_000,
        "hwmon/hwmon5/temp2_crit": 100_000,
        "hwmon/hwmon5/temp3_label": "vram",
        "hwmon/hwmon5/temp3_input": 60_000,
        "hwmon/hwmon5/energy1_label": "card",
        "hwmon/hwmon5/energy1_input": 5_000_000,
        "hwmon/hwmon5/energy2_label": "pkg",
        "hwmon/hwmon5/energy2_input": 3_000_000,
        "hwmon/hwmon5/power1_label": "card",
        "hwmon/hwmon5/power1_max": 190_000_000,
    }
    return {**files, **more}


def make_directml() -> DirectMLDriver:
    """Return a driver of one card."""
    card = Adapter(
        ordinal=0, name="AMD Radeon RX 7600", vendor="amd", dedicated_bytes=8 * GIB, shared_bytes=16 * GIB
    )
    return DirectMLDriver(adapters=lambda: [card], arrays=on_the_processor())


def make_intel() -> IntelDriver:
    """Return a driver of a card and of the processor's own graphics."""
    return IntelDriver(sysfs=_tree(), pci_ids=(), arrays=on_the_processor())


def why_not() -> str | None:
    """Say why there is none on this machine."""
    return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"


@cache
def _tree() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="exo-sysfs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree = FakeSysfs(folder / "sys")
    tree.card(0, PROCESSOR, "i915", "8086:A7A0", {})
    tree.card(1, ARC, "xe", "8086:E20B", arc())
    return tree.folder
