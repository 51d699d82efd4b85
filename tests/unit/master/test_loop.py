"""The master's loop: solved aside, committed once, restarted when broken."""

import itertools

import anyio

from exo.master.loop import Master
from exo.master.solver import Placement, Solver
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import (
    Deleted,
    DeleteInstance,
    Placed,
    PlaceInstance,
    PreviewPlacements,
    Previews,
    Refusal,
)
from exo.shared.types.events import Decision, InstanceCreated, InstanceRestarted
from exo.shared.types.ids import CommandId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.state import State
from support.coordinator import MemoryCoordinator
from support.states import GIB, card, cluster, identity, with_free_memory
from support.stories import placed, stage


def one_node(free_bytes: int = GIB) -> State:
    return with_free_memory(cluster(identity("a", models=[card(layer_bytes=10_000_000)])), {"a": free_bytes})


def master_of(state: State, solver: Solver | None = None) -> tuple[MemoryCoordinator, Master]:
    coordinator = MemoryCoordinator(NodeId("a"), state)
    ids = itertools.count(1)
    return coordinator, Master(coordinator, solver or Solver(), lambda: f"id-{next(ids)}")


def ask(model_id: str = "toy", *, reuse: bool = False) -> PlaceInstance:
    request = PlacementRequest(model_id=ModelId(model_id))
    return PlaceInstance(command_id=CommandId("c"), request=request, reuse_existing=reuse)


async def test_a_placement_is_solved_in_another_process_and_committed() -> None:
    coordinator, master = master_of(one_node())
    reply = await master.handle(ask())
    assert isinstance(reply, Placed) and reply.index == coordinator.state.index
    assert reply.instance == coordinator.state.instances[InstanceId("id-1")]
    assert reply.instance.plan.solve_ms is not None
    refusal = await master.handle(ask("unknown"))
    assert isinstance(refusal, Refusal) and refusal.status == 404
    previews = await master.handle(
        PreviewPlacements(command_id=CommandId("p"), request=PlacementRequest(model_id=ModelId("toy")))
    )
    assert isinstance(previews, Previews) and previews.previews[0].plan is not None
    deleted = await master.handle(DeleteInstance(command_id=CommandId("d"), instance_id=InstanceId("id-1")))
    assert isinstance(deleted, Deleted) and coordinator.state.instances == {}


async def test_first_uses_at_the_same_time_place_once() -> None:
    coordinator, master = master_of(one_node())
    replies: list[object] = []

    async def first_use() -> None:
        replies.append(await master.handle(ask(reuse=True)))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(first_use)
    assert sorted(reply.is_new for reply in replies if isinstance(reply, Placed)) == [
        False,
        False,
        False,
        True,
    ]
    assert len(coordinator.state.instances) == 1


async def test_a_plan_that_is_outdated_when_it_comes_back_is_solved_again() -> None:
    class Late(Solver):
        """Solves for real; before its first answer counts, the memory it planned with is gone."""

        solves = 0

        async def place(self, state: State, request: PlacementRequest) -> Placement | Refusal:
            plan = await super().place(state, request)
            self.solves += 1
            if self.solves == 1:
                coordinator.set_state(with_free_memory(coordinator.state, {"a": 1000}))
            return plan

    solver = Late()
    coordinator, master = master_of(one_node(), solver)
    reply = await master.handle(ask())
    assert isinstance(reply, Refusal) and reply.code == "not_enough_memory"
    assert solver.solves == 2
    assert not any(isinstance(event, InstanceCreated) for event in coordinator.proposed)


async def test_a_broken_instance_is_restarted_once() -> None:
    state = stage(placed(one_node()), 0, "failed", reason="killed")
    coordinator, master = master_of(state)
    restarted = anyio.Event()

    def heard(events: object) -> None:
        restarted.set()

    coordinator.on_propose = heard
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(master.run)
        with anyio.fail_after(5):
            await restarted.wait()
        tasks.cancel_scope.cancel()
    kinds: list[type[Decision]] = [type(event) for event in coordinator.proposed]
    assert kinds == [InstanceRestarted]
    assert coordinator.state.instances[InstanceId("i")].generation == 2


async def test_a_restart_without_a_master_is_left_to_the_next_one() -> None:
    coordinator, master = master_of(stage(placed(one_node()), 0, "failed", reason="killed"))
    proposed = anyio.Event()

    async def fails(events: object, *, cause_id: str) -> int:
        proposed.set()
        raise NoMasterError("the disk does not answer")

    coordinator.propose = fails  # pyright: ignore[reportAttributeAccessIssue]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(master.run)
        with anyio.fail_after(5):
            await proposed.wait()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert coordinator.state.instances[InstanceId("i")].generation == 1
