"""A decision made again on what the log kept of it: the same answer, the alternatives, what changed since."""

import itertools

import pytest
from msgspec.structs import replace

from exo.master.loop import Master
from exo.master.placement.place import place_instance
from exo.master.why import changes, differences
from exo.shared.types.commands import (
    DeleteInstance,
    ExplainInstance,
    Placed,
    PlaceInstance,
    Planned,
    PlanPlacement,
    Refusal,
    Why,
)
from exo.shared.types.events import InstanceMoved, NodeDisconnected, NodeJoined, NodeRemoved
from exo.shared.types.ids import CommandId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from support.coordinator import MemoryCoordinator
from support.inline_solver import InlineSolver
from support.placing import MIXED, mixed_state, never, reading
from support.states import fold, identity

ASKED = PlacementRequest(model_id=ModelId("big"))
I = InstanceId("id-1")  # noqa: E741


def lab() -> State:
    return mixed_state(MIXED["what was at hand, 32B"])


def ruled(state: State) -> tuple[MemoryCoordinator, Master]:
    coordinator = MemoryCoordinator(NodeId("a"), state)
    ids = itertools.count(1)
    return coordinator, Master(coordinator, InlineSolver(), lambda: f"id-{next(ids)}")


async def place(master: Master) -> Placed:
    reply = await master.handle(PlaceInstance(command_id=CommandId("c"), request=ASKED))
    assert isinstance(reply, Placed), reply
    return reply


async def why(master: Master, *, index: int | None = None, instance_id: InstanceId = I) -> Why:
    reply = await master.handle(
        ExplainInstance(command_id=CommandId("q"), instance_id=instance_id, decision_index=index)
    )
    assert isinstance(reply, Why), reply
    return reply


async def test_a_decision_is_made_again_after_the_telemetry_it_was_made_on_is_gone() -> None:
    coordinator, master = ruled(lab())
    placed = await place(master)
    busy = coordinator.state
    for node_id in sorted(busy.nodes):
        busy = reading(busy, node_id, compute_utilization_percent=95.0, memory_used_bytes=10**9)
    coordinator.set_state(busy)

    told = await why(master)
    (decision,) = told.decisions
    assert (decision.kind, decision.index) == ("placed", placed.index)
    assert decision.at == "2026-01-01T00:00:00Z" and decision.basis == b""
    assert told.request == told.explained.request == ASKED
    again = told.explained.again
    assert again is not None and again.plan is not None
    assert told.explained.differences == () and told.explained.omitted is None
    assert again.plan == replace(placed.instance.plan, solve_ms=None)
    titles = [one.title for one in told.explained.alternatives]
    assert titles[0].startswith("Fastest")
    for stage in placed.instance.plan.stages:
        assert any(f"ithout {coordinator.state.nodes[stage.node_id].identity.name}" in one for one in titles)
    # With everything busy it would be slower now.
    assert told.today is not None and told.today.plan is not None
    now, then = told.today.plan.prediction, again.plan.prediction
    assert now is not None and then is not None
    assert (now.tokens_per_s or 0) < (then.tokens_per_s or 0)


async def test_a_move_is_explained_and_so_is_the_decision_before_it() -> None:
    coordinator, master = ruled(lab())
    placed = await place(master)
    gone = placed.instance.plan.stages[0].node_id
    left = fold(coordinator.state, NodeDisconnected(node_id=gone, reason="cable"))
    request = replace(ASKED, min_nodes=1, exclude=(gone,))
    answer = await InlineSolver().place(left, request)
    assert not isinstance(answer, Refusal)
    await coordinator.propose(
        [
            NodeDisconnected(node_id=gone, reason="cable"),
            InstanceMoved(
                instance_id=I, generation=2, plan=answer.plan, reason="its node is lost", basis=answer.basis
            ),
        ],
        cause_id="test",
    )
    told = await why(master)
    assert [(one.kind, one.reason) for one in told.decisions] == [
        ("placed", None),
        ("moved", "its node is lost"),
    ]
    assert told.explained.decision.kind == "moved"
    assert told.request == ASKED and told.explained.request == request
    assert told.explained.differences == ()

    first = await why(master, index=told.decisions[0].index)
    assert first.explained.decision.kind == "placed" and first.explained.request == ASKED
    assert first.explained.differences == ()
    assert f"{left.nodes[gone].identity.name} is not connected (cable)" in first.changes
    assert first.today is None


async def test_a_plan_that_was_kept_close_to_what_ran_is_weighed_again() -> None:
    """It is not the fastest: looking for one again would find another."""
    coordinator, master = ruled(lab())
    placed = await place(master)
    solver = InlineSolver()
    other = await solver.place(coordinator.state, replace(ASKED, layer_split=(20, 44)))
    fastest = await solver.place(coordinator.state, ASKED)
    assert not isinstance(other, Refusal) and not isinstance(fastest, Refusal)
    assert other.plan.stages != fastest.plan.stages
    plan = replace(other.plan, method="kept")
    moved = InstanceMoved(
        instance_id=I, generation=2, plan=plan, reason="its device is hot", basis=fastest.basis
    )
    await coordinator.propose([moved], cause_id="test")
    told = await why(master)
    again = told.explained.again
    assert again is not None and again.title == "Weighed again"
    assert told.explained.differences == ()
    # Its figures are reckoned anew, not repeated.
    wrong = replace(moved, generation=3, plan=replace(plan, prediction=placed.instance.plan.prediction))
    await coordinator.propose([wrong], cause_id="test")
    (difference,) = (await why(master)).explained.differences
    assert "it is predicted to take" in difference


async def test_a_deleted_instance_is_explained_while_the_log_has_it() -> None:
    _, master = ruled(lab())
    await place(master)
    await master.handle(DeleteInstance(command_id=CommandId("d"), instance_id=I))
    told = await why(master)
    assert told.deleted_at == "2026-01-01T00:00:00Z" and told.today is None
    assert told.explained.differences == () and len(told.explained.alternatives) > 2


async def test_a_compacted_log_is_said_and_the_state_still_tells_why() -> None:
    coordinator, master = ruled(lab())
    placed = await place(master)
    coordinator.history.clear()
    await coordinator.propose([NodeDisconnected(node_id=NodeId("none"), reason="")], cause_id="test")
    # What the log has begins behind the decision.
    assert coordinator.state.index > placed.index
    told = await why(master)
    (decision,) = told.decisions
    assert decision.index is None and decision.at is None
    assert told.explained.differences == () and told.explained.again is not None
    assert any("the log begins with decision" in one for one in told.notes)

    await coordinator.propose([], cause_id="test")
    await master.handle(DeleteInstance(command_id=CommandId("d"), instance_id=I))
    coordinator.history.clear()
    await coordinator.propose([NodeDisconnected(node_id=NodeId("none"), reason="")], cause_id="test")
    reply = await master.handle(ExplainInstance(command_id=CommandId("q"), instance_id=I))
    assert isinstance(reply, Refusal) and reply.status == 404
    assert "the log begins with decision" in reply.message


async def test_an_instance_of_an_earlier_release_says_that_nothing_was_kept() -> None:
    coordinator, master = ruled(lab())
    await place(master)
    instance = coordinator.state.instances[I]
    bare = replace(coordinator.state, instances={I: replace(instance, basis=b"")})
    coordinator.set_state(bare)
    coordinator.history.clear()
    told = await why(master)
    assert told.explained.omitted is not None and "did not keep" in told.explained.omitted
    assert told.explained.again is None and told.explained.alternatives == ()
    assert told.today is not None and told.today.plan is not None


async def test_a_damaged_basis_is_told_in_words() -> None:
    coordinator, master = ruled(lab())
    await place(master)
    instance = coordinator.state.instances[I]
    coordinator.history.clear()
    coordinator.set_state(replace(coordinator.state, instances={I: replace(instance, basis=b"torn")}))
    told = await why(master)
    assert told.explained.omitted is not None and "cannot be read" in told.explained.omitted


@pytest.mark.parametrize("index", [1, 10**12])
async def test_a_decision_that_is_about_something_else_is_refused(index: int) -> None:
    _, master = ruled(lab())
    placed = await place(master)
    reply = await master.handle(
        ExplainInstance(command_id=CommandId("q"), instance_id=I, decision_index=index)
    )
    assert isinstance(reply, Refusal) and reply.code == "decision_not_found"
    assert str(placed.index) in reply.message


async def test_an_unknown_instance_is_refused_with_those_that_look_like_it() -> None:
    _, master = ruled(lab())
    await place(master)
    reply = await master.handle(ExplainInstance(command_id=CommandId("q"), instance_id=InstanceId("id-2")))
    assert isinstance(reply, Refusal)
    assert (reply.status, reply.near_matches) == (404, ("id-1",))


async def test_a_plan_that_is_only_asked_for_decides_nothing() -> None:
    coordinator, master = ruled(lab())
    before = coordinator.state
    reply = await master.handle(PlanPlacement(command_id=CommandId("q"), request=ASKED))
    assert isinstance(reply, Planned) and reply.answer.plan is not None
    assert coordinator.state is before and coordinator.proposed == []


def test_what_another_release_answers_is_told_apart() -> None:
    plan = place_instance(lab(), ASKED, should_stop=never)
    other = place_instance(lab(), replace(ASKED, min_nodes=3), should_stop=never)
    assert isinstance(plan, Plan) and isinstance(other, Plan)
    assert list(differences(plan, plan)) == []
    found = list(differences(plan, other))
    assert found[0].startswith("its stages are ") and "for each token instead of" in found[1]
    worded = list(differences(plan, replace(plan, explanation="other words")))
    assert worded == ["its explanation is worded differently"]
    refusal = Refusal(status=422, code="x", message="Not any more.")
    assert list(differences(plan, refusal)) == ["this release refuses it: Not any more."]


def test_changes_are_told_with_those_of_its_own_nodes_first() -> None:
    then = lab()
    plan = place_instance(then, ASKED, should_stop=never)
    assert isinstance(plan, Plan)
    used = [one.node_id for one in plan.stages]
    others = sorted(set(then.nodes) - set(used))
    now = fold(
        then,
        NodeRemoved(node_id=others[0], reason="sold"),
        NodeDisconnected(node_id=used[-1], reason="cable"),
        NodeJoined(identity=identity("zz", host_id="zz")),
    )
    names = {key: node.identity.name for key, node in then.nodes.items()}
    assert list(changes(then, now, plan, I)) == [
        f"{names[used[-1]]} is not connected (cable)",
        f"{names[others[0]]} is no longer a member",
        "host-zz has joined",
    ]
    assert list(changes(then, then, plan, I)) == []
    failed = reading(then, used[0], health="failed", health_reason="test")
    (told,) = changes(then, failed, plan, I)
    assert told.endswith("is failed; it was healthy")
