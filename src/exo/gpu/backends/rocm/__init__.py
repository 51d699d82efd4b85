"""AMD's GPUs: watched through the kernel's files, computed with through CuPy."""

from exo.gpu.backends.rocm.driver import ROCmDriver

__all__ = ["ROCmDriver"]
