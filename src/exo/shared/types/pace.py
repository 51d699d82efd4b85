"""How fast stages really work, measured while they serve: telemetry that placement's predictions are corrected by."""

import msgspec

from exo.shared.types.ids import DeviceId, InstanceId


class DevicePace(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What decoding steps take on a device, for one engine and one type of weights.

    A step takes `step_overhead_s`, and for each of its layers `layer_overhead_s` and the time to read it at
    `bandwidth_bytes_per_s`. Measured at full work, of steps with one sequence.
    """

    device_id: DeviceId
    engine: str
    dtype: str
    """As the model's card tells it, such as `bfloat16` or `4-bit`: kernels of each have a speed of their own."""
    step_overhead_s: float
    layer_overhead_s: float
    bandwidth_bytes_per_s: float
    reads_min_bytes: int
    """What the smallest stage that was measured reads in a step."""
    reads_max_bytes: int
    """The same of the largest one; far outside of the two the figures rest on assumptions."""
    measurement_count: int
    """Steps that the figures rest on."""
    error_percent: float
    """Root mean square of how far the figures are from the times that they were made of."""
    used_by_others_percent: float | None = None
    """What others used of the device when stages had nothing to do, shortly before; None: not known."""
    hop_s: float | None = None
    """What one hop takes on average in the ring that a stage on this device began last, software included: the time
    from token to token less what the stages compute. None: it began no ring of several stages."""
    hop_count: int = 0
    """Rounds that `hop_s` rests on."""
    hop_device_ids: tuple[DeviceId, ...] = ()
    """The ring, in order."""


class InstancePace(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an instance's tokens take while one request runs, as its first stage sees it."""

    instance_id: InstanceId
    generation: int
    ms_per_token: float
    measurement_count: int
    """Tokens that it rests on."""


def pace_key(device_id: DeviceId, engine: str, dtype: str) -> str:
    """Name a device's pace among those of its node."""
    return f"{device_id} {engine} {dtype}"
