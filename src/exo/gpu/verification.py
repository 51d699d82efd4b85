"""Whether a device may be used: it has to compute something right first."""

import random
from typing import Literal

import msgspec

from exo.gpu.backend import GPUBackend
from exo.gpu.device_check import check_device
from exo.gpu.health import CheckFailed, CheckPassed
from exo.shared.types.ids import DeviceId


class Verdict(msgspec.Struct, frozen=True):
    """`right` and `unknown` devices are used: one whose memory is full says nothing of how it computes."""

    outcome: Literal["right", "wrong", "unknown"]
    reason: str = ""
    is_hang: bool = False
    """It did not answer at all, so nothing is known of how it computes."""


async def verify(backend: GPUBackend, device_id: DeviceId, *, source: random.Random) -> Verdict:
    """Allocate, copy, compute and free on a device, and judge what came of it.

    Args:
        backend: Reaches the device.
        device_id: The device.
        source: Of the numbers that it has to compute with.
    """
    if not backend.computes:
        return Verdict("unknown", "it can only be watched")
    found = await check_device(backend, device_id, source=source)
    match found:
        case CheckPassed():
            return Verdict("right")
        case None:
            return Verdict("unknown", "it has no product in float32")
        case CheckFailed(failure=failure):
            outcome = "unknown" if failure.weight == "none" else "wrong"
            return Verdict(outcome, failure.message, is_hang=failure.kind == "hang")
