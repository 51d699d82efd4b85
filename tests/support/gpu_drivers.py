"""The drivers that the contract suite of backends runs against."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.backends.cuda import CUDADriver
from exo.gpu.backends.simulated.driver import SimulatedDriver
from exo.gpu.backends.simulated.machine import load_machine
from exo.gpu.driver import Driver, Precision
from support import cuda_stand_in, metal_stand_in, onnx_stand_in, rocm_stand_in, tflite_stand_in

HARDWARE = Path(__file__).parents[1] / "hardware"
FLOAT32_UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the largest relative error of one operation."""


class DriverCase(NamedTuple):
    """A driver and what it promises.

    Attributes:
        name: Shown in the test's id.
        make: Returns a driver that was not opened.
        precisions: What it computes in, with the unit roundoff that it sums up in; 0 is exact.
        why_not: Why it cannot run on this machine, or None.
    """

    name: str
    make: Callable[[], Driver]
    precisions: Mapping[Precision, float]
    why_not: Callable[[], str | None] = lambda: None


FLOAT32_SUMS: Mapping[Precision, float] = {
    "float32": FLOAT32_UNIT,
    "float16": FLOAT32_UNIT,
    "bfloat16": FLOAT32_UNIT,
    "int8": 0.0,
}

FLOAT_SUMS: Mapping[Precision, float] = {
    precision: unit for precision, unit in FLOAT32_SUMS.items() if precision != "int8"
}

CASES: list[DriverCase] = [
    DriverCase("cpu", CPUDriver, FLOAT32_SUMS),
    DriverCase("cuda", cuda_stand_in.make, FLOAT32_SUMS, cuda_stand_in.why_not),
    DriverCase("rocm", rocm_stand_in.make, FLOAT32_SUMS),
    DriverCase("metal", metal_stand_in.make, FLOAT32_SUMS, metal_stand_in.why_not),
    DriverCase("directml", onnx_stand_in.make_directml, FLOAT32_SUMS, onnx_stand_in.why_not),
    DriverCase("intel", onnx_stand_in.make_intel, FLOAT32_SUMS, onnx_stand_in.why_not),
    DriverCase("tflite", tflite_stand_in.make, FLOAT_SUMS, tflite_stand_in.why_not),
    DriverCase(
        "simulated", lambda: SimulatedDriver(load_machine(HARDWARE / "pc-mixed-failing.toml")), FLOAT32_SUMS
    ),
]
"""Whoever writes a driver adds it here."""

if cuda_stand_in.has_hardware():
    CASES.append(DriverCase("cuda-hardware", CUDADriver, FLOAT32_SUMS, cuda_stand_in.why_no_hardware))
