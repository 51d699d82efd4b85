"""What NVIDIA's driver means by the numbers of its errors (Xid), as far as it matters for going on with a device.

Source: NVIDIA, "Xid Errors", catalogue and analysis: https://docs.nvidia.com/deploy/xid-errors/. What it calls
RESET_GPU and RESTART_BM is fatal here; RESTART_APP is most likely the program's doing.
"""

from typing import Literal

Weight = Literal["fatal", "bad", "suspicious", "none"]
"""How much something says about a device: it is gone until it is reset; it did wrong; look at it soon; nothing."""

_FATAL = {
    46: "the GPU stopped processing",
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    64: "memory that cannot be repaired",
    79: "the GPU has fallen off the bus",
    95: "uncontained memory error",
    109: "context switch timeout",
    110: "security fault",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
    136: "NVLink training failed",
    140: "unrecovered ECC error",
    143: "GPU initialization failed",
    155: "NVLink error that needs a reset",
    156: "memory is to be retired at the next reset",
}
_BAD = {
    63: "memory was repaired",
    74: "NVLink error",
    92: "many single-bit ECC errors",
    94: "contained memory error",
}
_PROGRAM = {
    8: "the GPU stopped processing for a program",
    11: "invalid commands",
    13: "a program's exception in the graphics engine",
    31: "a program's page fault in the GPU's memory",
    32: "invalid commands",
    43: "a program's work was stopped",
    45: "a program's work was cleaned up",
    68: "video processor exception",
    69: "graphics engine class error",
    154: "a note about another error",
}
_RESET = "reset it with `sudo nvidia-smi --gpu-reset`, or restart the machine"
_ECC = frozenset({48, 63, 64, 92, 94, 95, 140})


def weight_of(code: int) -> Weight:
    """Say what an Xid means for the device. A number that is not known here counts against it."""
    if code in _FATAL:
        return "fatal"
    return "suspicious" if code in _PROGRAM else "bad"


def is_memory_error(code: int) -> bool:
    """Say whether it is the device's memory that failed."""
    return code in _ECC


def describe(code: int) -> str:
    """Return it as people read it, such as `Xid 74 (NVLink error)`; of what does not pass, with what to do."""
    words = _FATAL.get(code) or _BAD.get(code) or _PROGRAM.get(code)
    step = f": {_RESET}" if code in _FATAL else ""
    return f"Xid {code}" if words is None else f"Xid {code} ({words}){step}"
