"""A cluster gives way to another while somebody places instances in it: what was acknowledged has to stay."""

import asyncio

import msgspec

from exo.cluster.options import CoordinatorOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command, Placed, PlaceInstance, Reply
from exo.shared.types.events import ClusterDissolved, InstanceCreated
from exo.shared.types.ids import CommandId, InstanceId, ModelId
from exo.shared.types.instances import PlacementRequest
from support.faulty_story import instance
from support.simulated_cluster import SimulatedNode, Simulation


class YieldingStory:
    """`a` and `b` are one cluster, `z` another with an instance. Its master places more while it gives itself up."""

    def __init__(self, seed: int) -> None:
        # No settling: commands are not held back because the node is fresh.
        self.simulation = Simulation(seed, "abz", options=CoordinatorOptions(settle_s=0.0))
        self.acknowledged: list[InstanceId] = []
        self.is_yielding = asyncio.Event()

    async def tell(self) -> None:
        simulation = self.simulation
        small = [simulation.nodes["a"], simulation.nodes["b"]]
        senior = simulation.nodes["z"]
        simulation.network.isolate("z", ["a", "b"])
        await simulation.start_all()
        await simulation.until(lambda: all(len(node.up.state.nodes) == 2 for node in small), timeout_s=5)
        for node in simulation.nodes.values():
            node.up.set_command_handler(_placing(node.up))
        await self._place(senior, "first")
        kept = senior.up.state.cluster_id
        yields = next(node for node in small if node.up.leadership.is_self)
        self._note_yielding(yields.up)
        simulation.network.heal()
        async with asyncio.timeout(8):
            await self.is_yielding.wait()
        await asyncio.gather(*(self._place(yields, f"{number}") for number in range(5)))
        await simulation.until(simulation.is_one, timeout_s=8)
        await self._place(yields, "last")
        await simulation.until(simulation.is_one, timeout_s=5)
        simulation.check()
        states = [node.up.state for node in simulation.nodes.values()]
        assert {state.cluster_id for state in states} == {kept}
        assert len(self.acknowledged) > 1, "somebody was served"
        for state in states:
            lost = set(self.acknowledged) - set(state.instances)
            assert not lost, f"acknowledged and lost: {sorted(lost)}"
        await simulation.stop_all()

    async def _place(self, node: SimulatedNode, name: str) -> None:
        command = PlaceInstance(command_id=CommandId(name), request=PlacementRequest(model_id=ModelId("toy")))
        try:
            reply = await node.up.send(command, timeout_s=5)
        except NoMasterError:
            return
        assert isinstance(reply, Placed)
        self.acknowledged.append(reply.instance.instance_id)

    def _note_yielding(self, coordinator: EmbeddedCoordinator) -> None:
        submit = coordinator._kernel.dispatch.submit

        def noting(events, cause_id, **more):
            submitted = submit(events, cause_id, **more)
            if any(isinstance(event, ClusterDissolved) for event in events):
                self.is_yielding.set()
            return submitted

        coordinator._kernel.dispatch.submit = noting


def _placing(coordinator: EmbeddedCoordinator):
    async def carry_out(command: Command) -> Reply:
        placed = msgspec.structs.replace(instance(), instance_id=InstanceId(str(command.command_id)))
        index = await coordinator.propose(
            [InstanceCreated(instance=placed)], cause_id=str(command.command_id)
        )
        return Placed(instance=placed, index=index)

    return carry_out
