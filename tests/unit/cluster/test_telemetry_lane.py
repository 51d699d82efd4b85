"""Telemetry on its way: the last value wins, and nothing that is still true is forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.board import Board
from exo.cluster.lane import Lane
from exo.cluster.telemetry import HeldFrames, OwnTelemetry, TickRing, merge_frames
from exo.cluster.wire import LiveState, TelemetryTick, decode_from_listener
from exo.shared.apply import apply_frames
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.events import (
    DeviceGPUStateUpdated,
    DevicePaceMeasured,
    GPUBandwidthMeasured,
    InstancePaceMeasured,
    LinkMeasured,
    LogEntry,
    NodeJoined,
    StageProgressed,
    Telemetry,
    TelemetryFrame,
)
from exo.shared.types.ids import DeviceId, EventId, InstanceId, NodeId
from exo.shared.types.instances import StageProgress
from exo.shared.types.pace import DevicePace, InstancePace
from exo.shared.types.state import NodeTelemetry
from support.states import cluster, identity

A, B = NodeId("a"), NodeId("b")


def device(name: str, used: int) -> DeviceGPUStateUpdated:
    state = DeviceGPUState(
        device_id=DeviceId(name), node_id=A, memory_used_bytes=used, last_update="2026-01-01T00:00:00Z"
    )
    return DeviceGPUStateUpdated(state=state)


def progress(instance: str, layers: int, rank: int = 0) -> StageProgressed:
    return StageProgressed(
        instance_id=InstanceId(instance),
        generation=1,
        rank=rank,
        progress=StageProgress(loaded_layers=layers, total_layers=9),
    )


def pace(dtype: str, overhead_s: float) -> DevicePaceMeasured:
    return DevicePaceMeasured(
        pace=DevicePace(
            device_id=DeviceId("a/cpu:0"),
            engine="mlx",
            dtype=dtype,
            step_overhead_s=overhead_s,
            layer_overhead_s=0.0,
            bandwidth_bytes_per_s=1e9,
            reads_min_bytes=1,
            reads_max_bytes=2,
            measurement_count=3,
            error_percent=0.5,
        )
    )


def instance_pace(instance: str, ms_per_token: float) -> InstancePaceMeasured:
    return InstancePaceMeasured(
        pace=InstancePace(
            instance_id=InstanceId(instance), generation=1, ms_per_token=ms_per_token, measurement_count=9
        )
    )


def test_of_paces_the_last_of_each_type_of_weights_stays_and_of_instances_while_they_are_there() -> None:
    own = OwnTelemetry(A, "boot-1")
    own.publish([pace("4-bit", 1.0), pace("bfloat16", 2.0), pace("4-bit", 3.0)])
    own.publish([instance_pace("gone", 1.0), instance_pace("here", 2.0), instance_pace("here", 3.0)])
    first = own.take()
    assert set(first.events) == {
        pace("bfloat16", 2.0),
        pace("4-bit", 3.0),
        instance_pace("gone", 1.0),
        instance_pace("here", 3.0),
    }
    own.refresh_all([InstanceId("here")])
    assert set(own.take().events) == {pace("bfloat16", 2.0), pace("4-bit", 3.0), instance_pace("here", 3.0)}


def link(dest: str, latency_ms: float) -> LinkMeasured:
    return LinkMeasured(
        source_node_id=A, dest_node_id=NodeId(dest), link_type="unknown", latency_ms=latency_ms
    )


def test_the_last_value_about_each_thing_is_sent() -> None:
    own = OwnTelemetry(A, "boot")
    bandwidth = GPUBandwidthMeasured(
        source_device_id=DeviceId("a/0"),
        dest_device_id=DeviceId("b/0"),
        bandwidth_mbps=1.0,
        latency_ms=1.0,
        measurement_count=1,
    )
    own.publish([device("a/0", 1), device("a/1", 2), link("b", 1.0), progress("i", 1), bandwidth])
    own.publish(
        [device("a/0", 3), link("b", 2.0), link("c", 1.0), progress("i", 2), progress("i", 1, rank=1)]
    )
    frame = own.take()
    assert (frame.seq, frame.boot_id) == (0, "boot")
    assert set(frame.events) == {
        device("a/0", 3),
        device("a/1", 2),
        link("b", 2.0),
        link("c", 1.0),
        progress("i", 2),
        progress("i", 1, rank=1),
        bandwidth,
    }
    assert not own.has_fresh
    own.publish([device("a/1", 9)])
    assert own.take() == TelemetryFrame(node_id=A, boot_id="boot", seq=1, events=(device("a/1", 9),))


def test_a_new_master_is_told_everything_that_still_matters() -> None:
    own = OwnTelemetry(A, "boot")
    own.publish([device("a/0", 1), progress("gone", 1), progress("here", 1)])
    own.take()
    own.publish([device("a/0", 2)])
    own.refresh_all([InstanceId("here")])
    assert set(own.take().events) == {device("a/0", 2), progress("here", 1)}
    own.refresh_all([InstanceId("here")])
    assert len(own.take().events) == 2


def test_frames_of_one_node_merge_and_those_of_a_new_boot_replace() -> None:
    one = TelemetryFrame(node_id=A, boot_id="1", seq=1, events=(device("x", 1), device("y", 1)))
    two = TelemetryFrame(node_id=A, boot_id="1", seq=2, events=(device("x", 2),))
    merged = merge_frames(one, two)
    assert merged.seq == 2 and set(merged.events) == {device("x", 2), device("y", 1)}
    again = TelemetryFrame(node_id=A, boot_id="2", seq=0, events=(device("x", 3),))
    assert merge_frames(merged, again) == again
    assert merge_frames(None, one) == one


def test_followers_get_each_tick_once_or_learn_that_they_missed_some() -> None:
    ring = TickRing(ticks_max=3)
    assert list(ring.since(0) or ()) == []
    for number in range(1, 6):
        ring.gather(TelemetryFrame(node_id=A, boot_id="1", seq=number, events=(device("x", number),)))
        ring.gather(TelemetryFrame(node_id=B, boot_id="1", seq=number, events=()))
        assert ring.has_gathered
        assert {frame.node_id for frame in ring.close_tick(term=4, index=7)} == {A, B}
        assert not ring.has_gathered
    ticks = ring.since(2)
    assert ticks is not None
    decoded = [decode_from_listener(tick) for tick in ticks]
    assert [tick.tick for tick in decoded if isinstance(tick, TelemetryTick)] == [3, 4, 5]
    assert all(isinstance(tick, TelemetryTick) and (tick.term, tick.index) == (4, 7) for tick in decoded)
    assert ring.since(1) is None
    assert list(ring.since(5) or ()) == []
    ring.clear()
    assert ring.since(4) is None and ring.tick == 5


def frame(node_id: NodeId, seq: int, *events: Telemetry, boot_id: str = "boot-1") -> TelemetryFrame:
    return TelemetryFrame(node_id=node_id, boot_id=boot_id, seq=seq, events=events)


def test_frames_wait_for_the_decisions_that_they_were_folded_into() -> None:
    held = HeldFrames()
    held.hold(5, [frame(A, 1, device("a/0", 1)), frame(B, 1)])
    held.hold(5, [frame(A, 2, device("a/1", 2))])
    assert list(held.release(4)) == []
    assert list(held.release(5)) == [frame(A, 2, device("a/0", 1), device("a/1", 2)), frame(B, 1)]
    assert list(held.release(9)) == []


def test_an_index_that_keeps_growing_holds_nothing_back_for_ever() -> None:
    held = HeldFrames()
    for number in range(1, 9):
        held.hold(10 * number, [frame(A, number, device(f"a/{number}", number))])
    assert [one.seq for one in held.release(10)] == [1]
    assert [one.seq for one in held.release(70)] == []
    held.hold(90, [frame(A, 9)])
    (rest,) = held.release(80)
    assert rest.seq == 8 and len(rest.events) == 7
    held.clear()
    assert list(held.release(1000)) == []


def test_frames_of_a_node_stay_in_their_order_whatever_their_indices_are() -> None:
    held = HeldFrames()
    for seq, index in enumerate((10, 20, 5)):
        held.hold(index, [frame(A, seq, device(f"a/{seq}", seq))])
    assert [one.seq for one in held.release(10)] == [0]
    (rest,) = held.release(20)
    assert rest.seq == 2 and len(rest.events) == 2


ticks = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from("xyz")), max_size=4),
        st.integers(0, 4),
    ),
    max_size=20,
)


@given(ticks)
def test_what_was_held_leads_to_the_same_telemetry_whenever_it_is_let_go(
    story: list[tuple[int, list[tuple[NodeId, str]], int]],
) -> None:
    """Each step: how far the master's index went on, what it sent, and how far the follower came."""
    held = HeldFrames()
    direct = later = cluster(identity("a"), identity("b"))
    here = there = 0
    seqs = {A: 0, B: 0}
    needed: dict[tuple[NodeId, int], int] = {}
    for further, said, caught_up in story:
        there += further
        sent: dict[NodeId, TelemetryFrame] = {}
        for node_id, name in said:
            seqs[node_id] += 1
            sent[node_id] = merge_frames(
                sent.get(node_id), frame(node_id, seqs[node_id], device(name, seqs[node_id]))
            )
            needed[node_id, seqs[node_id]] = there
        direct, _ = apply_frames(direct, list(sent.values()))
        held.hold(there, sent.values())
        here = min(there, here + caught_up)
        released = held.release(here)
        assert all(needed[one.node_id, one.seq] <= here for one in released)
        later, news = apply_frames(later, released)
        assert list(news) == list(released)
        if here == there:
            assert later == direct
    later, _ = apply_frames(later, held.release(there))
    assert later == direct


def follower() -> tuple[Board, Lane]:
    """A follower of a master `a` at index 3; its own id is `c`."""
    board = Board(NodeId("c"), feed_backlog=100, is_checking_invariants=True)
    board.state = cluster(identity("a"))
    assert board.state.index == 3
    return board, Lane(board, NodeId("c"), "boot-1")


def joins(index: int, node_id: str) -> LogEntry:
    return LogEntry(
        index=index,
        term=1,
        event_id=EventId(""),
        cause_id="",
        origin=A,
        seq=index,
        at="",
        event=NodeJoined(identity=identity(node_id)),
    )


def test_telemetry_of_a_node_that_is_not_known_yet_is_folded_when_it_is() -> None:
    board, lane = follower()
    lane.tick_received(TelemetryTick(term=1, tick=1, index=3, frames=(frame(A, 1, device("a/0", 1)),)))
    version = board.version
    assert set(board.state.live) == {A} and version == 1
    lane.tick_received(
        TelemetryTick(term=1, tick=2, index=4, frames=(frame(A, 2), frame(B, 1, device("b/0", 7))))
    )
    assert board.version == version and board.state.live[A].seq == 1
    board.fold([joins(4, "b")])
    assert lane.released(board.state.index)
    assert board.state.live[B].devices[DeviceId("b/0")].memory_used_bytes == 7
    assert board.state.live[A].seq == 2
    assert not lane.released(board.state.index)


def test_all_telemetry_at_once_waits_too_and_what_comes_later_is_folded_on_top() -> None:
    board, lane = follower()
    lane.tick_received(TelemetryTick(term=1, tick=1, index=9, frames=(frame(A, 1, device("a/9", 1)),)))
    live = {node_id: NodeTelemetry(boot_id="boot-1", seq=4) for node_id in (A, B)}
    lane.live_received(LiveState(live=live, index=4))
    lane.tick_received(TelemetryTick(term=1, tick=3, index=4, frames=(frame(B, 5, device("b/0", 7)),)))
    assert board.state.live == {} and board.version == 0
    board.fold([joins(4, "b")])
    assert lane.released(4)
    assert (board.state.live[A].seq, board.state.live[B].seq) == (4, 5)
    assert list(board.state.live[B].devices) == ["b/0"]
    # All there is says nothing of an earlier boot's telemetry that is still on its way.
    lane.live_received(LiveState(live={A: NodeTelemetry(boot_id="boot-0", seq=9)}, index=4))
    assert board.state.live == {}


def test_what_waits_is_dropped_with_the_master() -> None:
    board, lane = follower()
    lane.live_received(LiveState(live={A: NodeTelemetry(boot_id="boot-1", seq=4)}, index=9))
    lane.tick_received(TelemetryTick(term=1, tick=3, index=9, frames=(frame(A, 5),)))
    lane.drop_uplink()
    assert not lane.released(100) and board.state.live == {}
