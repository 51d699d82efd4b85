"""Which engines there are, which can run here, and how to get one. Imports none of their libraries."""

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from typing import TYPE_CHECKING

from exo.engines.errors import EngineUnavailableError
from exo.shared.types.devices import Backend

if TYPE_CHECKING:  # The node asks what can run here; it has no use for the arrays that stages exchange.
    from exo.engines.base import Stage, StageSpec

_STAGES = {"mlx": ("exo.engines.mlx.stage", "MlxStage")}
_MLX_CUDA_ON_LINUX = ("mlx-cuda-13", "mlx-cuda-12")
_MLX_BACKENDS_ON_LINUX = ("mlx-cpu", *_MLX_CUDA_ON_LINUX)


def engine_problems() -> dict[str, str | None]:
    """Return every known engine with None where it can run here, else what is missing and how to install it."""
    return {"mlx": _mlx_problem()}


def available_engines() -> tuple[str, ...]:
    """Return the engines that can run here, best first. Cheap: looks for packages without importing them."""
    return tuple(name for name, problem in engine_problems().items() if problem is None)


def engine_backends() -> dict[str, tuple[Backend, ...]]:
    """Return, for every engine that can run here, the kinds of devices that it can use, preferred ones first."""
    backends = {"mlx": _mlx_backends}
    return {name: backends[name]() for name in available_engines()}


def missing_build(engine: str, backend: Backend) -> str | None:
    """Say how to install the build of an engine that uses such devices; None where there is none to install."""
    if engine == "mlx" and backend == "cuda" and sys.platform == "linux":
        return "uv run --no-group cpu --extra cuda exo"
    return None


def create_stage(engine: str, spec: "StageSpec") -> "Stage":
    """Return a stage of an engine, not loaded yet. Imports the engine's library.

    Raises:
        EngineUnavailableError: There is no such engine, or its library cannot be imported.
    """
    if engine not in _STAGES:
        known = ", ".join(_STAGES)
        raise EngineUnavailableError(f"there is no engine called {engine!r}; there are: {known}")
    module_name, class_name = _STAGES[engine]
    try:
        stage_class = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        hint = engine_problems()[engine] or f"{error}; reinstall it with: uv sync --reinstall"
        raise EngineUnavailableError(f"the engine {engine} cannot be imported: {hint}") from error
    stage: Stage = stage_class(spec)
    return stage


def _mlx_problem() -> str | None:
    for module in ("mlx", "mlx_lm"):
        if importlib.util.find_spec(module) is None:
            if sys.platform not in ("linux", "darwin"):
                return f"MLX does not run on {sys.platform}; use another engine"
            return f"the package {module.replace('_', '-')} is not installed; install it with: uv sync"
    if sys.platform == "linux" and not any(_is_installed(name) for name in _MLX_BACKENDS_ON_LINUX):
        return (
            "MLX is installed without a back end; install one with: uv sync "
            "(for an NVIDIA GPU: uv sync --no-group cpu --extra cuda)"
        )
    return None


def _mlx_backends() -> tuple[Backend, ...]:
    if sys.platform == "darwin":
        return ("metal", "cpu") if platform.machine() == "arm64" else ("cpu",)
    return ("cuda", "cpu") if any(_is_installed(name) for name in _MLX_CUDA_ON_LINUX) else ("cpu",)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
