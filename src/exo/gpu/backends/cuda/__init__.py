"""NVIDIA's GPUs: watched through NVML, computed with through CuPy."""

from exo.gpu.backends.cuda.driver import CUDADriver
from exo.gpu.backends.cuda.nvml import NvidiaMonitor

__all__ = ["CUDADriver", "NvidiaMonitor"]
