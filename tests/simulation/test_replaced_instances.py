"""Nodes with masters on a simulated network: whoever dies, an instance is moved once, and by one master."""

import asyncio
import itertools
from contextlib import suppress

import pytest

from exo.master.decide import decide
from exo.master.loop import Master
from exo.master.placement.place import place_instance
from exo.shared.types.commands import CommitPlan
from exo.shared.types.events import InstanceMoved, InstanceRestarted, NodeModelsChanged, StageChanged
from exo.shared.types.ids import CommandId, InstanceId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from support.device_stories import model
from support.mastered import Beside
from support.simulated_cluster import SimulatedNode, Simulation
from support.virtual_time import run
from support.workload import whole_log

I = InstanceId("i")  # noqa: E741
AGAIN_S = 5.0
"""What is promised, loads aside."""


class Story:
    """Three nodes, each with a master that works where its node leads, and a model over some of them."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed, "abc")
        self.masters: list[asyncio.Task[None]] = []

    def rule(self, node: SimulatedNode) -> None:
        ids = itertools.count(1)
        master = Master(node.up, Beside(), lambda: f"{node.host}-{next(ids)}")
        self.masters.append(asyncio.ensure_future(master.run()))

    async def learn_model(self, node: SimulatedNode) -> None:
        await node.up.propose(
            [NodeModelsChanged(node_id=NodeId(node.host), models=(model(),))], cause_id=node.host
        )

    async def begin(self, stage_count: int) -> None:
        await self.simulation.start_all()
        await self.simulation.until(self.simulation.is_one, timeout_s=8)
        for node in self.simulation.running:
            await self.learn_model(node)
        await self.simulation.until(
            lambda: len(self.simulation.master.up.state.voters.voters) == 3, timeout_s=10
        )
        leader = self.simulation.master.up
        request = PlacementRequest(model_id=model().model_id, min_nodes=stage_count)
        plan = place_instance(leader.state, request, should_stop=lambda: False)
        assert isinstance(plan, Plan), plan
        command = CommitPlan(command_id=CommandId("c"), instance_id=I, request=request, plan=plan)
        events = decide(leader.state, command)
        assert isinstance(events, list), events
        await leader.propose(events, cause_id="c")
        await self.load()
        for node in self.simulation.running:
            self.rule(node)

    async def load(self) -> None:
        """Have every stage report that it is ready, as workers do."""
        instance = self.simulation.master.up.state.instances[I]
        for stage in instance.plan.stages:
            ready = StageChanged(
                instance_id=I, generation=instance.generation, rank=stage.rank, phase="ready"
            )
            await self.simulation.nodes[stage.node_id].up.propose([ready], cause_id="c")

    async def fail_neighbours(self, dead: str) -> None:
        """Have the other stages notice that one is gone, as far as there is a master to be told."""
        for node in self.simulation.running:
            instance = node.up.state.instances[I]
            for stage in instance.plan.stages:
                if stage.node_id == node.host != dead:
                    failed = StageChanged(
                        instance_id=I, generation=1, rank=stage.rank, phase="failed", reason="neighbour gone"
                    )
                    await node.up.propose([failed], cause_id="c")

    async def end(self) -> None:
        for task in self.masters:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.simulation.stop_all()


@pytest.mark.parametrize("is_master", [False, True])
@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_an_instance_is_moved_once_by_one_master(seed: int, is_master: bool, is_silent: bool) -> None:
    async def told() -> None:
        story = Story(seed)
        simulation = story.simulation
        await story.begin(3 if is_master else 2)
        before = simulation.master.up.state.instances[I]
        had = [stage.node_id for stage in before.plan.stages]
        victim = next(
            node
            for node in simulation.running
            if node.host in had and node.up.leadership.is_self == is_master
        )
        clock = asyncio.get_running_loop().time
        lost_s = clock()
        await (victim.lose_power() if is_silent else victim.kill())
        noticing = asyncio.ensure_future(story.fail_neighbours(victim.host))
        others = [node for node in simulation.running if node is not victim]
        await simulation.until(
            lambda: all(node.up.state.instances[I].moved_reason is not None for node in others), timeout_s=12
        )
        # A node that falls silent is noticed within two seconds more.
        assert clock() - lost_s <= AGAIN_S + (2.0 if is_silent else 0.0)
        await noticing
        await story.load()
        simulation.network.heal()
        await victim.start()
        await simulation.until(simulation.is_one, timeout_s=10)
        await story.learn_model(victim)
        story.rule(victim)
        await asyncio.sleep(60)
        state = simulation.master.up.state
        instance = state.instances[I]
        assert instance.status == "ready"
        assert victim.host not in [stage.node_id for stage in instance.plan.stages]
        # Its neighbours' stages may be started again before it is known that its node is lost, and not after.
        events = [entry.event for entry in whole_log(simulation.master)]
        kinds = [type(one) for one in events if isinstance(one, InstanceMoved | InstanceRestarted)]
        assert kinds in ([InstanceMoved], [InstanceRestarted, InstanceMoved])
        assert instance.generation == 1 + len(kinds)
        if is_master:
            assert kinds == [InstanceMoved], (
                "a new master waits for the old one before it begins anything anew"
            )
        await story.end()

    run(told())
