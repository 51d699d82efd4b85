"""Reads from amdgpu's binary table of metrics what holds the GPU back. Pure.

Source: struct gpu_metrics_v1_3 in Linux' drivers/gpu/drm/amd/include/kgd_pp_interface.h, and the bits of its
`indep_throttle_status` in pm/swsmu/inc/amdgpu_smu.h. Cards of other generations have other tables; of those nothing
is told.
"""

import struct

from exo.gpu.reading import ThrottleReason

_SIZE, _FORMAT, _CONTENT = 120, 1, 3
_STATUS_AT = 112
_UNKNOWN = 2**64 - 1
_RANGES: tuple[tuple[range, ThrottleReason], ...] = (
    (range(16), "power"),
    (range(16, 32), "power"),  # Current.
    (range(32, 48), "thermal"),
    (range(48, 64), "other"),
)


def throttle_reasons(table: bytes | None) -> tuple[ThrottleReason, ...] | None:
    """Return what holds the clocks back; None where this table does not tell."""
    if table is None or len(table) < _SIZE:
        return None
    size, kind, content = struct.unpack_from("<HBB", table)
    if (size, kind, content) != (_SIZE, _FORMAT, _CONTENT):
        return None
    (status,) = struct.unpack_from("<Q", table, _STATUS_AT)
    if status == _UNKNOWN:
        return None
    found: list[ThrottleReason] = [
        reason for bits, reason in _RANGES if any(status >> bit & 1 for bit in bits)
    ]
    return tuple(dict.fromkeys(found))
