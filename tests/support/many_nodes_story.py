"""Clusters of many nodes in virtual time: how they begin, who votes in them, and what is asked of them everywhere."""

import asyncio
from collections.abc import Collection

from exo.cluster.membership import voters_wanted
from exo.cluster.options import CoordinatorOptions
from exo.cluster.raft.options import CoreOptions
from exo.shared.errors import NoMasterError
from exo.shared.types.events import Decision, NodeDisconnected
from support.simulated_cluster import SimulatedNode, Simulation, history_of, tagged
from support.workload import Workload, whole_log

SMALL = CoordinatorOptions(
    recent_entries=16, entries_per_message=5, snapshot_entries=20, core=CoreOptions(recent_max=8)
)
"""Little is kept in memory and in front of a snapshot: who comes late needs one."""
IMPATIENT = CoordinatorOptions(recent_entries=32, entries_per_message=5, voter_patience_s=2.0)
"""Who is lost gives its vote up after two seconds instead of a minute."""


class ManyNodes:
    """A simulation with work that goes on all the time, held against what was acknowledged at the end.

    Args:
        seed: Of everything.
        hosts: One letter a node.
        options: Of all nodes.
        late: Hosts that are not started with the others, and do not work before the story has them.
    """

    def __init__(
        self, seed: int, hosts: str, *, options: CoordinatorOptions | None = None, late: str = ""
    ) -> None:
        self.simulation = Simulation(seed, hosts, options=options)
        self.random = self.simulation.random
        self.network = self.simulation.network
        self.nodes = self.simulation.nodes
        self.work = Workload(self.simulation, pause_s=(0.1, 0.5))
        self._late = late

    async def begin(self) -> None:
        """Start them all at once, and wait until they are one cluster with the voters that it should have."""
        first = [node for node in self.nodes.values() if node.host not in self._late]
        await asyncio.gather(*(node.start() for node in first))
        await self.until_agreed(first)
        self.work.start(*(node.host for node in first))

    async def until_agreed(self, nodes: Collection[SimulatedNode], *, timeout_s: float = 12) -> None:
        """Wait until these are the connected members of one cluster, with as many voters as that should have."""
        count = voters_wanted(len(nodes))

        def are_agreed() -> bool:
            states = [node.up.state for node in nodes]
            return (
                len({(state.cluster_id, state.index) for state in states}) == 1
                and {n for n, node in states[0].nodes.items() if node.is_connected} == {n.host for n in nodes}
                and len(states[0].voters.voters) == count
                and states[0].voters.members <= {node.host for node in nodes}
                and all(node.up.leadership.master_node_id == states[0].master_node_id for node in nodes)
            )

        await self.simulation.until(are_agreed, timeout_s=timeout_s)

    async def until_led_by(self, nodes: Collection[SimulatedNode], *, timeout_s: float = 3) -> SimulatedNode:
        """Wait until one of these leads and the others of them follow it; return it."""

        def is_led() -> bool:
            masters = {node.up.leadership.master_node_id for node in nodes}
            return len(masters) == 1 and masters <= {node.host for node in nodes}

        await self.simulation.until(is_led, timeout_s=timeout_s)
        return self.nodes[str(next(iter(nodes)).up.leadership.master_node_id)]

    async def until_served(self, nodes: Collection[SimulatedNode], *, timeout_s: float = 3) -> None:
        """Wait until each of these has had two more facts acknowledged."""
        wanted = {node.host: self.work.count(node.host) + 2 for node in nodes}
        await self.simulation.until(
            lambda: all(self.work.count(host) >= count for host, count in wanted.items()), timeout_s=timeout_s
        )

    async def check_undecided(self, nodes: Collection[SimulatedNode], for_s: float) -> None:
        """Hold these to deciding nothing for a while, and to keeping what they know."""
        before = {node.host: (node.up.state.index, len(node.up.state.nodes)) for node in nodes}
        asked = [
            asyncio.ensure_future(node.up.propose([tagged(node.host, "asked")], cause_id="c"))
            for node in nodes
        ]
        await asyncio.sleep(for_s)
        self.simulation.check()
        assert not any(task.done() for task in asked)
        assert {n.host: (n.up.state.index, len(n.up.state.nodes)) for n in nodes} == before
        assert all(node.up.leadership.master_node_id is None for node in nodes)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for node in nodes:
            try:
                await node.up.confirm(timeout_s=0.5)
            except NoMasterError:
                continue
            raise AssertionError(f"{node.host} confirmed a read without a master")

    async def end(self) -> None:
        """Everybody comes back to one cluster; then every voter's log has what was acknowledged, once."""
        self.network.heal()
        await self.simulation.start_all()
        await self.simulation.until(self.simulation.is_one, timeout_s=12)
        await self.work.rest()
        await self.simulation.settle()
        self._drop_what_others_acknowledged()
        if self.simulation.options != SMALL:
            for node in self.voters():
                self.work.check(whole_log(node))
        first, *others = (node.up.state.decided() for node in self.nodes.values())
        assert all(other == first for other in others)
        await self.simulation.stop_all()

    def _drop_what_others_acknowledged(self) -> None:
        """An observer that starts again is a cluster of its own for a moment, which ends when it finds the others."""
        kept = history_of(self.master.up)
        acknowledged = self.work.acknowledged
        self.work.acknowledged = {tag: told for tag, told in acknowledged.items() if told[0] == kept}
        assert 2 * len(self.work.acknowledged) > len(acknowledged)

    # --- who is who -------------------------------------------------------------------------------------------------

    @property
    def master(self) -> SimulatedNode:
        return self.simulation.master

    @staticmethod
    def fact(node: SimulatedNode, tag: str) -> Decision:
        return tagged(node.host, tag)

    def voters(self) -> list[SimulatedNode]:
        """Those who vote, the master first."""
        names = self.master.up.state.voters.voters
        found = [node for host, node in self.nodes.items() if host in names]
        return sorted(found, key=lambda node: node is not self.master)

    def observers(self) -> list[SimulatedNode]:
        names = self.master.up.state.voters.members
        return [node for host, node in self.nodes.items() if host not in names and node.is_running]

    def others(self, *but: SimulatedNode) -> list[SimulatedNode]:
        return [node for node in self.nodes.values() if node not in but]

    def cut(self, side: Collection[SimulatedNode]) -> None:
        """Cut the links between these and everybody else."""
        for one in side:
            self.network.isolate(one.host, [node.host for node in self.others(*side)])

    def called_gone(self) -> list[str]:
        """Return whom the cluster has called disconnected, in that order."""
        history = self.simulation.committed[history_of(self.master.up)]
        return [e.event.node_id for _, e in sorted(history.items()) if isinstance(e.event, NodeDisconnected)]
