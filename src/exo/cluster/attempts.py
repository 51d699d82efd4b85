"""When to try an address again: later each time that joining there has failed. Sends nothing."""

from collections.abc import Callable

import msgspec

from exo.cluster.options import CoordinatorOptions
from exo.shared.types.nodes import HostPort

FIRST_TIMEOUT_S = 0.5
"""How long a master is waited for that is dialled for the first time."""
UNWELCOME_S = 5.0
"""After how long a node that was removed asks again whether it is let in."""


class _Record(msgspec.Struct):
    pause_s: float = 0.0
    due_s: float = 0.0
    unwelcome_until_s: float = 0.0
    failed_count: int = 0


class Attempts:
    """Remembers what became of dialling; `options.sightings_max` bounds how many addresses."""

    def __init__(self, options: CoordinatorOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._records: dict[HostPort, _Record] = {}

    def over(self, address: HostPort, *, succeeded: bool) -> None:
        """An attempt to join is over; the next one at this address waits, longer each time that it fails."""
        options = self._options
        record = self._records.setdefault(address, _Record())
        record.failed_count = 0 if succeeded else record.failed_count + 1
        if succeeded:
            record.pause_s = 0.0
        record.pause_s = min(max(options.redial_s, 2 * record.pause_s), options.redial_max_s)
        record.due_s = self._clock() + record.pause_s
        if len(self._records) > options.sightings_max:
            self._records = {
                key: value for key, value in self._records.items() if value.due_s > self._clock()
            }

    def unwelcome(self, address: HostPort) -> None:
        """The master there does not let this node in, and will not soon."""
        record = self._records.setdefault(address, _Record())
        record.unwelcome_until_s = self._clock() + UNWELCOME_S

    def due_s(self, address: HostPort) -> float:
        """Return when the next attempt may begin, by the clock."""
        record = self._records.get(address)
        return max(record.due_s, record.unwelcome_until_s) if record is not None else 0.0

    def timeout_s(self, address: HostPort) -> float:
        """Return how long to wait for an answer: at first not long, for of several addresses one may be dead."""
        record = self._records.get(address)
        failed_count = 0 if record is None else record.failed_count
        return min(self._options.dial_timeout_s, FIRST_TIMEOUT_S * (1 + failed_count))
