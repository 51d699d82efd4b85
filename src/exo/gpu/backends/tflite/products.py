"""Products through LiteRT: a model for each size of matrices, compiled for one accelerator."""

import importlib
from typing import Any

import numpy

from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, NotComputingError

_PACKAGE = "ai_edge_litert"
_SCHEMA_VERSION = 3
_FILE_IDENTIFIER = b"TFL3"


class LiteRtProducts:
    """LiteRT on one accelerator.

    Args:
        accelerator: LiteRT's name of it: GPU, or CPU.
    """

    def __init__(self, accelerator: str = "GPU") -> None:
        self._accelerator = accelerator
        self._runtime: Any = None
        self._schema: Any = None
        self._builder: Any = None

    def open(self) -> None:
        """Load the library and compile a first model.

        Raises:
            BackendUnavailableError: It is missing, or the accelerator does not take the model.
        """
        try:
            self._runtime = importlib.import_module(f"{_PACKAGE}.compiled_model")
            self._schema = importlib.import_module(f"{_PACKAGE}.schema_py_generated")
            self._builder = importlib.import_module("flatbuffers").Builder
        except Exception as error:  # Its libraries fail to load in many ways.
            self.close()
            raise BackendUnavailableError(
                f"computing needs LiteRT, which is not installed or does not start ({error})",
                install_command="uv pip install ai-edge-litert",
            ) from error
        try:
            self._compiled(MatrixShape(rows=1, inner=1, columns=1))
        except Exception as error:
            self.close()
            raise BackendUnavailableError(
                f"LiteRT finds no {self._accelerator} that it can use ({error})"
            ) from error

    def close(self) -> None:
        """Leave it. May be called twice."""
        self._runtime = self._schema = self._builder = None

    def multiply(self, left: Any, right: Any, shape: MatrixShape, precision: Precision) -> Any:
        """Return the product's bytes: float32. Halves are widened on the host before.

        Args:
            left: Bytes of the left matrix, as an array.
            right: Of the right one.
            shape: Of both.
            precision: Of their numbers.

        Raises:
            NotComputingError: LiteRT multiplies whole numbers in quantised models only.
        """
        if precision == "int8" or self._runtime is None:
            raise NotComputingError(
                f"LiteRT does not multiply matrices in {precision}: use another precision"
            )
        model = self._compiled(shape)
        inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
        try:
            for buffer, content, size in (
                (inputs[0], left, (1, shape.rows, shape.inner)),
                (inputs[1], right, (1, shape.inner, shape.columns)),
            ):
                buffer.write(_widened(content, size, precision))
            model.run_by_index(0, inputs, outputs)
            product = outputs[0].read(shape.rows * shape.columns, numpy.float32)
        finally:
            for buffer in (*inputs, *outputs):
                buffer.destroy()
            model.close()
        return numpy.ascontiguousarray(product).reshape(-1).view(numpy.uint8)

    def _compiled(self, shape: MatrixShape) -> Any:
        """Compile for the accelerator alone.

        Raises:
            NotComputingError: A part of it would run elsewhere.
        """
        runtime = self._runtime
        accelerator = getattr(runtime.HardwareAccelerator, self._accelerator)
        options = runtime.Options(hardware_accelerators=accelerator)
        # Else it computes in halves.
        options.gpu_options.enforce_f32 = True
        options.cpu_options.num_threads = 1
        model = runtime.CompiledModel.from_buffer(self._model(shape), options=options)
        if not model.is_fully_accelerated():
            model.close()
            raise NotComputingError(f"LiteRT would not compute all of a product on the {self._accelerator}")
        return model

    def _model(self, shape: MatrixShape) -> bytes:
        """Return a model of one operation, as the schema of TensorFlow Lite has it."""
        schema = self._schema
        graph = schema.SubGraphT()
        graph.name = b"product"
        graph.tensors = [
            self._tensor(b"a", (1, shape.rows, shape.inner)),
            self._tensor(b"b", (1, shape.inner, shape.columns)),
            self._tensor(b"c", (1, shape.rows, shape.columns)),
        ]
        graph.inputs, graph.outputs = [0, 1], [2]
        operation = schema.OperatorT()
        operation.inputs, operation.outputs = [0, 1], [2]
        operation.builtinOptionsType = schema.BuiltinOptions.BatchMatMulOptions
        operation.builtinOptions = schema.BatchMatMulOptionsT()
        graph.operators = [operation]
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.BATCH_MATMUL
        code.version = 1
        model = schema.ModelT()
        model.version = _SCHEMA_VERSION
        model.operatorCodes, model.subgraphs, model.buffers = [code], [graph], [schema.BufferT()]
        builder = self._builder(1024)
        builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _tensor(self, name: bytes, size: tuple[int, int, int]) -> Any:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape = name, list(size)
        tensor.type, tensor.buffer = self._schema.TensorType.FLOAT32, 0
        return tensor


def _widened(content: Any, size: tuple[int, int, int], precision: Precision) -> Any:
    count = size[1] * size[2]
    match precision:
        case "float32":
            numbers = content[: count * 4].view(numpy.float32)
        case "float16":
            numbers = content[: count * 2].view(numpy.float16).astype(numpy.float32)
        case _:
            # The upper half of a float32.
            upper = content[: count * 2].view(numpy.uint16).astype(numpy.uint32)
            numbers = (upper << 16).view(numpy.float32)
    return numbers.reshape(size)
