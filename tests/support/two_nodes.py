"""Two nodes in virtual time, one of them designated and the other in sync; and what may befall them."""

import asyncio

from exo.shared.errors import ConfigurationError
from exo.shared.types.events import Decision
from exo.shared.types.ids import NodeId
from support.simulated_cluster import SimulatedNode, Simulation, tagged
from support.workload import Workload, tag_of, whole_log


def now_s() -> float:
    return asyncio.get_running_loop().time()


class TwoNodes:
    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed, "ab")
        self.designated: SimulatedNode
        self.copy: SimulatedNode

    async def begin(self) -> None:
        """Start both, and wait until they are in sync."""
        await self.simulation.start_all()
        await self.simulation.until(self.simulation.is_one, timeout_s=5)
        self.designated = self.simulation.master
        (self.copy,) = [node for node in self.simulation.running if node is not self.designated]
        await self.until_in_sync()

    @property
    def voters(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The voters and the replicas that the designated node knows."""
        voters = self.designated.up.state.voters
        return voters.voters, voters.replicas

    async def until_in_sync(self) -> None:
        wanted = ((self.designated.host,), (self.copy.host,))
        await self.simulation.until(
            lambda: self.designated.is_running and self.voters == wanted, timeout_s=10
        )

    def is_called_disconnected(self, node: SimulatedNode) -> bool:
        return not self.designated.up.state.nodes[NodeId(node.host)].is_connected

    @staticmethod
    def fact(node: SimulatedNode, tag: str) -> Decision:
        return tagged(node.host, tag)

    def begin_proposal(self, node: SimulatedNode, tag: str) -> "asyncio.Task[int]":
        return asyncio.ensure_future(node.up.propose([self.fact(node, tag)], cause_id="test"))

    async def end(self, node: SimulatedNode, *, is_silent: bool) -> None:
        await (node.lose_power() if is_silent else node.kill())

    async def lose_the_designated_one(self, *, is_silent: bool) -> None:
        """It dies with its disk in the middle of work; the operator makes the copy lead."""
        work = Workload(self.simulation)
        work.start()
        await asyncio.sleep(self.simulation.random.uniform(0.1, 1.0))
        assert self.voters[1] == (self.copy.host,)
        await self.end(self.designated, is_silent=is_silent)
        await self._go_on_with_the_copy(work)

    async def lose_the_designated_one_in_the_middle_of_cuts(self) -> None:
        """As before, after cuts that threw the copy out of sync; what is promised depends on whether it was in sync."""
        random, network = self.simulation.random, self.simulation.network
        work = Workload(self.simulation)
        work.start()
        for _ in range(4):
            network.cut("a", "b")
            await asyncio.sleep(random.uniform(0.1, 5.0))
            self.simulation.check()
            network.heal()
            await asyncio.sleep(random.uniform(0.1, 3.0))
        is_in_sync = self.voters[1] == (self.copy.host,)
        await self.designated.kill()
        if is_in_sync:
            await self._go_on_with_the_copy(work)
            return
        await work.rest()
        before = self.copy.up.state
        try:
            await self.copy.up.forget([NodeId(self.designated.host)])
        except ConfigurationError:
            assert before.voters.replicas == (), "it knows that its copy does not count"
            return
        tags = {tag_of(entry) for entry in whole_log(self.copy)}
        seen = self.simulation.committed[before.cluster_id, 1]
        lost = [e for index, e in seen.items() if index <= before.index and tag_of(e) not in tags]
        assert not lost, "what it has shown stays"

    async def _go_on_with_the_copy(self, work: Workload) -> None:
        copy = self.copy
        await self.simulation.until(lambda: copy.up.leadership.master_node_id is None, timeout_s=4)
        await work.rest()
        await copy.up.forget([NodeId(self.designated.host)])
        assert copy.up.leadership.is_self
        work.check(whole_log(copy))
        await copy.up.propose([self.fact(copy, "goes on")], cause_id="test")

    async def stop_the_designated_one(self) -> None:
        """It is stopped in the middle of work, and comes back later."""
        simulation, copy, designated = self.simulation, self.copy, self.designated
        work = Workload(simulation)
        work.start()
        await asyncio.sleep(simulation.random.uniform(0.1, 1.0))
        await designated.stop()
        stopped_s = now_s()
        await simulation.until(lambda: copy.up.leadership.is_self, timeout_s=1.5)
        assert now_s() - stopped_s < 0.5, "it leads by the time the other one is gone, or soon after"
        assert copy.up.state.voters.voters == (copy.host,)
        before = work.count(copy.host)
        await simulation.until(lambda: work.count(copy.host) > before + 5, timeout_s=1)
        await designated.start()
        self.designated, self.copy = copy, designated
        await self.until_in_sync()
        await work.rest()
        await simulation.settle()
        assert copy.up.leadership.is_self and copy.up.leadership.incarnation == 1
        work.check(whole_log(copy))
