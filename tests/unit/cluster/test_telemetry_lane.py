"""Telemetry on its way: the last value wins, and nothing that is still true is forgotten."""

from exo.cluster.telemetry import OwnTelemetry, TickRing, merge_frames
from exo.cluster.wire import TelemetryTick, decode_from_listener
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.events import (
    DeviceGPUStateUpdated,
    GPUBandwidthMeasured,
    LinkMeasured,
    StageProgressed,
    TelemetryFrame,
)
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import StageProgress

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
        assert {frame.node_id for frame in ring.close_tick(term=4)} == {A, B}
        assert not ring.has_gathered
    ticks = ring.since(2)
    assert ticks is not None
    decoded = [decode_from_listener(tick) for tick in ticks]
    assert [tick.tick for tick in decoded if isinstance(tick, TelemetryTick)] == [3, 4, 5]
    assert all(isinstance(tick, TelemetryTick) and tick.term == 4 for tick in decoded)
    assert ring.since(1) is None
    assert list(ring.since(5) or ()) == []
    ring.clear()
    assert ring.since(4) is None and ring.tick == 5
