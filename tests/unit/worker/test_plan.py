"""What a worker does next, from the state and what runs on it."""

from exo.shared.types.events import InstanceDeleted, InstanceMoved, InstanceRestarted, NodeJoined
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from exo.worker.plan import (
    LinkRunner,
    LocalView,
    ReportLost,
    RunnerKey,
    RunnerPhase,
    StartRunner,
    StopRunner,
    plan,
)
from support.states import card, cluster, fold, identity
from support.stories import placed, stage

FIRST = RunnerKey(InstanceId("i"), 1, 0)


def view(runners: dict[RunnerKey, RunnerPhase] | None = None, boot_id: str = "boot-1") -> LocalView:
    return LocalView(node_id=NodeId("a"), boot_id=boot_id, runners=runners or {})


def two_nodes() -> State:
    return placed(cluster(identity("a", models=[card()]), identity("b", models=[card()])), 2)


def test_a_stage_of_this_node_is_started_once() -> None:
    (start,) = plan(two_nodes(), view())
    assert isinstance(start, StartRunner) and start.key == FIRST and start.stage.node_id == "a"
    assert plan(two_nodes(), view({FIRST: "started"})) == []


def test_nothing_is_done_before_the_cluster_knows_of_this_boot() -> None:
    assert plan(two_nodes(), view(boot_id="boot-2")) == []
    state = fold(two_nodes(), NodeJoined(identity=identity("a", boot_id="boot-2", models=[card()])))
    assert [type(one) for one in plan(state, view(boot_id="boot-2"))] == [StartRunner]


def test_stages_are_linked_when_all_of_them_are_loaded() -> None:
    here, there = HostPort("127.0.0.1", 1), HostPort("127.0.0.1", 2)
    state = stage(two_nodes(), 0, "loaded", address=here)
    assert plan(state, view({FIRST: "loaded"})) == []
    state = stage(state, 1, "loaded", address=there)
    assert plan(state, view({FIRST: "loaded"})) == [LinkRunner(FIRST, (here, there))]
    assert plan(state, view({FIRST: "linked"})) == []
    late = stage(state, 1, "ready")
    assert plan(late, view({FIRST: "loaded"})) == [LinkRunner(FIRST, (here, there))]


def test_what_is_deleted_or_of_an_older_generation_is_stopped_before_anything_starts() -> None:
    deleted = fold(two_nodes(), InstanceDeleted(instance_id=InstanceId("i"), reason="test"))
    assert plan(deleted, view({FIRST: "linked"})) == [StopRunner(FIRST)]
    again = fold(two_nodes(), InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="test"))
    stop, start = plan(again, view({FIRST: "ended"}))
    assert stop == StopRunner(FIRST)
    assert isinstance(start, StartRunner) and start.key.generation == 2


def test_an_instance_that_moved_has_its_old_stage_stopped_and_its_new_ones_started_and_linked() -> None:
    nodes = cluster(*(identity(name, models=[card()]) for name in "abc"))
    on_two = placed(nodes, 2)
    was = on_two.instances[InstanceId("i")].plan
    away = placed(nodes, 2, node_ids=(NodeId("b"), NodeId("c"))).instances[InstanceId("i")].plan
    alone = placed(nodes, node_ids=(NodeId("a"),)).instances[InstanceId("i")].plan
    assert {one.node_id for one in was.stages} == {"a", "b"}

    moved = fold(on_two, InstanceMoved(instance_id=InstanceId("i"), generation=2, plan=away, reason="test"))
    assert plan(moved, view({FIRST: "linked"})) == [StopRunner(FIRST)]
    assert plan(moved, view()) == []
    (start,) = plan(moved, LocalView(node_id=NodeId("c"), boot_id="boot-1", runners={}))
    assert isinstance(start, StartRunner) and start.stage.node_id == "c" and start.key.generation == 2

    fewer = fold(on_two, InstanceMoved(instance_id=InstanceId("i"), generation=2, plan=alone, reason="test"))
    stop, start = plan(fewer, view({FIRST: "linked"}))
    assert stop == StopRunner(FIRST)
    assert isinstance(start, StartRunner) and (start.stage.start_layer, start.stage.end_layer) == (0, 6)
    address = HostPort("127.0.0.1", 1)
    loaded = stage(fewer, 0, "loaded", address=address)
    assert plan(loaded, view({start.key: "loaded"})) == [LinkRunner(start.key, (address,))]
    assert plan(loaded, LocalView(node_id=NodeId("b"), boot_id="boot-1", runners={})) == []


def test_a_stage_that_should_run_here_and_does_not_is_reported() -> None:
    state = stage(two_nodes(), 0, "ready")
    assert plan(state, view()) == [ReportLost(FIRST)]
    assert plan(stage(state, 0, "failed", reason="x"), view()) == []
    assert plan(stage(state, 0, "failed", reason="x"), view({FIRST: "ended"})) == []
