"""Which instances start again, and which wait or stay failed."""

from exo.master.recovery import restarts
from exo.shared.serving import FAILURES_IN_A_ROW_MAX
from exo.shared.types.events import NodeDisconnected, NodeJoined
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.state import State
from support.states import card, cluster, fold, identity
from support.stories import placed, stage


def two_stages() -> State:
    return placed(cluster(identity("a", models=[card()]), identity("b", models=[card()])), 2)


def test_nothing_restarts_while_stages_start_or_serve() -> None:
    state = two_stages()
    assert restarts(state) == []
    state = stage(stage(state, 0, "loaded"), 1, "loading")
    assert restarts(state) == []
    assert restarts(stage(stage(state, 0, "ready"), 1, "ready")) == []


def test_a_failed_stage_restarts_the_whole_group_under_a_new_generation() -> None:
    state = stage(two_stages(), 1, "failed", reason="killed by signal 9")
    (event,) = restarts(state)
    assert event.generation == 2 and event.reason == "killed by signal 9"
    state = fold(state, event)
    assert [one.phase for one in state.instances[InstanceId("i")].stages] == ["pending", "pending"]


def test_a_stage_lost_with_its_nodes_boot_restarts_a_linked_group_but_not_one_that_still_loads() -> None:
    linked = stage(stage(two_stages(), 0, "ready"), 1, "ready")
    rebooted = NodeJoined(identity=identity("b", boot_id="boot-2", models=[card()]))
    assert len(restarts(fold(linked, rebooted))) == 1
    loading = stage(stage(two_stages(), 0, "loaded"), 1, "loaded")
    assert restarts(fold(loading, rebooted)) == []


def test_nothing_restarts_while_a_node_is_away() -> None:
    state = stage(two_stages(), 0, "failed", reason="neighbour gone")
    away = fold(state, NodeDisconnected(node_id=NodeId("b"), reason="killed"))
    assert restarts(away) == []
    back = fold(away, NodeJoined(identity=identity("b", boot_id="boot-2", models=[card()])))
    assert len(restarts(back)) == 1


def test_a_permanent_failure_stays() -> None:
    assert restarts(stage(two_stages(), 0, "failed", reason="truncated", is_permanent=True)) == []


def test_it_gives_up_after_so_many_failures_in_a_row_and_counts_anew_once_ready() -> None:
    state = two_stages()
    for _ in range(FAILURES_IN_A_ROW_MAX):
        state = stage(state, 0, "failed", reason="again")
        state = fold(state, *restarts(state))
    assert restarts(stage(state, 0, "failed", reason="again")) == []
    state = stage(stage(state, 0, "ready"), 1, "ready")
    assert len(restarts(stage(state, 0, "failed", reason="again"))) == 1
