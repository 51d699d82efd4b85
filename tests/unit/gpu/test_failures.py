"""What engines, drivers and kernels say when something breaks, and what it is taken for."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu import xids
from exo.gpu.errors import DeviceHangError, DeviceLostError, DeviceNotFoundError, OutOfDeviceMemoryError
from exo.gpu.failures import MESSAGE_CHARACTERS_MAX, of_exception, of_exit, of_fault, of_text
from exo.gpu.reading import DeviceFault


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", "out_of_memory"),
        ("HIP out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 1,024 bytes", "out_of_memory"),
        (
            "alloc_buffer: allocating 9866.00 MiB on device 1: cudaMalloc failed: out of memory",
            "out_of_memory",
        ),
        ("ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory", "out_of_memory"),
        (
            "[METAL] Command buffer execution failed: Insufficient Memory "
            "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "out_of_memory",
        ),
        ("[metal::malloc] Attempting to allocate 76000000000 bytes", "out_of_memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", "out_of_memory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "out_of_memory"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "ecc"),
        ("pynvml.NVMLError_GpuIsLost: GPU is lost", "device_lost"),
        ("Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", "device_lost"),
        ("terminate called after throwing an instance of 'vk::DeviceLostError'", "device_lost"),
        ("onnxruntime: DXGI_ERROR_DEVICE_REMOVED (887A0005)", "device_lost"),
        ("HW Exception by GPU node-4 (Agent handle: 0x1ebc04e0) reason :GPU Hang", "hang"),
        (
            "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
            "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
            "hang",
        ),
        ("RuntimeError: CUDA error: the launch timed out and was terminated", "hang"),
        ("amdgpu 0000:2f:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=1", "hang"),
    ],
)
def test_known_words_are_recognised(text: str, kind: str) -> None:
    found = of_text(f"loading model\n{text}\nbye")
    assert found is not None
    assert found.kind == kind
    assert "loading model" not in found.message
    assert of_exit(1, text).kind == kind
    assert of_exception(RuntimeError(text)).kind == kind


@pytest.mark.parametrize(
    ("code", "kind", "weight"),
    [
        (79, "xid", "fatal"),
        (48, "ecc", "fatal"),
        (94, "ecc", "bad"),
        (74, "xid", "bad"),
        (13, "xid", "suspicious"),
    ],
)
def test_an_xid_is_read_with_its_number_and_its_device(code: int, kind: str, weight: str) -> None:
    found = of_text(f"[1.0] NVRM: Xid (PCI:0000:0F:00): {code}, pid=1122, name=python3")
    assert found is not None
    assert (found.kind, found.weight, found.code, found.pci_address) == (kind, weight, code, "0000:0f:00")
    assert str(code) in found.message


def test_the_worst_is_told() -> None:
    lost = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    cleaned = "NVRM: Xid (PCI:0000:01:00): 45, pid=1"
    memory = "CUDA out of memory"
    found = of_text(f"{memory}\n{cleaned}\n{lost}")
    assert found is not None and found.code == 79
    # A program that ran out of memory leaves such a clean-up behind: the device did nothing wrong.
    found = of_text(f"{cleaned}\n{memory}")
    assert found is not None and found.kind == "out_of_memory" and found.weight == "none"
    found = of_text(f"{cleaned}\nIllegal instruction")
    assert found is not None and found.code == 45


@pytest.mark.parametrize(
    "text", ["", "Segmentation fault", "RuntimeError: an illegal memory access was encountered", "killed"]
)
def test_what_is_not_known_stays_unknown(text: str) -> None:
    assert of_text(text) is None
    assert of_exception(RuntimeError(text)).kind == "unknown"
    failure = of_exit(-signal.SIGKILL, text)
    assert failure.kind == "unknown" and failure.weight == "suspicious"
    assert "SIGKILL" in failure.message


def test_an_exit_is_told_in_words() -> None:
    assert of_exit(3, "first\n\nlast\n").message == "the process ended with exit code 3; it said last: last"
    assert of_exit(None, "").message == "the process ended"
    assert of_exit(-250, "").message == "the process was killed by signal 250"
    hung = of_exit(-9, "step 7", is_hung=True)
    assert hung.kind == "hang" and hung.weight == "suspicious"


def test_own_errors_are_known_by_their_class_also_as_a_cause() -> None:
    assert of_exception(DeviceHangError("no answer for 3 s")).kind == "hang"
    assert of_exception(DeviceLostError("gone")).weight == "fatal"
    assert of_exception(DeviceNotFoundError("not listed")).kind == "device_lost"
    assert of_exception(OutOfDeviceMemoryError("needs 3")).weight == "none"
    assert of_exception(MemoryError()).kind == "out_of_memory"
    try:
        try:
            raise DeviceLostError("gone")
        except DeviceLostError as error:
            raise RuntimeError("step failed") from error
    except RuntimeError as error:
        found = of_exception(ExceptionGroup("two", [ValueError("x"), error]))
    assert found.kind == "device_lost" and found.message == "gone"


def test_causes_in_a_circle_end() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert of_exception(first).message == "RuntimeError: a"


def test_faults_of_a_driver() -> None:
    fault = DeviceFault(kind="xid", code=31, message="", is_fatal=False)
    assert of_fault(fault).weight == "suspicious"
    assert of_fault(DeviceFault(kind="xid", code=31, message="", is_fatal=True)).weight == "fatal"
    assert of_fault(DeviceFault(kind="ecc", message="2 errors", is_fatal=False)).kind == "ecc"
    reset = of_fault(DeviceFault(kind="reset_required", message="reset it", is_fatal=True))
    assert (reset.kind, reset.weight, reset.message) == ("device_lost", "fatal", "reset it")
    assert of_fault(DeviceFault(kind="new", message="", is_fatal=False)).message == "new"


def test_an_xid_that_is_not_known_counts_against_the_device() -> None:
    assert xids.weight_of(777) == "bad"
    assert xids.describe(777) == "Xid 777"
    assert xids.describe(74) == "Xid 74 (NVLink error)"
    # What a driver does not get over by itself says what a person can do.
    assert xids.describe(79) == (
        "Xid 79 (the GPU has fallen off the bus): reset it with `sudo nvidia-smi --gpu-reset`, or restart the machine"
    )


@given(st.text(max_size=400), st.one_of(st.none(), st.integers(-300, 300)))
def test_any_last_words_give_one_short_line(text: str, exit_code: int | None) -> None:
    failure = of_exit(exit_code, text)
    assert failure.message and "\n" not in failure.message
    assert len(failure.message) <= MESSAGE_CHARACTERS_MAX
