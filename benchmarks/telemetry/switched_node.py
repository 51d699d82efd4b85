"""A whole node with NVIDIA GPUs of the stub, whose telemetry of devices can be turned off and on while it runs.

    python -m benchmarks.telemetry.switched_node ARGUMENTS OF exo

Off, nothing of a device is read, as with EXO_GPU_TELEMETRY=0: in one process, so that two of them are not compared.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.telemetry import stub_driver
from exo import node
from exo.gpu.inventory import UsedDevice
from exo.worker.telemetry import GPUTelemetryCollector

SWITCH = "BENCHMARK_TELEMETRY_OFF"
"""Names a file: as long as it is there, telemetry is off."""


class SwitchedCollector(GPUTelemetryCollector):
    """Sees no devices while it is off."""

    def __init__(self, *, devices: Callable[[], Sequence[UsedDevice]], **others: Any) -> None:
        off = Path(os.environ[SWITCH])
        super().__init__(devices=lambda: () if off.exists() else devices(), **others)


def main() -> None:
    """Run the node."""
    home = Path(os.environ["EXO_HOME"])
    stub_driver.slow_down(stub_driver.start(home))
    node.GPUTelemetryCollector = SwitchedCollector
    from exo.cli.main import main as run_exo

    run_exo()


if __name__ == "__main__":
    sys.argv[0] = "exo"
    main()
