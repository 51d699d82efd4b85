"""Peers that were named at start: addresses to try, not permissions."""

from collections.abc import Iterable

import anyio

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.facts import Sighting
from exo.shared.types.nodes import HostPort

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0


class StaticDiscovery(Discovery):
    """Reports each address again and again, at growing intervals: it may be started later than this node.

    Args:
        peers: Cluster addresses of other nodes.
        pause_s: First and longest time between two reports.
    """

    def __init__(
        self, peers: Iterable[HostPort], *, pause_s: tuple[float, float] = (FIRST_PAUSE_S, LONGEST_PAUSE_S)
    ) -> None:
        self._peers = tuple(dict.fromkeys(peers))
        self._pause_s = pause_s

    async def run(self, facts: FactsSource, report: Report) -> None:
        pause_s, longest_s = self._pause_s
        while self._peers:
            for address in self._peers:
                report(Sighting(address=address, via="static"))
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        await anyio.sleep_forever()
