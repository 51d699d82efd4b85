"""How many wrong keys an address may try. Pure: the time is passed in."""

import ipaddress
from collections import OrderedDict, deque

FAILURES_MAX = 10
WINDOW_S = 60.0
ADDRESSES_MAX = 4096
"""How many addresses are remembered; the one that failed longest ago is forgotten first."""


class FailureLimit:
    """Counts failures by address; an IPv6 host counts with its whole /64, which is one subscriber's."""

    def __init__(
        self,
        *,
        failures_max: int = FAILURES_MAX,
        window_s: float = WINDOW_S,
        addresses_max: int = ADDRESSES_MAX,
    ) -> None:
        self._failures_max = failures_max
        self._window_s = window_s
        self._addresses_max = addresses_max
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Return for how many seconds nothing of this address is looked at any more; 0 if it may try.

        Args:
            address: Of the other end.
            now_s: Monotonic seconds.
        """
        failures = self._failures.get(_network(address))
        if failures is None or len(failures) < self._failures_max:
            return 0.0
        return max(0.0, failures[0] + self._window_s - now_s)

    def failed(self, address: str, now_s: float) -> None:
        """Note a failure."""
        key = _network(address)
        failures = self._failures.setdefault(key, deque(maxlen=self._failures_max))
        failures.append(now_s)
        self._failures.move_to_end(key)
        while len(self._failures) > self._addresses_max:
            self._failures.popitem(last=False)

    def __len__(self) -> int:
        return len(self._failures)


def is_loopback(address: str) -> bool:
    """Say whether an address is of this machine."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
