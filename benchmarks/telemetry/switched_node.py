"""A whole node with NVIDIA GPUs of the stub, whose telemetry of devices can be turned off and on while it runs.

    python -m benchmarks.telemetry.switched_node ARGUMENTS OF exo

Off, nothing of a device is read, as with EXO_GPU_TELEMETRY=0: in one process, so that two of them are not compared.
"""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.telemetry import stub_driver
from exo import node
from exo.gpu.inventory import UsedDevice
from exo.worker.telemetry import GPUTelemetryCollector

if TYPE_CHECKING:
    from tests.support.nvml_stub import NvmlStub

SWITCH = "BENCHMARK_TELEMETRY_OFF"
"""Names a file: as long as it is there, telemetry is off."""
INTERVAL_S = 0.4
"""How often the devices change: to be read as often."""


class SwitchedCollector(GPUTelemetryCollector):
    """Sees no devices while it is off."""

    def __init__(self, *, devices: Callable[[], Sequence[UsedDevice]], **others: Any) -> None:
        off = Path(os.environ[SWITCH])
        super().__init__(devices=lambda: () if off.exists() else devices(), **others)


def keep_changing(stub: "NvmlStub") -> None:
    """Let every reading have something to tell; whether telemetry is on or off, so that this is in both."""
    for number in itertools.count():
        time.sleep(INTERVAL_S)
        stub_driver.change(stub, number)


def main() -> None:
    """Run the node."""
    home = Path(os.environ["EXO_HOME"])
    stub = stub_driver.start(home)
    stub_driver.slow_down(stub)
    threading.Thread(target=keep_changing, args=(stub,), daemon=True).start()
    node.GPUTelemetryCollector = SwitchedCollector
    from exo.cli.main import main as run_exo

    run_exo()


if __name__ == "__main__":
    sys.argv[0] = "exo"
    main()
