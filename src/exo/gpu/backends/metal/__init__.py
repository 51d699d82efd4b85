"""Apple's GPUs: computed with through MLX, watched through what macOS tells without root."""

from exo.gpu.backends.metal.driver import MetalDriver

__all__ = ["MetalDriver"]
