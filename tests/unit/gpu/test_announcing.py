"""What a node says of its devices when it starts."""

from collections.abc import Iterator

import pytest
from loguru import logger
from msgspec.structs import replace

from exo.node_announcing import DeviceAnnouncer
from exo.shared.types.devices import Backend, GPUDevice
from support.states import GIB, cpu, gpu

CARD = replace(gpu("n", 8 * GIB), name="NVIDIA GeForce RTX 4060")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    yield lines
    logger.remove(sink)


def command_for(engine: str, backend: Backend) -> str | None:
    return "uv add it" if (engine, backend) == ("mlx", "cuda") else None


@pytest.mark.parametrize(
    ("devices", "usable", "expected"),
    [
        ((cpu("n", 16 * GIB),), (), ["Processor: Test CPU (16.0 GiB)"]),
        (
            (CARD,),
            ("cuda",),
            ["GPU detected: NVIDIA GeForce RTX 4060 (8.0 GiB)", "Using MLX CUDA backend"],
        ),
        (
            (CARD,),
            (),
            [
                "GPU detected: NVIDIA GeForce RTX 4060 (8.0 GiB)",
                "GPU detected but MLX has no CUDA build: running on CPU. Install with uv add it",
            ],
        ),
        (
            (replace(CARD, name="AMD Radeon", backend="rocm"),),
            (),
            ["GPU detected: AMD Radeon (8.0 GiB)", "GPU detected but MLX has no ROCM build: running on CPU"],
        ),
        # No layers are placed on what is played: nothing is missing for it.
        ((replace(CARD, is_simulated=True),), (), ["GPU detected: NVIDIA GeForce RTX 4060 (8.0 GiB)"]),
    ],
)
def test_each_device_is_told_and_what_runs_on_it(
    heard: list[str],
    devices: tuple[GPUDevice, ...],
    usable: tuple[Backend, ...],
    expected: list[str],
) -> None:
    DeviceAnnouncer({"mlx": usable}, command_for).started(devices)
    assert heard == expected


def test_a_gpu_that_appears_late_gets_the_same_hint_and_once(heard: list[str]) -> None:
    announcer = DeviceAnnouncer({"mlx": ()}, command_for)
    announcer.started((cpu("n", 16 * GIB),))
    del heard[:]
    announcer.now_there((cpu("n", 16 * GIB), CARD))
    assert heard == ["GPU detected but MLX has no CUDA build: running on CPU. Install with uv add it"]
    announcer.now_there((CARD, replace(CARD, local_alias="cuda:1")))
    assert len(heard) == 1
