"""GPUs of Windows: DXGI tells of them, and ONNX Runtime computes through DirectML."""

from exo.gpu.backends.directml.driver import DirectMLDriver

__all__ = ["DirectMLDriver"]
