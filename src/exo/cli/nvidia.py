"""Is there an NVIDIA GPU, and which of exo's extras fits it? Needs nothing beyond Python itself."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

CUDA_12_DRIVER = 525
CUDA_13_DRIVER = 580
"""The extra `cuda` brings libraries of CUDA 13, which want this driver."""

PLAIN_COMMAND = "uv run exo"
CUDA_COMMAND = "uv run --no-group cpu --extra cuda exo"

_TIMEOUT_S = 20.0
_MLX_CUDA_DISTRIBUTIONS = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")


@dataclass(frozen=True)
class NvidiaGpu:
    """One line of `nvidia-smi`."""

    name: str
    driver_version: str

    @property
    def driver_major(self) -> int | None:
        """The number that says which CUDA the driver can run."""
        head = self.driver_version.partition(".")[0].strip()
        return int(head) if head.isdecimal() else None


@dataclass(frozen=True)
class Advice:
    """How to start exo on this machine, and why so."""

    command: str
    reason: str
    has_gpu: bool

    @property
    def is_cuda(self) -> bool:
        """Whether the command uses the GPU."""
        return self.command == CUDA_COMMAND


def nvidia_gpus() -> tuple[list[NvidiaGpu], str | None]:
    """Ask nvidia-smi for the GPUs; without any, also why there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "there is no nvidia-smi on the PATH: no NVIDIA driver is installed"
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi did not answer within {_TIMEOUT_S:g} s"
    except OSError as error:
        return [], f"nvidia-smi cannot be run: {error.strerror or error}"
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [], f"nvidia-smi failed: {said[0] if said else f'exit code {done.returncode}'}"
    gpus: list[NvidiaGpu] = []
    for line in done.stdout.splitlines():
        name, separator, driver_version = line.rpartition(",")
        if separator:
            gpus.append(NvidiaGpu(name.strip(), driver_version.strip()))
    return gpus, None if gpus else "nvidia-smi lists no GPU"


def advise() -> Advice:
    """Say how to start exo on this machine."""
    gpus, why_none = nvidia_gpus()
    if not gpus:
        return Advice(PLAIN_COMMAND, str(why_none), has_gpu=False)
    gpu = gpus[0]
    major = gpu.driver_major
    driver = f"{gpu.name} with driver {gpu.driver_version}"
    if major is None:
        return Advice(PLAIN_COMMAND, f"{driver}: the driver's version cannot be read", has_gpu=True)
    if major >= CUDA_13_DRIVER:
        return Advice(CUDA_COMMAND, driver, has_gpu=True)
    if major >= CUDA_12_DRIVER:
        reason = (
            f"{driver}: enough for CUDA 12, but exo's CUDA libraries want driver {CUDA_13_DRIVER} or newer"
        )
    else:
        reason = f"{driver}: too old for CUDA 12, which wants {CUDA_12_DRIVER}; update it to {CUDA_13_DRIVER} or newer"
    return Advice(PLAIN_COMMAND, reason, has_gpu=True)


def wants_cuda(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether `EXO_USE_CUDA` asks for CUDA."""
    return environment.get("EXO_USE_CUDA", "").strip().lower() in ("1", "true", "yes", "on")


def has_mlx_cuda() -> bool:
    """Say whether MLX's CUDA back end is installed."""
    for name in _MLX_CUDA_DISTRIBUTIONS:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False


def cuda_advice() -> str | None:
    """Return what stands between this installation and CUDA, with the next step; None when nothing does."""
    if has_mlx_cuda():
        return None
    advice = advise()
    if advice.is_cuda:
        return f"MLX is installed without CUDA and runs on the CPU; start exo with: {CUDA_COMMAND}"
    return f"MLX runs on the CPU: {advice.reason}"
