"""Which command fits an NVIDIA machine, asked of a stand-in for nvidia-smi."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exo.cli import nvidia

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")

SCRIPT = Path(__file__).parents[3] / "scripts" / "detect_cuda.py"

Install = Callable[[str], Path]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put an nvidia-smi that runs this shell code first on the PATH, and nothing else of that name."""

    def install(body: str) -> Path:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return program

    return install


@pytest.mark.parametrize(
    ("driver", "command", "reason"),
    [
        ("580.65.06", nvidia.CUDA_COMMAND, "driver 580.65.06"),
        ("590.10", nvidia.CUDA_COMMAND, "driver 590.10"),
        ("579.99", nvidia.PLAIN_COMMAND, "580 or newer"),
        ("525.60.13", nvidia.PLAIN_COMMAND, "enough for CUDA 12"),
        ("470.256.02", nvidia.PLAIN_COMMAND, "too old for CUDA 12"),
        ("[N/A]", nvidia.PLAIN_COMMAND, "cannot be read"),
    ],
)
def test_the_driver_decides(nvidia_smi: Install, driver: str, command: str, reason: str) -> None:
    nvidia_smi(f"echo 'NVIDIA H100 80GB HBM3, {driver}'; echo 'NVIDIA H100 80GB HBM3, {driver}'")
    advice = nvidia.advise()
    assert (advice.command, advice.has_gpu) == (command, True)
    assert advice.is_cuda == (command == nvidia.CUDA_COMMAND)
    assert reason in advice.reason
    assert "H100" in advice.reason


def test_the_question_is_put_in_a_form_that_nvidia_smi_knows(nvidia_smi: Install) -> None:
    nvidia_smi(
        '[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader" ] && echo "Tesla, T4, 580.1"'
    )
    assert nvidia.nvidia_gpus() == ([nvidia.NvidiaGpu("Tesla, T4", "580.1")], None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9",
            "could not",
        ),
        ("exit 3", "exit code 3"),
        ("true", "lists no GPU"),
        ("sleep 60", "did not answer"),
    ],
)
def test_a_failing_nvidia_smi_is_a_reason(
    nvidia_smi: Install, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    monkeypatch.setattr(nvidia, "_TIMEOUT_S", 0.3)
    nvidia_smi(f"exec {body}" if body.startswith("sleep") else body)
    advice = nvidia.advise()
    assert (advice.command, advice.has_gpu) == (nvidia.PLAIN_COMMAND, False)
    assert reason in advice.reason


def test_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    advice = nvidia.advise()
    assert (advice.command, advice.has_gpu) == (nvidia.PLAIN_COMMAND, False)


def test_the_script_prints_the_command_alone_on_stdout(nvidia_smi: Install) -> None:
    nvidia_smi("echo 'NVIDIA H100, 580.1'")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "uv run --no-group cpu --extra cuda exo\n"
    assert "H100" in done.stderr


@pytest.mark.parametrize(
    ("value", "is_wanted"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)]
)
def test_cuda_is_asked_for_by_the_environment(value: str, is_wanted: bool) -> None:
    assert nvidia.wants_cuda({"EXO_USE_CUDA": value}) == is_wanted
    assert not nvidia.wants_cuda({})


def test_expecting_cuda_without_it_names_the_next_step(
    nvidia_smi: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: set[str] = set()

    def distribution(name: str) -> object:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    nvidia_smi("echo 'NVIDIA H100, 580.1'")
    assert nvidia.CUDA_COMMAND in str(nvidia.cuda_advice())
    nvidia_smi("echo 'NVIDIA H100, 470.1'")
    assert "too old" in str(nvidia.cuda_advice())
    installed.add("mlx-cuda-13")
    assert nvidia.cuda_advice() is None
