"""A driver imports its vendor's library when it is opened, and not before: a broken one must not stop the node."""

import subprocess
import sys

import pytest

LIBRARIES = ("pynvml", "cupy", "amdsmi", "mlx", "onnxruntime", "ai_edge_litert", "flatbuffers")


@pytest.mark.parametrize("name", ["cuda", "rocm", "metal", "directml", "intel", "tflite"])
def test_importing_a_driver_imports_no_library(name: str) -> None:
    program = (
        f"import sys, exo.gpu.backends.{name}\n"
        f"print(*sorted(set({LIBRARIES!r}) & {{module.partition('.')[0] for module in sys.modules}}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
