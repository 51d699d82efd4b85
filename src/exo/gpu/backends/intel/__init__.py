"""Intel's GPUs: watched through the kernel's files, computed with through ONNX Runtime's OpenVINO provider."""

from exo.gpu.backends.intel.driver import IntelDriver

__all__ = ["IntelDriver"]
