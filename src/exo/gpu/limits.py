"""How long calls into a driver may take before the device counts as hanging."""

import msgspec


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. Generous: a tight limit takes a busy machine for a broken one."""

    open_s: float = 30.0
    """Loading a vendor's libraries from a cold disk takes long; who starts a node does not wait for it."""
    close_s: float = 3.0
    """The end of a node does not wait for a driver."""
    find_s: float = 10.0
    read_s: float = 3.0
    """Telemetry takes milliseconds; a driver that resets a device takes seconds."""
    memory_s: float = 30.0
    """The first allocation prepares the device."""
    compute_s: float = 60.0
    transfer_base_s: float = 10.0
    transfer_bytes_per_s: float = 50e6
    """The slowest link that is taken for one that works."""

    def transfer_s(self, size_bytes: int) -> float:
        """Return the limit for a copy of so many bytes."""
        return self.transfer_base_s + size_bytes / self.transfer_bytes_per_s
