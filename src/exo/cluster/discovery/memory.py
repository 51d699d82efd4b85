"""Discovery in memory, for tests: whoever shares the air hears whoever speaks."""

import asyncio

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.facts import Sighting
from exo.cluster.transport.memory import MemoryNetwork


class MemoryAir:
    """What all of a simulated network's beacons go through. Cut links are deaf too.

    Args:
        network: Whose cuts apply.
        interval_s: Time between a node's beacons.
    """

    def __init__(self, network: MemoryNetwork, *, interval_s: float = 1.0) -> None:
        self.network = network
        self.interval_s = interval_s
        self.listeners: dict[str, Report] = {}


class MemoryDiscovery(Discovery):
    """One host's beacon."""

    def __init__(self, air: MemoryAir, host: str) -> None:
        self._air = air
        self._host = host
        self._wake = asyncio.Event()

    def nudge(self) -> None:
        self._wake.set()

    async def run(self, facts: FactsSource, report: Report) -> None:
        self._air.listeners[self._host] = report
        try:
            while True:
                self._wake.clear()
                own = facts()
                for host, hears in list(self._air.listeners.items()):
                    if host != self._host and not self._air.network.is_cut(host, self._host):
                        hears(Sighting(address=own.cluster_address, facts=own, via="memory"))
                try:
                    async with asyncio.timeout(
                        self._air.interval_s * self._air.network.random.uniform(0.9, 1.1)
                    ):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            if self._air.listeners.get(self._host) is report:
                del self._air.listeners[self._host]
