"""A real node that was stopped while it caught up: its log ends where it was the only voter, and it must not lead."""

import asyncio

from exo.cluster.raft.quorum import voters_of
from exo.cluster.raft.steps import HardState
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from support.simulated_cluster import SimulatedNode, Simulation, SmallStore, tagged
from support.virtual_time import run


def give_half_of_the_log(source: SimulatedNode, target: SimulatedNode) -> int:
    """Leave a node with the log up to where it votes alone; returns how many entries that is."""
    entries = list(source.store.log.read(0))
    alone = [one.index for one in entries if voters_of(one.event) == Voters(voters=(NodeId(target.host),))]
    half = entries[: alone[-1]]
    store = SmallStore()
    store.votes.save(HardState(term=half[-1].term, is_level=False))
    store.log.append(half)
    store.log.sync()
    target.store = store
    return len(half)


def test_a_node_with_half_of_a_log_starts_and_joins_again() -> None:
    async def story() -> None:
        simulation = Simulation(3, "ab")
        await simulation.start_all()
        await simulation.until(simulation.is_one, timeout_s=5)
        for _ in range(2):  # Each of the two decides alone for a while.
            master = simulation.master
            (other,) = [node for node in simulation.nodes.values() if node is not master]
            await simulation.until(
                lambda master=master, other=other: other.host in master.up.state.voters.replicas, timeout_s=10
            )
            await master.stop()
            await simulation.until(lambda other=other: other.up.leadership.is_self, timeout_s=5)
            await master.start()
            await simulation.until(simulation.is_one, timeout_s=5)
        rest = simulation.master
        (late,) = [node for node in simulation.nodes.values() if node is not rest]
        await rest.up.propose([tagged(rest.host, "the last word")], cause_id="test")
        await late.kill()
        length = give_half_of_the_log(rest, late)
        assert length < rest.up.state.index
        await asyncio.wait_for(late.start(), timeout=3)
        terms = {term for (_, term) in simulation.masters}
        await simulation.until(simulation.is_one, timeout_s=5)
        assert rest.up.leadership.is_self
        assert {term for (_, term) in simulation.masters} == terms, "nobody led meanwhile"
        await simulation.until(lambda: late.host in rest.up.state.voters.replicas, timeout_s=10)
        await simulation.until(lambda: late.store.votes.load().is_level, timeout_s=5)
        assert late.up.state.voters.replicas == (NodeId(late.host),)
        await simulation.stop_all()

    run(story())
