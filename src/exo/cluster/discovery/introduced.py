"""Addresses that turned up elsewhere: in a join token's invitation, or where this node's cluster was last seen."""

import anyio

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.facts import Sighting
from exo.cluster.signal import Signal
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

INTERVAL_S = 5.0
ADDRESSES_MAX = 64


class IntroducedPeers(Discovery):
    """Reports each address now and then; more can be added while it runs."""

    def __init__(self) -> None:
        self._addresses: dict[HostPort, NodeId | None] = {}
        self._changed = Signal()

    def introduce(self, address: HostPort, node_id: NodeId | None = None) -> None:
        """Try this address too, where a node was seen last; of too many the oldest are forgotten."""
        self._addresses.pop(address, None)
        self._addresses[address] = node_id
        while len(self._addresses) > ADDRESSES_MAX:
            del self._addresses[next(iter(self._addresses))]
        self._changed.fire()

    async def run(self, facts: FactsSource, report: Report) -> None:
        while True:
            for address, node_id in list(self._addresses.items()):
                report(Sighting(address=address, via="introduced", expected_node_id=node_id))
            with anyio.move_on_after(INTERVAL_S if self._addresses else None):
                await self._changed.wait()
