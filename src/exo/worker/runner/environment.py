"""What a stage process finds in its environment."""

import atexit
import functools
import os
import shutil
import stat
import sys
import tempfile
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


def private_scratch_dir() -> str | None:
    """Return a directory for temporary files that only this user can write to; None where that cannot be had.

    MLX compiles small functions into its temporary directory and loads what it finds there by name: in one that
    everybody may write to, that would be anybody's code.
    """
    if sys.platform == "win32":
        return None  # There a user's temporary directory is their own.
    directory = Path(tempfile.gettempdir()) / f"exo-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return str(directory) if is_private else _scratch_dir_of_this_run(directory.parent)


@functools.cache
def _scratch_dir_of_this_run(parent: Path) -> str:
    """Return one directory for all stages that this process starts; it goes with the process."""
    directory = tempfile.mkdtemp(prefix="exo-", dir=parent)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def stage_environment(
    base: Mapping[str, str], *, engine: str, device: str, scratch_dir: str | None = None
) -> dict[str, str]:
    """Return the environment for a stage's process: the node's own, with what the engine needs.

    Values that the user has set stay as they are.

    Args:
        base: The node's own environment.
        engine: The engine's name.
        device: Local alias, such as `cpu:0`.
        scratch_dir: Where temporary files go.
    """
    environment = dict(base)
    environment["PYTHONUNBUFFERED"] = "1"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    # Models come from this node's disk; no library below may look for them elsewhere.
    environment["HF_HUB_OFFLINE"] = "1"
    environment["TRANSFORMERS_OFFLINE"] = "1"
    environment.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if scratch_dir is not None:
        environment["TMPDIR"] = scratch_dir
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
