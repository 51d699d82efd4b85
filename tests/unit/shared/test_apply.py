"""Folding: order, membership, instances, telemetry."""

import pytest

from exo.shared.apply import apply_entry, apply_telemetry
from exo.shared.errors import LogOrderError
from exo.shared.invariants import check
from exo.shared.serving import instance_status, is_being_replaced
from exo.shared.types import events as e
from exo.shared.types.ids import DeviceId, EventId, InstanceId, NodeId
from exo.shared.types.instances import StageProgress
from exo.shared.types.nodes import HostPort, LinkType
from exo.shared.types.state import State
from support.states import GIB, card, cluster, fold, identity, with_free_memory
from support.stories import placed, stage


def two_nodes() -> State:
    return cluster(identity("a", models=[card()]), identity("b", models=[card()]))


def test_an_entry_out_of_order_is_refused() -> None:
    entry = e.LogEntry(
        index=3,
        term=1,
        event_id=EventId("x"),
        cause_id="",
        origin=NodeId("a"),
        seq=1,
        at="",
        event=e.TermOpened(master_node_id=NodeId("a")),
    )
    with pytest.raises(LogOrderError, match="index 1, not 3"):
        apply_entry(State(), entry)


def test_folding_never_changes_the_state_it_was_given() -> None:
    before = two_nodes()
    copy = before.decided()
    placed(before, 2)
    assert before.decided() == copy


def test_an_instance_is_ready_when_all_its_stages_are() -> None:
    state = placed(two_nodes(), 2)
    assert instance_status(state, state.instances[InstanceId("i")])[0] == "pending"
    state = stage(state, 0, "loaded", address=HostPort("127.0.0.1", 7))
    assert instance_status(state, state.instances[InstanceId("i")])[0] == "loading"
    state = stage(stage(state, 1, "ready"), 0, "ready")
    assert instance_status(state, state.instances[InstanceId("i")]) == ("ready", None)
    assert state.instances[InstanceId("i")].stages[0].address == HostPort("127.0.0.1", 7)
    assert check(state) == []


def test_an_instance_cannot_serve_while_a_node_of_it_is_away_and_is_as_before_when_it_is_back() -> None:
    state = stage(stage(placed(two_nodes(), 2), 0, "ready"), 1, "ready")
    away = fold(state, e.NodeDisconnected(node_id=NodeId("b"), reason="stopped answering"))
    status, reason = instance_status(away, away.instances[InstanceId("i")])
    assert status == "failed"
    assert reason is not None and "host-b" in reason and "stopped answering" in reason
    back = fold(away, e.NodeJoined(identity=state.nodes[NodeId("b")].identity))
    assert instance_status(back, back.instances[InstanceId("i")])[0] == "ready"


def test_a_new_boot_voids_the_stages_of_that_node_only() -> None:
    state = stage(stage(placed(two_nodes(), 2), 0, "ready"), 1, "ready")
    on_b = next(s.rank for s in state.instances[InstanceId("i")].plan.stages if s.node_id == "b")
    state = fold(state, e.NodeJoined(identity=identity("b", boot_id="boot-2", models=[card()])))
    phases = [one.phase for one in state.instances[InstanceId("i")].stages]
    assert phases[on_b] == "pending" and phases[1 - on_b] == "ready"


def test_reports_of_an_older_generation_do_not_count() -> None:
    state = placed(two_nodes())
    late = e.StageChanged(instance_id=InstanceId("i"), generation=1, rank=0, phase="failed", reason="late")
    state = fold(state, e.InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="test"), late)
    assert state.instances[InstanceId("i")].status == "pending"
    assert state.instances[InstanceId("i")].failures_in_a_row == 1
    state = stage(state, 0, "ready")
    assert state.instances[InstanceId("i")].failures_in_a_row == 0


def test_a_move_begins_a_new_generation_elsewhere_and_ends_being_stranded() -> None:
    state = placed(two_nodes(), 2)
    instance = state.instances[InstanceId("i")]
    alone = placed(two_nodes()).instances[InstanceId("i")].plan
    stuck = e.InstanceStranded(instance_id=InstanceId("i"), generation=1, reason="no room")
    late = e.InstanceStranded(instance_id=InstanceId("i"), generation=0, reason="an older one")
    state = fold(state, stuck, late)
    assert instance_status(state, state.instances[InstanceId("i")]) == ("failed", "no room")
    moved = e.InstanceMoved(instance_id=InstanceId("i"), generation=2, plan=alone, reason="a GPU failed")
    state = fold(state, moved)
    after = state.instances[InstanceId("i")]
    assert (after.plan, after.generation, len(after.stages)) == (alone, 2, 1)
    assert (after.moved_reason, after.stranded_reason, after.request) == (
        "a GPU failed",
        None,
        instance.request,
    )
    assert instance_status(state, after) == ("pending", None)
    assert check(state) == []
    again = fold(
        state, moved, e.InstanceMoved(instance_id=InstanceId("x"), generation=2, plan=alone, reason="")
    )
    assert again.instances == state.instances


def test_an_instance_waits_for_its_node_until_that_is_back_or_it_goes_on_elsewhere() -> None:
    ready = stage(stage(placed(two_nodes(), 2), 0, "ready"), 1, "ready")
    away = fold(ready, e.NodeDisconnected(node_id=NodeId("b"), reason="killed"))
    assert is_being_replaced(away, away.instances[InstanceId("i")])
    assert not is_being_replaced(ready, ready.instances[InstanceId("i")])
    waits = e.InstanceWaits(instance_id=InstanceId("i"), generation=1, reason="it waits: no room")
    late = e.InstanceWaits(instance_id=InstanceId("i"), generation=0, reason="an older one")
    waiting = fold(away, waits, late)
    status, reason = instance_status(waiting, waiting.instances[InstanceId("i")])
    assert status == "failed" and reason is not None
    assert reason.endswith("is on host-b, which is not connected (killed); it waits: no room")
    assert not is_being_replaced(waiting, waiting.instances[InstanceId("i")])
    # Another node's coming is nothing to it; its own ends the waiting, and its stages are as they were.
    joined = fold(waiting, e.NodeJoined(identity=identity("c")))
    assert joined.instances == waiting.instances
    back = fold(waiting, e.NodeJoined(identity=waiting.nodes[NodeId("b")].identity))
    assert back.instances == ready.instances
    alone = placed(two_nodes()).instances[InstanceId("i")].plan
    moved = e.InstanceMoved(instance_id=InstanceId("i"), generation=2, plan=alone, reason="b is lost")
    assert fold(waiting, moved).instances[InstanceId("i")].waiting_reason is None
    removed = fold(away, e.NodeRemoved(node_id=NodeId("b"), reason="stolen"))
    assert is_being_replaced(removed, removed.instances[InstanceId("i")])
    on_a = next(one.rank for one in away.instances[InstanceId("i")].plan.stages if one.node_id == "a")
    broken = stage(away, on_a, "failed", reason="truncated", is_permanent=True)
    assert not is_being_replaced(broken, broken.instances[InstanceId("i")]), "a person has to look"


def test_the_last_telemetry_wins_and_older_or_foreign_frames_change_nothing() -> None:
    state = with_free_memory(two_nodes(), {"a": 4 * GIB})
    state = with_free_memory(state, {"a": 5 * GIB})
    (reading,) = state.live[NodeId("a")].devices.values()
    assert reading.memory_free_bytes == 5 * GIB
    for boot_id, seq, node in (("boot-1", 0, "a"), ("boot-0", 9, "a"), ("boot-1", 9, "stranger")):
        frame = e.TelemetryFrame(node_id=NodeId(node), boot_id=boot_id, seq=seq, events=())
        assert apply_telemetry(state, frame) is state


def test_progress_of_deleted_instances_does_not_stay() -> None:
    state = placed(two_nodes())
    progress = e.StageProgressed(
        instance_id=InstanceId("i"),
        generation=1,
        rank=0,
        progress=StageProgress(loaded_layers=1, total_layers=6),
    )
    frame = e.TelemetryFrame(node_id=NodeId("a"), boot_id="boot-1", seq=5, events=(progress,))
    state = apply_telemetry(state, frame)
    assert list(state.live[NodeId("a")].stages) == ["i/1/0"]
    state = fold(state, e.InstanceDeleted(instance_id=InstanceId("i"), reason="test"))
    frame = e.TelemetryFrame(node_id=NodeId("a"), boot_id="boot-1", seq=6, events=())
    assert apply_telemetry(state, frame).live[NodeId("a")].stages == {}


def test_a_ping_does_not_erase_the_bandwidth_that_a_transfer_measured() -> None:
    state = two_nodes()
    measured = [
        e.LinkMeasured(
            source_node_id=NodeId("a"), dest_node_id=NodeId("b"), link_type="loopback", bandwidth_mbps=900.0
        ),
        e.LinkMeasured(
            source_node_id=NodeId("a"), dest_node_id=NodeId("b"), link_type="loopback", latency_ms=0.2
        ),
    ]
    for seq, event in enumerate(measured):
        frame = e.TelemetryFrame(node_id=NodeId("a"), boot_id="boot-1", seq=seq, events=(event,))
        state = apply_telemetry(state, frame)
    link = state.live[NodeId("a")].links[NodeId("b")]
    assert (link.bandwidth_mbps, link.latency_ms) == (900.0, 0.2)


def test_a_transfer_between_nodes_is_their_link_and_one_within_a_node_is_its_devices() -> None:
    def measured(source: str, dest: str, link_type: LinkType) -> e.GPUBandwidthMeasured:
        return e.GPUBandwidthMeasured(
            source_device_id=DeviceId(source),
            dest_device_id=DeviceId(dest),
            bandwidth_mbps=900.0,
            latency_ms=0.1,
            measurement_count=5,
            link_type=link_type,
        )

    ping = e.LinkMeasured(
        source_node_id=NodeId("a"), dest_node_id=NodeId("b"), link_type="unknown", latency_ms=0.2
    )
    events = (measured("a/cpu:0", "b/cpu:0", "wifi"), ping, measured("a/cuda:0", "a/cuda:1", "p2p"))
    frame = e.TelemetryFrame(node_id=NodeId("a"), boot_id="boot-1", seq=1, events=events)
    live = apply_telemetry(two_nodes(), frame).live[NodeId("a")]
    # Who pings does not know what kind of link it is, nor how wide.
    assert list(live.links) == [NodeId("b")]
    link = live.links[NodeId("b")]
    assert (link.link_type, link.bandwidth_mbps, link.latency_ms) == ("wifi", 900.0, 0.2)
    (way,) = live.device_links.values()
    assert (way.source_device_id, way.dest_device_id, way.link_type) == ("a/cuda:0", "a/cuda:1", "p2p")
