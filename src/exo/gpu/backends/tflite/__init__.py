"""GPUs of phones and small boards: computed with through LiteRT, the runtime of TensorFlow Lite."""

from exo.gpu.backends.tflite.driver import TFLiteDriver

__all__ = ["TFLiteDriver"]
