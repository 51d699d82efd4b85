"""Reads the host as a whole: memory, power, cores; at every collection, and so with few files."""

import time
from collections.abc import Callable

from exo.gpu.host_memory import read_host_memory, read_swap
from exo.gpu.host_power import CoreLoads, PlatformPower, efficiency_cores
from exo.worker.device_states import HostReading


class HostReader:
    """Keeps what differences are taken from. Of one thread at a time.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._power = PlatformPower(clock)
        self._power.watts()  # The first one has nothing to compare with.
        self._loads = CoreLoads(clock, efficiency_cores())

    def read(self) -> HostReading:
        """Read it; may block for a moment.

        Raises:
            OSError: The system does not tell.
        """
        memory, (swap_total, swap_free) = read_host_memory(), read_swap()
        efficient_percent, fast_percent = self._loads.percents()
        return HostReading(
            ram_total=memory.total_bytes,
            ram_available=memory.available_bytes,
            swap_total=swap_total,
            swap_available=swap_free,
            power_watts=self._power.watts(),
            efficiency_cores_percent=efficient_percent,
            performance_cores_percent=fast_percent,
        )
