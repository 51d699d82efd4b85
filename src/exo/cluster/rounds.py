"""What a node does again and again: passes telemetry on, ticks, measures, and tells strangers when it has changed."""

from collections.abc import Sequence

import anyio
from anyio.abc import TaskGroup

from exo.cluster.discovery.base import Discovery
from exo.cluster.kernel import Kernel
from exo.cluster.round_trips import RoundTrips


class Rounds:
    """Loops without decisions of their own.

    Args:
        kernel: The node.
        round_trips: Measured over the connections that there are.
        discoveries: Told of changes that others should hear of.
    """

    def __init__(self, kernel: Kernel, round_trips: RoundTrips, discoveries: Sequence[Discovery]) -> None:
        self._kernel = kernel
        self._round_trips = round_trips
        self._discoveries = discoveries

    def start(self, tasks: TaskGroup) -> None:
        """Go on until the task group is cancelled."""
        tasks.start_soon(self._flush)
        tasks.start_soon(self._tick)
        tasks.start_soon(self._measure)
        if self._discoveries:
            tasks.start_soon(self._nudge)

    async def _flush(self) -> None:
        """Pass telemetry on: at once when it is rare, and never more often than the flush interval."""
        while True:
            while not self._kernel.has_telemetry:
                await self._kernel.lane.work.wait()
            self._kernel.flush_telemetry()
            await anyio.sleep(self._kernel.options.telemetry_flush_s)

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(self._kernel.options.tick_s)
            self._kernel.tick()

    async def _measure(self) -> None:
        while True:
            await anyio.sleep(self._kernel.options.measure_s)
            self._round_trips.check(self._kernel.connections)

    async def _nudge(self) -> None:
        """Let others know soon when this node's cluster, its master or its weight changes."""
        before = None
        while True:
            facts = self._kernel.situation.facts()
            now = (facts.cluster_id, facts.master_node_id, facts.member_count, facts.instance_count > 0)
            if now != before:
                before = now
                for discovery in self._discoveries:
                    discovery.nudge()
            await self._kernel.board.changed.wait()
