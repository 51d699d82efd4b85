"""A whole node whose processor's driver says what a test has it say; all else is as it is.

    python -m support.played_processor ARGUMENTS OF exo

Models cannot be placed on simulated devices, so that a device that fails under a model, or is slow, has to be a real
one: the driver's word is played here, and everything from there on is the node's own.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.nodes import NodeProcess
from msgspec.structs import replace

from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.driver import FoundDevice
from exo.gpu.reading import DeviceReading
from exo.shared.types.devices import DeviceFault

FAULT_FILE = "TEST_FAULT_FILE"
"""Names the file: as long as it is there the driver reports a fault."""
GB_PER_S = "TEST_GB_PER_S"
"""How fast the processor reads memory, as its driver says."""
FLOPS_PER_BYTE = 4
FAULT = DeviceFault(kind="ecc", message="uncorrectable memory errors", is_fatal=True)


class PlayedNode(NodeProcess):
    """Starts such a node; `fail` and `mend` say how its processor is, `gb_per_s` how fast."""

    module = "support.played_processor"

    def __init__(
        self,
        home: Path,
        *arguments: str,
        gb_per_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        namespace: str | None = None,
    ) -> None:
        self._file = home.parent / f"{home.name}.fault"
        root = Path(__file__).parents[2]
        played = {
            "PYTHONPATH": os.pathsep.join([str(root / "tests"), str(root)]),
            FAULT_FILE: str(self._file),
            GB_PER_S: "" if gb_per_s is None else str(gb_per_s),
        }
        super().__init__(home, *arguments, environment={**(environment or {}), **played}, namespace=namespace)

    def fail(self) -> None:
        """Have the driver report the fault from now on."""
        self._file.touch()

    def mend(self) -> None:
        """Have it report none any more."""
        self._file.unlink()


def main() -> None:
    """Run the node."""
    file, gb_per_s = Path(os.environ[FAULT_FILE]), os.environ[GB_PER_S]
    read, find = CPUDriver.read, CPUDriver.find_devices

    def read_with_fault(self: CPUDriver, index: int) -> DeviceReading:
        reading = read(self, index)
        return replace(reading, faults=(FAULT,)) if file.exists() else reading

    def find_with_figures(self: CPUDriver) -> Sequence[FoundDevice]:
        bytes_per_s = float(gb_per_s) * 1e9
        return [
            replace(one, memory_bandwidth_bytes_per_s=bytes_per_s, flops_per_s=FLOPS_PER_BYTE * bytes_per_s)
            for one in find(self)
        ]

    CPUDriver.read = read_with_fault
    if gb_per_s:
        CPUDriver.find_devices = find_with_figures
    from exo.cli.main import main as run_exo

    run_exo()


if __name__ == "__main__":
    sys.argv[0] = "exo"
    main()
