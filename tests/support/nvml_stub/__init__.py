"""NVIDIA's management library as a stub that plays a state file, so that the real `pynvml` can be driven without a GPU.

`build` compiles it with the system's `cc`. Loaded once by its full path, it is what `pynvml` finds afterwards, as the
loader knows it by its name `libnvidia-ml.so.1`. One process holds one stub; `NvmlStub` writes what it says.

Keys of the state file (a value that is missing is "not supported" on that device), S is a slot, M a MIG part:

    driver, cuda                             versions, such as 580.95.05 and 13000
    generation                               another number than at the start: the library is uninitialised
    S.uuid                                   the device is there; without it, it is lost
    S.name .pci .capability .memory_total .memory_used .memory_reserved .utilization .temperature
    S.threshold_slowdown .threshold_gpu_max .temperature_margin .power_mw .energy_mj .power_limit_mw .throttle
    S.clock_sm .clock_max_sm .clock_max_memory .bus_width .multiprocessors .ecc_corrected .ecc_uncorrected
    S.remapped_rows .processes .mig_mode .event_types .xids
    S.mig.M.uuid .name .gpu_instance ...     a part of a GPU, with the same values
    latency_us, S.latency_us                 LOW HIGH: every call takes as long
    error.FUNCTION, S.error.FUNCTION         the call's answer, a number of nvml.h; S.error: of every call
    hang.FUNCTION, S.hang.FUNCTION           milliseconds, or `forever`: until the line is gone
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"
GIB = 2**30

RTX_4090: Mapping[str, object] = {
    "name": "NVIDIA GeForce RTX 4090",
    "capability": "8.9",
    "memory_total": 24564 * 2**20,
    "memory_used": 2 * GIB,
    "memory_reserved": 512 * 2**20,
    "utilization": 37,
    "temperature": 61,
    "threshold_slowdown": 97,
    "threshold_gpu_max": 90,
    "power_mw": 211_500,
    "power_limit_mw": 450_000,
    "clock_sm": 2520,
    "clock_max_sm": 3120,
    "clock_max_memory": 10_501,
    "bus_width": 384,
    "throttle": "0x0",
    "processes": "",
    "event_types": "0x8",
}
"""A card without error-correcting memory; UUID and address are the test's."""

H100: Mapping[str, object] = {
    **RTX_4090,
    "name": "NVIDIA H100 80GB HBM3",
    "capability": "9.0",
    "memory_total": 81_559 * 2**20,
    "clock_max_memory": 2619,
    "bus_width": 5120,
    "power_limit_mw": 700_000,
    "energy_mj": 7_200_500_000,
    "multiprocessors": 132,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "remapped_rows": "0 0 0 0",
    "mig_mode": 0,
    "event_types": "0xb",
}

GB10: Mapping[str, object] = {
    "name": "NVIDIA GB10",
    "capability": "12.1",
    "utilization": 12,
    "temperature": 48,
    "power_mw": 14_000,
    "clock_sm": 2418,
    "throttle": "0x1",
    "processes": "",
    "event_types": "0x8",
}
"""A part without memory of its own: the library does not support to ask for it."""


class NvmlStub:
    """The state file of the stub; changes are seen by the next call into the library."""

    def __init__(self, library: ctypes.CDLL, state_file: Path) -> None:
        self._library = library
        self._library.stub_calls.restype = ctypes.c_ulong
        self._file = state_file
        self._values: dict[str, str] = {"driver": "580.95.05", "cuda": "13000"}
        self._write()

    def set(self, values: Mapping[str, object] | None = None, **more: object) -> None:
        """Set lines by key; None takes a line away."""
        for key, value in {**(values or {}), **more}.items():
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = str(value)
        self._write()

    def add(self, slot: int, kind: Mapping[str, object], **more: object) -> str:
        """Put a device into a slot and return its UUID."""
        uuid = f"GPU-{slot:08x}-0000-4000-8000-000000000000"
        pci = f"00000000:{slot + 1:02X}:00.0"
        self.set(
            {f"{slot}.{key}": value for key, value in {"uuid": uuid, "pci": pci, **kind, **more}.items()}
        )
        return uuid

    def change(self, slot: int, **values: object) -> None:
        """Change what a device says; None: it does not support it."""
        self.set({f"{slot}.{key}": value for key, value in values.items()})

    def remove(self, slot: int) -> None:
        """Take a device away, as if it had fallen off the bus."""
        for key in [key for key in self._values if key.startswith(f"{slot}.")]:
            del self._values[key]
        self._write()

    def calls(self, function: str) -> int:
        """Return how often a function of the library was called in this test."""
        return self._library.stub_calls(function.encode())

    def users(self) -> int:
        """Return how many times the library is initialised and not yet shut down."""
        return self._library.stub_users()

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text("".join(f"{key} {value}\n" for key, value in self._values.items()), encoding="ascii")
        new.replace(self._file)
        self._library.stub_changed()


def build(folder: Path) -> Path:
    """Compile the stub and return the library's path.

    Raises:
        FileNotFoundError: There is no C compiler.
        RuntimeError: It does not compile.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler `cc` on this machine")
    library = folder / LIBRARY
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += [f"-Wl,-soname,{LIBRARY}", "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the stub of {LIBRARY} does not compile: {done.stderr}")
    return library


@cache
def library() -> ctypes.CDLL:
    """Build the stub and load it, once for this process: every later load by name finds it."""
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(build(Path(folder))), mode=ctypes.RTLD_GLOBAL)


def start(folder: Path) -> NvmlStub:
    """Begin anew with a state file in a folder: no device is there, nothing is initialised and nothing was called.

    Raises:
        FileNotFoundError: There is no C compiler.
    """
    state_file = folder / "nvml.state"
    stub = NvmlStub(library(), state_file)
    os.environ["EXO_NVML_STUB_STATE"] = str(state_file)
    library().stub_reset()
    return stub
