"""NVIDIA's driver as the stub of the tests plays it, with calls as slow as a real one's: GPUs for whoever has none."""

import ctypes
import importlib.util
import re
import shutil
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cluster.measuring import CannotMeasureError

if TYPE_CHECKING:
    from tests.support.nvml_stub import NvmlStub

DEVICES = 16
LATENCY_US = "1000 8000"
"""Every call takes as long: one in this range, each as likely as the others."""
HANGING = DEVICES - 1
HANGING_CALL = "nvmlDeviceGetTemperature"


def why_not() -> str | None:
    """Say why there is no stub on this machine."""
    if shutil.which("cc") is None:
        return "there is no C compiler `cc` here to build the stub driver with"
    if importlib.util.find_spec("pynvml") is None:
        return "nvidia-ml-py is not installed"
    return None


def needed() -> None:
    """Return if there can be a stub.

    Raises:
        CannotMeasureError: There cannot; the message says why.
    """
    reason = why_not()
    if reason is not None:
        raise CannotMeasureError(reason)


def start(folder: Path, devices: int = DEVICES) -> "NvmlStub":
    """Load the stub into this process, for good, with so many GPUs that answer at once."""
    root = str(Path(__file__).parents[2])
    if root not in sys.path:
        sys.path.append(root)
    from tests.support import nvml_stub

    stub = nvml_stub.start(folder)
    for slot in range(devices):
        stub.add(slot, nvml_stub.H100)
    return stub


def slow_down(stub: "NvmlStub") -> None:
    """Let every call take its time from now on."""
    stub.set(latency_us=LATENCY_US)


def change(stub: "NvmlStub", number: int) -> None:
    """Let every device have other memory in use than with the number before: enough that it is told."""
    stub.set({f"{slot}.memory_used": (1 + number % 8) * 2**30 for slot in range(DEVICES)})


def hang(stub: "NvmlStub") -> None:
    """Let one of the devices never answer again."""
    stub.set({f"{HANGING}.hang.{HANGING_CALL}": "forever"})


def let_go(stub: "NvmlStub") -> None:
    """Let it answer again."""
    stub.set({f"{HANGING}.hang.{HANGING_CALL}": None})


def calls(stub: "NvmlStub") -> int:
    """Return how often the library was called."""
    return sum(stub.calls(name) for name in _names())


def call_cpu_s(stub: "NvmlStub") -> float:
    """Return what one slow call costs threads that do nothing else, as many as there are devices: to sleep and to wake.

    One thread alone would make it dearer: each time it wakes, the processor was asleep as well.
    """
    from tests.support import nvml_stub

    slow_down(stub)
    ask, version, count = nvml_stub.library().nvmlSystemGetDriverVersion, ctypes.create_string_buffer(80), 60

    def call() -> None:
        for _ in range(count):
            ask(version, 80)

    threads = [threading.Thread(target=call) for _ in range(DEVICES)]
    started_s = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - started_s) / (count * DEVICES)


@cache
def _names() -> tuple[str, ...]:
    from tests.support import nvml_stub

    return tuple(set(re.findall(r"^int (nvml\w+)\(", nvml_stub.SOURCE.read_text(), re.MULTILINE)))
