"""A driver imports its vendor's library when it is opened, and not before: a broken one must not stop the node.

Nor NumPy, where it is tried on machines that have no such device: that takes longer than all the rest of it.
"""

import subprocess
import sys

import pytest

LIBRARIES = ("pynvml", "cupy", "amdsmi", "mlx", "onnxruntime", "ai_edge_litert", "flatbuffers")


TRIED_EVERYWHERE = ("cuda", "rocm", "intel", "directml")
"""On their platforms, whatever devices there are."""


@pytest.mark.parametrize("name", [*TRIED_EVERYWHERE, "metal", "tflite"])
def test_importing_a_driver_imports_no_library(name: str) -> None:
    unwanted = {*LIBRARIES, "numpy"} if name in TRIED_EVERYWHERE else {*LIBRARIES}
    program = (
        f"import sys, exo.gpu.backends.{name}.driver\n"
        f"print(*sorted({unwanted!r} & {{module.partition('.')[0] for module in sys.modules}}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
