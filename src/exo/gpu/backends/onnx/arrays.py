"""Memory and products through ONNX Runtime on one kind of device.

NumPy is imported when it is needed: every node imports this file, and few have such a device.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from exo.gpu.backends.onnx.model import Kind, product_model
from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import (
    BackendUnavailableError,
    DeviceLostError,
    NotComputingError,
    OutOfDeviceMemoryError,
)

_KINDS: dict[Precision, tuple[Kind, str]] = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    # ONNX Runtime takes no bfloat16 from the host: it is widened there.
    "bfloat16": ("float32", "uint16"),
    "int8": ("int8", "int8"),
}
"""Of the model, and of NumPy for what the device holds."""
_LOST = ("887A0005", "887A0006", "887A0007", "device removed", "device has been removed")
_FULL = ("Failed to allocate", "out of memory", "8007000E", "bad_alloc", "bad allocation")


class OnnxBuffer:
    """Memory of a device: a value of ONNX Runtime, of bytes or of the numbers that a product gave."""

    def __init__(self, ordinal: int, value: Any) -> None:
        self.ordinal = ordinal
        self.value = value


class OnnxArrays:
    """ONNX Runtime with one provider. Each device is of one thread at a time.

    Args:
        provider: Its name there, such as `DmlExecutionProvider`.
        options: The provider's options for a device by its ordinal.
        memory: ONNX Runtime's name of the memory that the provider computes in.
        package: What to install for it.
    """

    def __init__(
        self, provider: str, options: Callable[[int], Mapping[str, str]], *, memory: str, package: str
    ) -> None:
        self._provider = provider
        self._options = options
        self._memory = memory
        self._package = package
        self._runtime: Any = None
        self._sessions: dict[tuple[int, Kind], Any] = {}

    def open(self, ordinal: int) -> None:
        """Load the library, and make sure that the provider takes a model on a device.

        Raises:
            BackendUnavailableError: It is missing, or does not.
        """
        try:
            runtime: Any = importlib.import_module("onnxruntime")
            available: list[str] = runtime.get_available_providers()
        except Exception as error:  # Broken installations fail in many ways.
            raise BackendUnavailableError(
                f"computing needs ONNX Runtime, which is not installed or does not start ({error})",
                install_command=f"uv pip install {self._package}",
            ) from error
        if self._provider not in available:
            raise BackendUnavailableError(
                f"the installed ONNX Runtime has no {self._provider}: it comes with the package {self._package}, in "
                "place of onnxruntime",
                install_command=f"uv pip uninstall onnxruntime && uv pip install {self._package}",
            )
        self._runtime = runtime
        try:
            self._session(ordinal, "float32")
        except Exception as error:
            self.close()
            raise BackendUnavailableError(f"{self._provider} does not start: {error}") from error

    def close(self) -> None:
        """Leave it. May be called twice."""
        self._sessions.clear()
        self._runtime = None

    def allocate(self, ordinal: int, size_bytes: int, free_bytes: int | None) -> OnnxBuffer:
        """Return new memory.

        Raises:
            OutOfDeviceMemoryError: There is less.
        """
        if free_bytes is not None and size_bytes > free_bytes:
            raise OutOfDeviceMemoryError(
                f"the GPU has {free_bytes} bytes free, {size_bytes - free_bytes} fewer than the {size_bytes} asked for"
            )
        import numpy

        make = self._used().OrtValue.ortvalue_from_shape_and_type
        place = self._place(ordinal)
        return OnnxBuffer(ordinal, self._explained(lambda: make([size_bytes], numpy.uint8, *place)))

    def write(self, buffer: OnnxBuffer, data: memoryview, offset_bytes: int) -> None:
        """Copy from the host: all of the memory travels, as ONNX Runtime knows no parts."""
        import numpy

        content = self._bytes(buffer)
        content[offset_bytes : offset_bytes + data.nbytes] = numpy.frombuffer(data, dtype=numpy.uint8)
        buffer.value = self._value(buffer.ordinal, content)

    def fetch(self, buffer: OnnxBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        """Copy to the host."""
        return self._bytes(buffer)[offset_bytes : offset_bytes + size_bytes].tobytes()

    def copy(self, source: OnnxBuffer, destination: OnnxBuffer, size_bytes: int) -> None:
        """Copy between devices, through the host."""
        content = self._bytes(destination)
        content[:size_bytes] = self._bytes(source)[:size_bytes]
        destination.value = self._value(destination.ordinal, content)

    def multiply(
        self, left: OnnxBuffer, right: OnnxBuffer, shape: MatrixShape, precision: Precision
    ) -> OnnxBuffer:
        """Return the product: float32, or int32 for int8.

        Raises:
            NotComputingError: The provider does not take the model.
        """
        kind, _ = _KINDS[precision]
        ordinal = left.ordinal
        try:
            session = self._session(ordinal, kind)
        except (DeviceLostError, OutOfDeviceMemoryError, BackendUnavailableError):
            raise
        except Exception as error:
            raise NotComputingError(f"{self._provider} does not compute in {precision}: {error}") from error
        binding = session.io_binding()
        for name, buffer, size in (
            ("a", left, (shape.rows, shape.inner)),
            ("b", right, (shape.inner, shape.columns)),
        ):
            numbers = _numbers(self._bytes(buffer), size, precision)
            binding.bind_ortvalue_input(name, self._value(ordinal, numbers))
        binding.bind_output("c", *self._place(ordinal))

        def run() -> Any:
            session.run_with_iobinding(binding)
            return binding.get_outputs()[0]

        return OnnxBuffer(ordinal, self._explained(run))

    def _session(self, ordinal: int, kind: Kind) -> Any:
        """Return the session that multiplies on a device.

        Raises:
            BackendUnavailableError: ONNX Runtime fell back to the processor, which it says in a warning only.
        """
        known = self._sessions.get((ordinal, kind))
        if known is not None:
            return known
        runtime = self._used()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        # What DirectML asks for.
        options.enable_mem_pattern = False
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        if self._provider != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = (self._provider, dict(self._options(ordinal)))
        session = self._explained(
            lambda: runtime.InferenceSession(product_model(kind), options, providers=[provider])
        )
        if self._provider not in session.get_providers():
            raise BackendUnavailableError(
                f"{self._provider} does not work on this machine: ONNX Runtime would compute on the processor instead"
            )
        self._sessions[ordinal, kind] = session
        return session

    def _value(self, ordinal: int, numbers: Any) -> Any:
        import numpy

        make = self._used().OrtValue.ortvalue_from_numpy
        place = self._place(ordinal)
        return self._explained(lambda: make(numpy.ascontiguousarray(numbers), *place))

    def _place(self, ordinal: int) -> tuple[str, int]:
        """Return ONNX Runtime's name of a device's memory: there is one host only."""
        return self._memory, 0 if self._memory == "cpu" else ordinal

    def _bytes(self, buffer: OnnxBuffer) -> Any:
        """Return a copy of the memory on the host."""
        import numpy

        found = self._explained(buffer.value.numpy)
        return numpy.array(found).reshape(-1).view(numpy.uint8)

    def _used(self) -> Any:
        if self._runtime is None:
            raise DeviceLostError("ONNX Runtime is closed: open the driver before using it")
        return self._runtime

    def _explained(self, function: Callable[[], Any]) -> Any:
        """Call into the library, with what its errors say of the device told apart."""
        try:
            return function()
        except Exception as error:
            text = str(error)
            if any(sign in text for sign in _LOST):
                raise DeviceLostError(f"the GPU failed ({text}): restart exo to use it again") from error
            if any(sign in text for sign in _FULL) or isinstance(error, MemoryError):
                raise OutOfDeviceMemoryError(f"the GPU has too little free memory ({text})") from error
            raise


def _numbers(content: Any, size: tuple[int, int], precision: Precision) -> Any:
    import numpy

    kind = numpy.dtype(_KINDS[precision][1])
    numbers = content[: size[0] * size[1] * kind.itemsize].view(kind).reshape(size)
    if precision == "bfloat16":
        # The upper half of a float32.
        return (numbers.astype(numpy.uint32) << 16).view(numpy.float32)
    return numbers
