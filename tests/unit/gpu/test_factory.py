"""Which backends are tried on which platform, and what the user chose instead."""

import subprocess
import sys
from pathlib import Path

import pytest

from exo.gpu.factory import GPUBackendFactory, order
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId

NODE = NodeId("n")
HARDWARE = Path(__file__).parents[2] / "hardware"


def names(system: str, **environment: str) -> list[str]:
    made = GPUBackendFactory.for_this_platform(NODE, environment=environment, system=system)
    return [one.name for one in made.makers]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "android", "freebsd14", "ios"])
def test_the_processor_is_always_the_last_and_every_backend_can_be_made(system: str) -> None:
    made = GPUBackendFactory.for_this_platform(NODE, environment={}, system=system)
    assert [one.name for one in made.makers] == list(order(system))
    assert made.makers[-1].name == "cpu"
    for maker in made.makers:
        assert made.make(maker).name == maker.name


def test_the_order_of_each_platform() -> None:
    assert order("linux") == ("cuda", "rocm", "intel", "cpu")
    assert order("darwin") == ("metal", "cpu")
    assert order("win32") == ("cuda", "directml", "cpu")
    assert order("android") == ("tflite", "cpu")
    assert order("plan9") == ("cpu",)


def test_no_vendors_library_is_imported_before_a_driver_is_opened() -> None:
    code = """
import sys
from exo.gpu.factory import GPUBackendFactory
for system in ("linux", "darwin", "win32", "android"):
    made = GPUBackendFactory.for_this_platform("n", environment={}, system=system)
    for maker in made.makers:
        made.make(maker)
libraries = {"cupy", "pynvml", "amdsmi", "mlx", "onnxruntime", "ai_edge_litert", "torch"}
print(sorted(libraries & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_the_user_may_choose(tmp_path: Path) -> None:
    assert names("linux", EXO_GPU_BACKEND="cpu") == ["cpu"]
    assert names("darwin", EXO_GPU_BACKEND=" cuda , cpu") == ["cuda", "cpu"]
    file = HARDWARE / "pc-4090.toml"
    assert names("win32", EXO_GPU_BACKEND=f"simulated:{file}") == ["simulated", "cpu"]
    assert names("linux", EXO_GPU_BACKEND=" ") == names("linux")


def test_what_was_asked_for_is_known_from_what_is_tried_anyway() -> None:
    made = GPUBackendFactory.for_this_platform(NODE, environment={"EXO_GPU_BACKEND": "rocm"}, system="linux")
    assert [(one.name, one.is_chosen) for one in made.makers] == [("rocm", True), ("cpu", False)]
    made = GPUBackendFactory.for_this_platform(NODE, environment={}, system="linux")
    assert not any(one.is_chosen for one in made.makers)


@pytest.mark.parametrize("word", ["cuda:0", "gpu", "simulated", "simulated:"])
def test_what_is_no_backend_is_said_with_those_that_are(word: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no backend; choose of cuda, .*cpu, simulated:FILE"):
        names("linux", EXO_GPU_BACKEND=word)


def test_a_file_that_cannot_be_played_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml"):
        names("linux", EXO_GPU_BACKEND=f"simulated:{tmp_path / 'missing.toml'}")
