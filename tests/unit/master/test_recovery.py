"""Which instances start again, which wait or stay failed, and which ought to go on elsewhere."""

from typing import get_args

import pytest

from exo.cluster.attendance import NOT_BACK
from exo.cluster.membership import STOPPED
from exo.master.recovery import LossKind, Patience, due_s, restarts, troubles, unusable_since
from exo.shared.serving import FAILURES_IN_A_ROW_MAX, instance_status
from exo.shared.types.events import (
    InstanceMoved,
    InstanceStranded,
    NodeDisconnected,
    NodeJoined,
    NodeRemoved,
)
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.state import State
from support.device_stories import failed, gone, machine, on, told
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


def one_gpu() -> State:
    return on(cluster(machine("a", "cuda:0", "cuda:1")), "a/cuda:0")


def test_a_device_that_failed_or_is_gone_is_a_trouble_with_its_cause() -> None:
    assert troubles(one_gpu()) == []
    (trouble,) = troubles(failed(one_gpu(), "a/cuda:0"))
    assert trouble.cause == "cuda:0 of host-a has failed: Xid 79" and trouble.generation == 1
    (trouble,) = troubles(gone(one_gpu(), "a/cuda:0"))
    assert trouble.cause == "cuda:0 of host-a is gone" and trouble.devices[0].kind == "gone"


def test_what_other_devices_do_and_what_is_degraded_is_no_trouble() -> None:
    assert troubles(failed(one_gpu(), "a/cuda:1")) == []
    assert troubles(gone(one_gpu(), "a/cuda:1")) == []
    assert troubles(told(one_gpu(), "a/cuda:0", "degraded", "too hot")) == []


def away(state: State, node_id: str, reason: str = "killed") -> State:
    return fold(state, NodeDisconnected(node_id=NodeId(node_id), reason=reason))


def test_a_failure_of_the_models_own_is_no_trouble_of_devices() -> None:
    state = failed(one_gpu(), "a/cuda:0")
    assert troubles(stage(state, 0, "failed", reason="truncated", is_permanent=True)) == []


@pytest.mark.parametrize(
    ("reason", "kind", "cause"),
    [
        ("connection reset", "lost", "host-a is not connected (connection reset)"),
        (STOPPED, "stopped", "host-a was stopped"),
        (NOT_BACK, "unseen", "host-a is not connected (not back since the master changed)"),
    ],
)
def test_a_node_that_is_away_is_a_trouble_of_all_its_devices(reason: str, kind: str, cause: str) -> None:
    state = on(cluster(machine("a", "cuda:0"), machine("b", "cuda:0")), "a/cuda:0", "b/cuda:0")
    (trouble,) = troubles(away(failed(state, "a/cuda:0"), "a", reason))
    assert [(one.device_id, one.kind) for one in trouble.devices] == [("a/cuda:0", kind)]
    assert trouble.cause == cause and trouble.is_absence
    assert restarts(away(stage(state, 1, "failed", reason="neighbour gone"), "a", reason)) == []
    (both,) = troubles(away(failed(state, "b/cuda:0"), "a", reason))
    assert not both.is_absence and cause in both.cause and "cuda:0 of host-b has failed" in both.cause
    assert troubles(fold(away(state, "a"), NodeJoined(identity=machine("a", "cuda:0")))) == []


def test_a_node_that_was_removed_is_a_trouble_though_its_stages_have_failed_for_good() -> None:
    state = on(cluster(machine("a", "cuda:0"), machine("b", "cuda:0")), "b/cuda:0")
    (trouble,) = troubles(fold(state, NodeRemoved(node_id=NodeId("b"), reason="stolen")))
    assert trouble.devices[0].kind == "removed" and not trouble.is_absence
    assert trouble.cause == "the node b was removed from the cluster"


def test_only_what_was_moved_is_moved_again_where_it_cannot_be_loaded() -> None:
    state = on(cluster(machine("a", "cuda:0"), machine("b", "cuda:0")), "a/cuda:0")
    broken = stage(state, 0, "failed", reason="truncated", is_permanent=True)
    assert troubles(broken) == []
    plan = state.instances[InstanceId("i")].plan
    move = InstanceMoved(instance_id=InstanceId("i"), generation=2, plan=plan, reason="a GPU failed")
    moved = stage(fold(state, move), 0, "failed", reason="truncated", is_permanent=True)
    (trouble,) = troubles(moved)
    assert trouble.unfit == {"a/cuda:0"} and restarts(moved) == []
    assert trouble.cause == "it could not be loaded on cuda:0 of host-a: truncated"
    # What may still work is started again where it is, so often as anything is.
    again = fold(state, move)
    for _ in range(FAILURES_IN_A_ROW_MAX):
        again = stage(again, 0, "failed", reason="killed")
        assert troubles(again) == []
        again = fold(again, *restarts(again))
    assert troubles(stage(again, 0, "failed", reason="killed"))[0].unfit == {"a/cuda:0"}


def test_an_instance_with_a_failed_device_is_not_restarted_where_it_is() -> None:
    state = stage(one_gpu(), 0, "failed", reason="killed by signal 11")
    assert len(restarts(state)) == 1
    assert restarts(failed(state, "a/cuda:0")) == []


def test_a_stranded_instance_starts_again_once_its_devices_are_back_however_often_it_had_failed() -> None:
    state = one_gpu()
    for _ in range(FAILURES_IN_A_ROW_MAX):
        state = fold(
            stage(state, 0, "failed", reason="again"), *restarts(stage(state, 0, "failed", reason="x"))
        )
    why = InstanceStranded(
        instance_id=InstanceId("i"), generation=FAILURES_IN_A_ROW_MAX + 1, reason="no room"
    )
    state = fold(failed(state, "a/cuda:0"), why)
    assert instance_status(state, state.instances[InstanceId("i")]) == ("failed", "no room")
    assert restarts(state) == []
    (event,) = restarts(told(state, "a/cuda:0"))
    assert event.reason == "its devices can be used again"
    state = fold(told(state, "a/cuda:0"), event)
    assert instance_status(state, state.instances[InstanceId("i")]) == ("pending", None)


def test_patience_is_counted_from_when_a_device_was_out_without_a_break() -> None:
    patience = Patience(failed_s=3, gone_s=20)
    out = failed(one_gpu(), "a/cuda:0")
    since = unusable_since({}, troubles(out), 10.0)
    assert unusable_since(since, troubles(out), 12.0) == {"a/cuda:0": 10.0}
    (trouble,) = troubles(out)
    assert due_s(trouble, since, patience) == 13.0
    assert unusable_since(since, troubles(told(out, "a/cuda:0")), 12.0) == {}
    assert due_s(trouble, {}, patience) is None
    # It came back as it went, and is on trial: that is one absence.
    (trouble,) = troubles(gone(out, "a/cuda:0"))
    assert due_s(trouble, unusable_since(since, troubles(gone(out, "a/cuda:0")), 12.0), patience) == 30.0


def test_each_kind_of_loss_has_its_own_patience() -> None:
    patience = Patience(failed_s=3, gone_s=20, lost_s=1.5, stopped_s=0.5)
    waits = {kind: patience.of(kind) for kind in get_args(LossKind)}
    assert waits == {
        "failed": 3,
        "gone": 20,
        "lost": 1.5,
        "stopped": 0.5,
        "unseen": 0,
        "removed": 0,
        "unfit": 0,
    }
    state = away(on(cluster(machine("a", "cuda:0"), machine("b")), "a/cuda:0"), "a", STOPPED)
    (trouble,) = troubles(state)
    assert due_s(trouble, unusable_since({}, troubles(state), 10.0), patience) == 10.5
