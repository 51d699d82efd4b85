"""What a stage process finds in its environment."""

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_OPENBLAS_PATTERNS = (  # Below the root directory.
    "usr/lib/*/openblas-pthread/libopenblas.so.0",
    "usr/lib/*/libopenblas.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib/libopenblas.so.0",
    "opt/OpenBLAS/lib/libopenblas.so.0",
)
_BLAS_THREADS_MAX = 8


@functools.cache
def find_openblas() -> str | None:
    """Return where OpenBLAS is installed, or None. Looks at the usual places only; runs nothing."""
    found = (sorted(Path("/").glob(pattern)) for pattern in _OPENBLAS_PATTERNS)
    return next((str(files[0]) for files in found if files), None)


def stage_environment(base: Mapping[str, str], *, engine: str, device: str) -> dict[str, str]:
    """Return the environment for a stage's process: the node's own, with what the engine needs.

    Values that the user has set stay as they are.
    """
    environment = dict(base)
    environment["PYTHONUNBUFFERED"] = "1"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    # Models come from this node's disk; no library below may look for them elsewhere.
    environment["HF_HUB_OFFLINE"] = "1"
    environment["TRANSFORMERS_OFFLINE"] = "1"
    environment.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Half the cores: products of large matrices gain little from more, and the node has to answer meanwhile.
    threads = str(min(_BLAS_THREADS_MAX, max(1, (os.cpu_count() or 2) // 2)))
    environment.setdefault("OPENBLAS_NUM_THREADS", threads)
    environment.setdefault("OMP_NUM_THREADS", threads)
    if sys.platform == "linux" and engine == "mlx" and device.startswith("cpu"):
        library = find_openblas()
        if library is not None and "blas" not in environment.get("LD_PRELOAD", ""):
            # MLX's CPU wheel brings the reference BLAS, which multiplies 32-bit matrices many times slower.
            environment["LD_PRELOAD"] = " ".join(filter(None, [environment.get("LD_PRELOAD"), library]))
    return environment
