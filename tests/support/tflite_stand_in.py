"""TensorFlow Lite as the contract suite of backends sees it: the real LiteRT, on the processor."""

import importlib.util

from exo.gpu.backends.tflite import TFLiteDriver
from exo.gpu.backends.tflite.products import LiteRtProducts


def make() -> TFLiteDriver:
    """Return a driver that computes on the processor."""
    return TFLiteDriver(products=LiteRtProducts("CPU"))


def why_not() -> str | None:
    """Say why there is none on this machine."""
    return None if importlib.util.find_spec("ai_edge_litert") else "ai-edge-litert is not installed"
