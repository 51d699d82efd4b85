"""Folding whole batches leads where folding one by one with every dictionary copied leads, and shares what it can."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.shared.apply import apply_entries, apply_entry, apply_frames, apply_telemetry
from exo.shared.errors import LogOrderError
from exo.shared.types import events as e
from exo.shared.types.access import KeyId, KeyUsage
from exo.shared.types.devices import DeviceGPUState, MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.ids import ClusterId, CommandId, DeviceId, EventId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import (
    Instance,
    PlacementRequest,
    Plan,
    StagePlan,
    StageProgress,
    StageState,
)
from exo.shared.types.nodes import HostPort
from exo.shared.types.pace import DevicePace, InstancePace
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from support import naive_apply
from support.states import card, cluster, fold, gpu, identity

NODES = [NodeId(name) for name in "abc"]
STRANGER = NodeId("stranger")
INSTANCES = [InstanceId(name) for name in "ij"]

nodes = st.sampled_from([*NODES, *NODES, STRANGER])
boots = st.sampled_from(["boot-1", "boot-2"])
instance_ids = st.sampled_from(INSTANCES)
key_ids = st.sampled_from([KeyId("k"), KeyId("l")])
small = st.integers(0, 3)
voters = st.builds(Voters, voters=st.lists(nodes, max_size=3, unique=True).map(tuple))
reasons = st.sampled_from(["one", "another"])


def reading(name: str, used: int) -> e.DeviceGPUStateUpdated:
    return e.DeviceGPUStateUpdated(
        state=DeviceGPUState(
            device_id=DeviceId(name), node_id=NODES[0], memory_used_bytes=used, last_update=""
        )
    )


def spread(instance_id: InstanceId, *where: NodeId) -> Instance:
    """An instance with two layers on each of the nodes."""
    plans = tuple(
        StagePlan(
            rank=rank,
            node_id=node_id,
            device_ids=(DeviceId(f"{node_id}/cpu:0"),),
            start_layer=2 * rank,
            end_layer=2 * rank + 2,
            memory_bytes=1,
        )
        for rank, node_id in enumerate(where)
    )
    return Instance(
        instance_id=instance_id,
        model=card(layers=2 * len(where)),
        plan=Plan(
            stages=plans,
            sharding="pipeline",
            engine="mlx",
            context_length=1,
            concurrency=1,
            method="greedy",
        ),
        request=PlacementRequest(model_id=ModelId("toy")),
        stages=tuple(StageState(phase="loading", is_permanent=not rank) for rank, _ in enumerate(where)),
        created_by=CommandId("c"),
    )


instances = st.builds(
    spread, instance_ids, st.sampled_from(NODES), st.sampled_from(NODES), st.sampled_from(NODES)
)
decisions: st.SearchStrategy[e.Decision] = st.one_of(
    st.builds(e.ClusterFormed, cluster_id=st.just(ClusterId("other")), namespace=st.just("n"), voters=voters),
    st.builds(e.ClusterDissolved, into_cluster_id=st.just(ClusterId("x")), address=st.just(HostPort("h", 1))),
    st.builds(e.VotersChanged, voters=voters, reason=reasons),
    st.builds(e.HistoryForced, incarnation=small, forgotten=st.just(()), voters=voters),
    st.builds(e.TermOpened, master_node_id=nodes),
    st.builds(e.NodeJoined, identity=st.builds(lambda n, b: identity(n, boot_id=b), nodes, boots)),
    st.builds(e.NodeDisconnected, node_id=nodes, reason=reasons),
    st.builds(e.NodeRemoved, node_id=nodes, reason=reasons),
    st.builds(e.NodeModelsChanged, node_id=nodes, models=st.lists(st.just(card()), max_size=1).map(tuple)),
    st.builds(
        lambda n, alias: e.DeviceAppeared(node_id=n, device=gpu(n, 1, alias)),
        nodes,
        st.sampled_from(["cuda:0", "cuda:1"]),
    ),
    st.builds(
        lambda n, alias, reason: e.DeviceLost(node_id=n, device_id=DeviceId(f"{n}/{alias}"), reason=reason),
        nodes,
        st.sampled_from(["cpu:0", "cuda:0", "cuda:1"]),
        reasons,
    ),
    st.builds(e.InstanceCreated, instance=instances),
    st.builds(
        e.KeyCreated,
        key_id=key_ids,
        hash=reasons,
        name=reasons,
        scopes=st.just(("infer",)),
        created_at_s=st.just(1.0),
        expires_at_s=st.none(),
        created_by=reasons,
    ),
    st.builds(e.KeyLimited, key_id=key_ids, requests_per_minute=st.sampled_from([None, 1, 2])),
    st.builds(e.KeyDeleted, key_id=key_ids),
    st.builds(e.AuthorityCreated, certificate_pem=reasons),
    st.builds(
        e.CertificateIssued,
        node_id=nodes,
        serial=reasons,
        fingerprint=reasons,
        issued_at_s=st.sampled_from([1.0, 5.0]),
        not_after_s=st.sampled_from([4.0, 9.0]),
        certificate_pem=reasons,
    ),
    st.builds(e.InstanceDeleted, instance_id=instance_ids, reason=reasons),
    st.builds(e.InstanceRestarted, instance_id=instance_ids, generation=small, reason=reasons),
    st.builds(
        lambda instance, generation, reason: e.InstanceMoved(
            instance_id=instance.instance_id, generation=generation, plan=instance.plan, reason=reason
        ),
        instances,
        small,
        reasons,
    ),
    st.builds(e.InstanceStranded, instance_id=instance_ids, generation=st.integers(1, 2), reason=reasons),
    st.builds(e.InstanceWaits, instance_id=instance_ids, generation=st.integers(1, 2), reason=reasons),
    st.builds(
        e.StageChanged,
        instance_id=instance_ids,
        generation=st.integers(1, 2),
        rank=small,
        phase=st.sampled_from(["starting", "ready", "failed"]),
        address=st.sampled_from([None, HostPort("h", 2)]),
        is_permanent=st.booleans(),
    ),
)
optional = st.sampled_from([None, 1.0, 2.0])
telemetry: st.SearchStrategy[e.Telemetry] = st.one_of(
    st.builds(reading, st.sampled_from(["x", "y"]), small),
    st.builds(
        lambda node_id, total, key_usage: e.NodeProfileUpdated(
            node_id=node_id,
            key_usage=key_usage,
            profile=NodePerformanceProfile(
                memory=MemoryProfile(ram_total=total, ram_available=0, swap_total=0, swap_available=0),
                system=SystemProfile(),
            ),
        ),
        nodes,
        small,
        st.dictionaries(key_ids, st.builds(KeyUsage, small, small, small, small), max_size=2),
    ),
    st.builds(
        e.LinkMeasured,
        source_node_id=nodes,
        dest_node_id=nodes,
        link_type=st.sampled_from(["wifi", "unknown"]),
        latency_ms=optional,
        bandwidth_mbps=optional,
        measurement_count=small,
    ),
    st.builds(
        e.GPUBandwidthMeasured,
        source_device_id=st.just(DeviceId("a/x")),
        dest_device_id=nodes.map(lambda node_id: DeviceId(f"{node_id}/x")),
        bandwidth_mbps=st.just(5.0),
        latency_ms=st.just(6.0),
        measurement_count=small,
        link_type=st.sampled_from(["p2p", "unknown"]),
    ),
    st.builds(
        e.StageProgressed,
        instance_id=instance_ids,
        generation=small,
        rank=small,
        progress=st.builds(StageProgress, loaded_layers=small, total_layers=small),
    ),
    st.builds(
        e.DevicePaceMeasured,
        pace=st.builds(
            DevicePace,
            device_id=st.sampled_from(["a/x", "a/y"]),
            engine=st.just("mlx"),
            dtype=st.sampled_from(["bfloat16", "4-bit"]),
            reads_min_bytes=small,
            reads_max_bytes=small,
            measurement_count=small,
            hop_count=small,
        ),
    ),
    st.builds(
        e.InstancePaceMeasured,
        pace=st.builds(InstancePace, instance_id=instance_ids, generation=small, measurement_count=small),
    ),
)
frames = st.builds(
    e.TelemetryFrame,
    node_id=nodes,
    boot_id=boots,
    seq=st.integers(0, 6),
    events=st.lists(telemetry, max_size=4).map(tuple),
)
Batch = list[e.Decision] | list[e.TelemetryFrame]
batches: st.SearchStrategy[list[Batch]] = st.lists(
    st.lists(decisions, max_size=16) | st.lists(frames, max_size=6), min_size=2, max_size=8
)


def begin() -> State:
    """Three nodes with an instance over all of them, and telemetry of each."""
    state = cluster(*(identity(name) for name in NODES))
    state = fold(state, e.InstanceCreated(instance=spread(INSTANCES[0], *NODES)))
    progress = StageProgress(loaded_layers=1, total_layers=2)
    event = e.StageProgressed(instance_id=INSTANCES[0], generation=1, rank=0, progress=progress)
    first = [
        e.TelemetryFrame(node_id=name, boot_id="boot-1", seq=0, events=(event, reading("x", 1)))
        for name in NODES
    ]
    return apply_frames(state, first)[0]


def numbered(state: State, events: Sequence[e.Decision]) -> list[e.LogEntry]:
    return [
        e.LogEntry(
            index=state.index + 1 + position,
            term=state.term + position % 2,
            event_id=EventId(""),
            cause_id="",
            origin=NODES[position % 3],
            seq=position,
            at="",
            event=event,
        )
        for position, event in enumerate(events)
    ]


def is_decided(batch: Batch) -> bool:
    return not batch or not isinstance(batch[0], e.TelemetryFrame)


@given(batches)
def test_batches_lead_where_the_naive_fold_leads(story: list[Batch]) -> None:
    fast = naive = begin()
    for batch in story:
        before, bytes_before = fast, msgspec.msgpack.encode(fast)
        if is_decided(batch):
            entries = numbered(fast, [one for one in batch if not isinstance(one, e.TelemetryFrame)])
            fast = apply_entries(fast, entries)
            for entry in entries:
                naive = naive_apply.apply_entry(naive, entry)
        else:
            sent = [one for one in batch if isinstance(one, e.TelemetryFrame)]
            fast, news = apply_frames(fast, sent)
            expected: list[e.TelemetryFrame] = []
            for frame in sent:
                state = naive_apply.frame_received(naive, frame)
                if state is not naive:
                    expected.append(frame)
                naive = state
            assert list(news) == expected
            assert (fast is before) == (not expected)
            assert fast.nodes is before.nodes and fast.instances is before.instances
        # As bytes too, so that the order within the dictionaries is compared as well.
        assert fast == naive
        assert msgspec.msgpack.encode(fast) == msgspec.msgpack.encode(naive)
        assert msgspec.msgpack.encode(before) == bytes_before


@given(st.lists(decisions, max_size=12), st.lists(frames, max_size=12), st.data())
def test_how_a_stream_is_cut_into_batches_does_not_matter(
    events: list[e.Decision], sent: list[e.TelemetryFrame], data: st.DataObject
) -> None:
    entries = numbered(begin(), events)
    whole = apply_entries(begin(), entries)
    cut = data.draw(st.integers(0, len(entries)))
    assert apply_entries(apply_entries(begin(), entries[:cut]), entries[cut:]) == whole
    singly = begin()
    for entry in entries:
        singly = apply_entry(singly, entry)
    assert singly == whole
    folded, _ = apply_frames(whole, sent)
    for frame in sent:
        singly = apply_telemetry(singly, frame)
    assert singly == folded


def test_what_a_batch_does_not_touch_stays_the_same_object() -> None:
    before = fold(begin(), e.InstanceDeleted(instance_id=InstanceId("nothing"), reason=""))
    after = apply_entries(before, numbered(before, [e.NodeDisconnected(node_id=NODES[0], reason="r")]))
    assert after.instances is before.instances and after.live is before.live
    assert after.nodes[NODES[1]] is before.nodes[NODES[1]]
    assert apply_entries(after, []) is after


def test_an_entry_out_of_order_within_a_batch_is_refused() -> None:
    state = begin()
    first, second = numbered(state, [e.TermOpened(master_node_id=node_id) for node_id in NODES[:2]])
    late = msgspec.structs.replace(second, index=second.index + 1)
    with pytest.raises(LogOrderError, match=f"index {second.index}, not {late.index}"):
        apply_entries(state, [first, late])
