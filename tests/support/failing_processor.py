"""A whole node whose processor's driver reports a fault for as long as a file is there; all else is as it is.

    python -m support.failing_processor ARGUMENTS OF exo

Models cannot be placed on simulated devices, so that a device that fails under a model has to be a real one: the
driver's word is played here, and everything from there on is the node's own.
"""

import os
import sys
from pathlib import Path

from benchmarks.nodes import NodeProcess
from msgspec.structs import replace

from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.reading import DeviceReading
from exo.shared.types.devices import DeviceFault

FAULT_FILE = "TEST_FAULT_FILE"
"""Names the file."""
FAULT = DeviceFault(kind="ecc", message="uncorrectable memory errors", is_fatal=True)


class FailingNode(NodeProcess):
    """Starts such a node; `fail` and `mend` say how its processor is."""

    module = "support.failing_processor"

    def __init__(self, home: Path, *arguments: str) -> None:
        self._file = home.parent / f"{home.name}.fault"
        root = Path(__file__).parents[2]
        super().__init__(
            home,
            *arguments,
            environment={
                "PYTHONPATH": os.pathsep.join([str(root / "tests"), str(root)]),
                FAULT_FILE: str(self._file),
            },
        )

    def fail(self) -> None:
        """Have the driver report the fault from now on."""
        self._file.touch()

    def mend(self) -> None:
        """Have it report none any more."""
        self._file.unlink()


def main() -> None:
    """Run the node."""
    file, read = Path(os.environ[FAULT_FILE]), CPUDriver.read

    def read_with_fault(self: CPUDriver, index: int) -> DeviceReading:
        reading = read(self, index)
        return replace(reading, faults=(FAULT,)) if file.exists() else reading

    CPUDriver.read = read_with_fault
    from exo.cli.main import main as run_exo

    run_exo()


if __name__ == "__main__":
    sys.argv[0] = "exo"
    main()
