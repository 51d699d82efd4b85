"""Recognises what became of a device from what is left behind: an exception, a child's exit and last words. Pure.

What is not recognised stays `unknown`: it is never guessed from an exit code alone.
"""

import re
import signal
from typing import Literal, cast

import msgspec

from exo.gpu.errors import (
    DeviceHangError,
    DeviceLostError,
    DeviceNotFoundError,
    OutOfDeviceMemoryError,
)
from exo.gpu.reading import DeviceFault
from exo.gpu.xids import Weight, describe, is_memory_error, weight_of

FailureKind = Literal["out_of_memory", "device_lost", "ecc", "xid", "hang", "wrong_result", "unknown"]

MESSAGE_CHARACTERS_MAX = 300
_TEXT_CHARACTERS_MAX = 64 * 1024
"""Of a child's last words, counted from their end."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong with a device, or on it.

    Attributes:
        kind: What it was.
        message: One line for people.
        weight: What it says of the device. Running out of memory says nothing; an unknown end makes it suspicious.
        code: The Xid, where there is one.
        pci_address: Of the device that the driver names, in lower case, such as `0000:01:00`.
    """

    kind: FailureKind
    message: str
    weight: Weight
    code: int | None = None
    pci_address: str | None = None


_WEIGHTS: dict[FailureKind, Weight] = {
    "out_of_memory": "none",
    "device_lost": "fatal",
    "ecc": "bad",
    "hang": "bad",
    "wrong_result": "bad",
    "unknown": "suspicious",
}

_FAULT_KINDS: dict[str, FailureKind] = {"ecc": "ecc", "reset_required": "device_lost"}

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]+)\): (?P<code>\d{1,4})\b")

# Worst first: the last words of a process that lost its device may speak of memory as well. Names of errors are
# those of CUDA, HIP, NVML, Metal, DXGI and Vulkan; sentences are what the engines print of them.
_SIGNS: tuple[tuple[FailureKind, tuple[str, ...]], ...] = (
    (
        "device_lost",
        (
            r"fallen off the bus",
            r"\bGPU is lost\b",
            r"GPU_IS_LOST",
            r"unable to determine the device handle",
            r"DXGI_ERROR_DEVICE_(?:REMOVED|RESET)",
            r"0x887A000[57]",
            r"ErrorDeviceLost|VK_ERROR_DEVICE_LOST|DeviceLostError",
            r"kIOGPUCommandBufferCallbackErrorDeviceRemoved",
        ),
    ),
    (
        "ecc",
        (
            r"uncorrectable ECC error",
            r"cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE|hipErrorECCNotCorrectable",
            r"NVML_ERROR_ECC",
            r"uncorrectable hardware error",
        ),
    ),
    (
        "hang",
        (
            r"reason ?: ?GPU Hang",
            r"Caused GPU (?:Hang|Timeout) Error",
            r"kIOGPUCommandBufferCallbackError(?:Hang|Timeout)",
            r"the launch timed out and was terminated",
            r"cudaErrorLaunchTimeout|CUDA_ERROR_LAUNCH_TIMEOUT|hipErrorLaunchTimeOut",
            r"DXGI_ERROR_DEVICE_HUNG|0x887A0006",
            r"amdgpu.{0,200}ring \S{1,40} timeout",
            r"GPU hung on one of our command buffers",
        ),
    ),
    (
        "out_of_memory",
        (
            r"OutOfMemoryError",
            r"\bout of memory\b",
            r"Out of memory allocating",
            r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|hipErrorOutOfMemory",
            r"(?:CUBLAS|CUDNN|CUSPARSE|HIPBLAS)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED",
            r"kIOGPUCommandBufferCallbackErrorOutOfMemory",
            r"\[metal::malloc\]",
            r"ErrorOutOf(?:Device|Host)Memory|VK_ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY",
            r"Device memory allocation of size \d+ failed",
            r"0x8007000E|E_OUTOFMEMORY",
            r"\bbad_alloc\b|\bMemoryError\b|Cannot allocate memory",
            r"\boom-kill|\bOOM killer",
        ),
    ),
)
_PATTERNS: tuple[tuple[FailureKind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile("|".join(signs), re.IGNORECASE)) for kind, signs in _SIGNS
)


def of_exception(error: BaseException) -> Failure:
    """Say what an exception, or one that caused it, means for the device that was in use."""
    shown = _one_line(f"{type(error).__name__}: {error}")
    for cause in _chain(error):
        if isinstance(cause, DeviceHangError):
            return _failure("hang", str(cause))
        if isinstance(cause, DeviceLostError | DeviceNotFoundError):
            return _failure("device_lost", str(cause))
        if isinstance(cause, OutOfDeviceMemoryError | MemoryError):
            return _failure("out_of_memory", str(cause) or "out of memory")
        found = of_text(f"{type(cause).__name__}: {cause}")
        if found is not None:
            return found
    return _failure("unknown", shown)


def of_exit(exit_code: int | None, text: str, *, is_hung: bool = False) -> Failure:
    """Say what the end of an engine's process means for its devices.

    Args:
        exit_code: As `subprocess` gives it: minus the signal's number where one ended it; None: not known.
        text: What it said last.
        is_hung: It was ended from outside because it had stopped to answer.
    """
    found = of_text(text)
    if found is not None:
        return found
    how = _how(exit_code)
    if is_hung:
        # Its own fault as likely as the device's: the next check tells.
        message = _one_line(f"the process stopped to answer and was ended{_said(text)}")
        return Failure(kind="hang", message=message, weight="suspicious")
    return _failure("unknown", f"the process {how}{_said(text)}")


def of_fault(fault: DeviceFault) -> Failure:
    """Return what a driver reports as a failure."""
    if fault.kind == "xid" and fault.code is not None:
        weight: Weight = "fatal" if fault.is_fatal else weight_of(fault.code)
        kind: FailureKind = "ecc" if is_memory_error(fault.code) else "xid"
        return Failure(kind=kind, message=describe(fault.code), weight=weight, code=fault.code)
    return Failure(
        kind=_FAULT_KINDS.get(fault.kind, "unknown"),
        message=_one_line(fault.message or fault.kind),
        weight="fatal" if fault.is_fatal else "bad",
    )


def of_text(text: str) -> Failure | None:
    """Return the worst that a text tells of, or None where nothing in it is recognised."""
    text = text[-_TEXT_CHARACTERS_MAX:]
    xid = _worst_xid(text)
    if xid is not None and xid.weight == "fatal":
        return xid
    for kind, pattern in _PATTERNS:
        match = pattern.search(text)
        # A program's Xid is what follows when its process dies of something else.
        if match is not None and (xid is None or xid.weight == "suspicious" or _WEIGHTS[kind] == "fatal"):
            return _failure(kind, _line_around(text, match.start()))
    return xid


def _worst_xid(text: str) -> Failure | None:
    order: tuple[Weight, ...] = ("fatal", "bad", "suspicious", "none")
    found = [
        Failure(
            kind="ecc" if is_memory_error(code) else "xid",
            message=describe(code),
            weight=weight_of(code),
            code=code,
            pci_address=match["pci"].lower(),
        )
        for match in _XID.finditer(text)
        for code in (int(match["code"]),)
    ]
    return min(found, key=lambda one: order.index(one.weight)) if found else None


def _failure(kind: FailureKind, message: str) -> Failure:
    return Failure(kind=kind, message=_one_line(message), weight=_WEIGHTS[kind])


def _chain(error: BaseException) -> list[BaseException]:
    """Return it with what led to it, and what is inside of groups; each once."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [error]
    while waiting:
        one = waiting.pop(0)
        if any(one is other for other in found):
            continue
        found.append(one)
        if isinstance(one, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", one).exceptions
        waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
    return found


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def _said(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"; it said last: {lines[-1]}" if lines else ""


def _line_around(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start : end if end != -1 else len(text)].strip()


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_CHARACTERS_MAX else f"{line[: MESSAGE_CHARACTERS_MAX - 1]}…"
