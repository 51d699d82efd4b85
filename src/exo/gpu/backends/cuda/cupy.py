"""Memory and copies of GPUs through CuPy: CUDA's runtime, and HIP's under the same names in CuPy's build for AMD.

The runtime's own calls are used rather than CuPy's memory pool, so that what is freed is free at once for everybody.
NumPy is imported by the first copy: every node imports this file, and few have such a GPU.
"""

import importlib
from typing import Any

import msgspec

from exo.gpu.backends.cuda.cupy_errors import status_of, translated
from exo.gpu.backends.cuda.cupy_matrices import multiply_as_arrays, multiply_with_cublas, product_size_bytes
from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceLostError
from exo.gpu.reading import MemoryInfo

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3
_INSUFFICIENT_DRIVER = 35
_PEER_ACCESS_IS_ON = 704


class CuPyDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the runtime counts it: `ordinal` is what its calls take."""

    ordinal: int
    name: str
    pci_address: str | None
    uuid: str | None
    """Without a prefix such as `GPU-`, where the runtime tells all of it."""
    memory_total_bytes: int
    is_integrated: bool
    """Its memory is the host's."""
    compute_units: int | None
    compute_capability: str | None
    """On AMD the architecture, such as gfx942."""


class CuPyBuffer(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Memory of one device."""

    ordinal: int
    pointer: int
    size_bytes: int


class CuPyCompute:
    """CuPy in this process. Thread-safe: the current device is the thread's own.

    Args:
        is_hip: CuPy for AMD's GPUs is wanted.
        install_command: What brings the CuPy that fits.
    """

    def __init__(self, *, is_hip: bool, install_command: str) -> None:
        self._is_hip = is_hip
        self._install_command = install_command
        self._cupy: Any = None
        self._runtime: Any = None
        self._peers: set[tuple[int, int]] = set()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._runtime is not None

    def open(self) -> None:
        """Import CuPy and make sure that it reaches a driver and its matrix library.

        Raises:
            BackendUnavailableError: It is missing or does not fit; the message says what to do.
        """
        cupy, runtime = self._imported()
        if bool(runtime.is_hip) != self._is_hip:
            kinds = ("NVIDIA", "AMD")
            raise self._unavailable(
                f"the installed CuPy is for {kinds[not self._is_hip]} GPUs: uninstall it, and install the one for "
                f"{kinds[self._is_hip]}"
            )
        # The import succeeds without any driver; what follows is the first real use.
        try:
            count = runtime.getDeviceCount()
        except Exception as error:
            if status_of(error) == _INSUFFICIENT_DRIVER:
                raise self._unavailable(
                    "the driver is missing, or too old for the installed CuPy: install a newer driver, or the CuPy "
                    "for the one that is there"
                ) from error
            raise BackendUnavailableError(
                f"CuPy reaches no GPU ({error}): see what the driver's tool says"
            ) from error
        if count < 1:
            raise BackendUnavailableError(
                "CuPy finds no GPU: see CUDA_VISIBLE_DEVICES, and what the driver's tool says"
            )
        try:
            _ = cupy.cuda.cublas
        except ImportError as error:
            raise self._unavailable(f"CuPy lacks its matrix library ({error})") from error
        self._cupy, self._runtime = cupy, runtime

    def close(self) -> None:
        """Forget it. May be called twice."""
        self._cupy = self._runtime = None
        self._peers.clear()

    def devices(self) -> list[CuPyDevice]:
        """Return the devices that the runtime counts, in its order.

        Raises:
            DeviceLostError: The driver does not answer.
        """
        try:
            return [self._described(ordinal) for ordinal in range(self._runtime.getDeviceCount())]
        except Exception as error:
            raise self._as_ours(error, "looking for devices") from error

    def memory_info(self, ordinal: int) -> MemoryInfo:
        """Return how much memory there is, and how much is in use. Takes some of it for the runtime itself.

        Raises:
            DeviceLostError: The device does not answer.
        """
        try:
            self._runtime.setDevice(ordinal)
            free_bytes, total_bytes = self._runtime.memGetInfo()
        except Exception as error:
            raise self._as_ours(error, "reading its memory") from error
        return MemoryInfo(total_bytes=int(total_bytes), used_bytes=int(total_bytes - free_bytes))

    def allocate(self, ordinal: int, size_bytes: int) -> CuPyBuffer:
        """Return new memory.

        Raises:
            OutOfDeviceMemoryError: There is not enough.
            DeviceLostError: The device does not answer.
        """
        try:
            self._runtime.setDevice(ordinal)
            pointer = int(self._runtime.malloc(size_bytes))
        except Exception as error:
            raise self._as_ours(error, f"allocating {size_bytes} bytes") from error
        return CuPyBuffer(ordinal=ordinal, pointer=pointer, size_bytes=size_bytes)

    def free(self, buffer: CuPyBuffer) -> None:
        """Give memory back.

        Raises:
            DeviceLostError: The device does not answer.
        """
        try:
            self._runtime.setDevice(buffer.ordinal)
            self._runtime.free(buffer.pointer)
        except Exception as error:
            raise self._as_ours(error, "freeing memory") from error

    def write(self, buffer: CuPyBuffer, data: memoryview, offset_bytes: int) -> None:
        """Copy from the host.

        Raises:
            DeviceLostError: The device does not answer.
        """
        if data.nbytes == 0:
            return
        import numpy

        source = numpy.frombuffer(data, dtype=numpy.uint8)
        try:
            self._runtime.setDevice(buffer.ordinal)
            self._runtime.memcpy(
                buffer.pointer + offset_bytes, source.ctypes.data, source.nbytes, _HOST_TO_DEVICE
            )
        except Exception as error:
            raise self._as_ours(error, "copying to it") from error

    def fetch(self, buffer: CuPyBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        """Copy to the host.

        Raises:
            DeviceLostError: The device does not answer.
        """
        if size_bytes == 0:
            return b""
        import numpy

        target = numpy.empty(size_bytes, dtype=numpy.uint8)
        try:
            self._runtime.setDevice(buffer.ordinal)
            self._runtime.memcpy(
                target.ctypes.data, buffer.pointer + offset_bytes, size_bytes, _DEVICE_TO_HOST
            )
        except Exception as error:
            raise self._as_ours(error, "copying from it") from error
        return target.tobytes()

    def copy(self, source: CuPyBuffer, destination: CuPyBuffer, size_bytes: int) -> None:
        """Copy between two devices, directly where the hardware can and else through the host.

        Raises:
            DeviceLostError: One of the devices does not answer.
        """
        if size_bytes == 0:
            return
        runtime = self._runtime
        try:
            if source.ordinal == destination.ordinal:
                runtime.setDevice(source.ordinal)
                runtime.memcpy(destination.pointer, source.pointer, size_bytes, _DEVICE_TO_DEVICE)
                return
            self._open_way(source.ordinal, destination.ordinal)
            runtime.memcpyPeer(
                destination.pointer, destination.ordinal, source.pointer, source.ordinal, size_bytes
            )
        except Exception as error:
            raise self._as_ours(error, "copying between devices") from error

    def can_reach(self, ordinal: int, other: int) -> bool:
        """Whether a device can read and write another's memory without the host.

        Raises:
            DeviceLostError: The driver does not answer.
        """
        try:
            return bool(self._runtime.deviceCanAccessPeer(ordinal, other))
        except Exception as error:
            raise self._as_ours(error, "asking for a way between devices") from error

    def synchronize(self, ordinal: int) -> None:
        """Wait until all that was begun on the device is done.

        Raises:
            DeviceLostError: The device does not answer, or what was begun broke it.
        """
        try:
            self._runtime.setDevice(ordinal)
            self._runtime.deviceSynchronize()
        except Exception as error:
            raise self._as_ours(error, "waiting for it") from error

    def multiply(
        self, left: CuPyBuffer, right: CuPyBuffer, shape: MatrixShape, precision: Precision
    ) -> CuPyBuffer:
        """Return the product of two matrices in new memory: float32, or int32 where `precision` is int8.

        Raises:
            NotComputingError: The device has no arithmetic of this precision.
            OutOfDeviceMemoryError: There is not enough memory for the product.
            DeviceLostError: The device does not answer.
        """
        product = self.allocate(left.ordinal, product_size_bytes(shape))
        pointers = (left.pointer, right.pointer, product.pointer)
        try:
            self._runtime.setDevice(left.ordinal)
            if self._is_hip:
                multiply_as_arrays(self._cupy, left.ordinal, pointers, shape, precision)
            else:
                multiply_with_cublas(self._cupy, pointers, shape, precision)
        except Exception as error:
            ours = self._as_ours(error, f"multiplying in {precision}")
            try:
                self.free(product)
            except DeviceLostError:
                pass  # With the device its memory is gone.
            raise ours from error
        return product

    def _imported(self) -> tuple[Any, Any]:
        try:
            cupy: Any = importlib.import_module("cupy")
            return cupy, cupy.cuda.runtime
        except ModuleNotFoundError as error:
            if error.name != "cupy":
                raise self._unavailable(f"CuPy lacks {error.name}") from error
            raise self._unavailable("computing needs CuPy, which is not installed") from error
        except Exception as error:
            # A build for other libraries than those there are; for AMD's GPUs it fails here already.
            raise self._unavailable(
                f"CuPy is installed, but not the one that fits: it does not start ({error})"
            ) from error

    def _unavailable(self, message: str) -> BackendUnavailableError:
        return BackendUnavailableError(message, install_command=self._install_command)

    def _described(self, ordinal: int) -> CuPyDevice:
        properties: dict[str, Any] = self._runtime.getDeviceProperties(ordinal)
        uuid = properties.get("uuid")
        architecture = _text(properties.get("gcnArchName")).partition(":")[0]
        capability = f"{properties['major']}.{properties['minor']}" if "major" in properties else None
        return CuPyDevice(
            ordinal=ordinal,
            name=_text(properties.get("name")) or "GPU",
            pci_address=str(self._runtime.deviceGetPCIBusId(ordinal)).lower() or None,
            uuid=_uuid_text(uuid) if isinstance(uuid, bytes) and len(uuid) == 16 else None,
            memory_total_bytes=int(properties.get("totalGlobalMem", 0)),
            is_integrated=bool(properties.get("integrated", 0)),
            compute_units=int(properties.get("multiProcessorCount", 0)) or None,
            compute_capability=architecture or capability,
        )

    def _open_way(self, ordinal: int, other: int) -> None:
        """Let two devices reach each other's memory, if they can; asked once for each pair."""
        if (ordinal, other) in self._peers:
            return
        for one, another in ((ordinal, other), (other, ordinal)):
            if self._runtime.deviceCanAccessPeer(one, another):
                self._runtime.setDevice(one)
                try:
                    self._runtime.deviceEnablePeerAccess(another)
                except self._runtime.CUDARuntimeError as error:
                    if status_of(error) != _PEER_ACCESS_IS_ON:
                        raise
            self._peers.add((one, another))

    def _as_ours(self, error: Exception, doing: str) -> Exception:
        if self._runtime is None:
            return DeviceLostError("CuPy is closed: open it before using it")
        return translated(self._runtime, error, doing)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace").rstrip("\0") if isinstance(value, bytes) else str(value or "")


def _uuid_text(raw: bytes) -> str:
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
