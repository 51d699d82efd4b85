"""A driver imports its vendor's library when it is opened, and not before: a broken one must not stop the node.

Nor NumPy, where it is tried on machines that have no such device: that takes longer than all the rest of it.
"""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from exo.gpu import factory
from exo.shared.types.ids import NodeId

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


def test_drivers_modules_are_imported_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that import modules of one package in another order take each other's locks."""
    meeting = threading.Barrier(2)
    met: list[str] = []

    def slow_import(name: str) -> object:
        try:
            meeting.wait(timeout=0.1)
            met.append(name)
        except threading.BrokenBarrierError:
            meeting.reset()
        return SimpleNamespace(CUDADriver=object, ROCmDriver=object)

    monkeypatch.setattr(factory, "import_module", slow_import)
    made = factory.GPUBackendFactory.for_this_platform(NodeId("n"), environment={}, system="linux").makers
    threads = [threading.Thread(target=one.make) for one in made if one.name in {"cuda", "rocm"}]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(threads) == 2
    assert met == []
