"""Products through ONNX Runtime, for drivers whose devices it reaches."""
