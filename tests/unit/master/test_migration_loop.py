"""The master moves healthy instances: once it pays, once at a time, and on the newest state. In virtual time."""

import anyio
import pytest
from msgspec.structs import replace

from exo.master.migration import LOOK_S, Habits, Offer
from exo.master.migration_view import (
    Seen,
    busy_share,
    can_be_moved,
    circumstances,
    decide_migrate,
    held_back,
    is_worth_another_look,
    offer_of,
    seen_on,
    since_s,
    tokens_per_s,
)
from exo.master.replacement_job import Kept
from exo.shared.apply import apply_telemetry
from exo.shared.types.devices import DeviceGPUState, ThermalStatus
from exo.shared.types.events import (
    DeviceGPUStateUpdated,
    InstanceDeleted,
    InstanceMoved,
    InstanceWaits,
    NodeDisconnected,
    NodeJoined,
    TelemetryFrame,
)
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Prediction, StageState
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.pace import DevicePace, InstancePace
from exo.shared.types.state import State
from support.device_stories import devices_of, failed, machine, on, told
from support.mastered import Story, in_virtual_time, led
from support.states import cluster, fold
from support.stories import stage

HABITS = Habits()
I = InstanceId("i")  # noqa: E741
HOUR_S = 3600.0


def card(node_id: str, *, gb_per_s: float = 300.0) -> NodeIdentity:
    """A machine with one GPU that reads so fast."""
    made = machine(node_id, "cuda:0", ram_mib=200)
    devices = tuple(
        replace(one, memory_bandwidth_bytes_per_s=gb_per_s * 1e9) if one.backend == "cuda" else one
        for one in made.devices
    )
    return replace(made, devices=devices)


def reading(
    state: State, node_id: str, *, load_percent: float = 0.0, sustained: float | None = None
) -> State:
    """What a node says of its GPU."""
    device_id = DeviceId(f"{node_id}/cuda:0")
    live = state.live.get(NodeId(node_id))
    told = DeviceGPUState(
        device_id=device_id,
        node_id=NodeId(node_id),
        memory_total_bytes=1024 * 2**20,
        memory_used_bytes=0,
        compute_utilization_percent=load_percent,
        last_update="2026-01-01T00:00:00Z",
        thermal=None
        if sustained is None
        else ThermalStatus(
            state="slowed", reason="too hot", work_fraction=sustained, sustained_fraction=sustained
        ),
    )
    frame = TelemetryFrame(
        node_id=NodeId(node_id),
        boot_id="boot-1",
        seq=live.seq + 1 if live else 0,
        events=(DeviceGPUStateUpdated(state=told),),
    )
    return apply_telemetry(state, frame)


def busy_on_a(*others: NodeIdentity) -> State:
    """A model on the GPU of `a`, which is used half of the time."""
    return reading(on(cluster(card("a"), *others), "a/cuda:0"), "a", load_percent=50.0)


def join(state: State, node: NodeIdentity) -> State:
    return fold(state, NodeJoined(identity=node))


@in_virtual_time
async def test_a_machine_that_is_much_faster_is_moved_to_once_it_has_been_there_for_a_while() -> None:
    async with led(busy_on_a(), HABITS) as story:
        await anyio.sleep(HOUR_S)
        assert story.events == []
        assert len(story.solver.requests) <= 2, "nothing changed: nothing is looked for again and again"
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(HABITS.stands_s)
        assert story.events == []
        # It is used all the time: a quiet moment is waited for in vain.
        await anyio.sleep(HABITS.quiet_wait_s + 3 * LOOK_S)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["b/cuda:0"]
        why = story.state.instances[I].moved_reason or ""
        assert why.startswith("each token is predicted to take ") and " instead of " in why
        assert "elsewhere; it now runs on cuda:0 of host-b, with 600 MiB of weights moved" in why
        assert story.state.instances[I].generation == 2 and story.state.instances[I].basis
        story.become(lambda state: stage(state, 0, "ready"))
        await anyio.sleep(24 * HOUR_S)
        assert story.events == [InstanceMoved]


@in_virtual_time
async def test_a_fault_of_the_solver_ends_no_looking() -> None:
    async with led(busy_on_a(), HABITS) as story:

        def die() -> None:
            raise ZeroDivisionError

        story.solver.meanwhile = [die] * 3
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(HOUR_S)
        assert story.solver.meanwhile == [] and story.events == [InstanceMoved]


@in_virtual_time
async def test_a_quiet_moment_is_taken() -> None:
    async with led(busy_on_a(), HABITS) as story:
        await anyio.sleep(HOUR_S)
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(HABITS.stands_s + LOOK_S)
        assert story.events == []
        story.become(reading, "a")
        await anyio.sleep(2 * LOOK_S)
        assert story.events == [InstanceMoved]


@pytest.mark.parametrize("gb_per_s", [310.0, 400.0, 550.0])
def test_what_is_little_faster_by_makers_figures_alone_is_left_alone(gb_per_s: float) -> None:
    @in_virtual_time
    async def story_of() -> None:
        async with led(busy_on_a(), HABITS) as story:
            await anyio.sleep(HOUR_S)
            story.become(join, card("b", gb_per_s=gb_per_s))
            await anyio.sleep(4 * HOUR_S)
            assert story.events == []

    story_of()


@in_virtual_time
async def test_nothing_is_moved_without_being_asked_for() -> None:
    async with led(busy_on_a()) as story:
        await anyio.sleep(HOUR_S)
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(4 * HOUR_S)
        assert story.events == [] and story.solver.requests == []


@in_virtual_time
async def test_a_device_that_heat_holds_back_for_long_is_left_and_a_short_one_is_borne() -> None:
    async with led(busy_on_a(card("b")), HABITS) as story:
        await anyio.sleep(HOUR_S)
        story.become(lambda state: reading(state, "a", load_percent=50, sustained=0.3))
        await anyio.sleep(HABITS.stands_s - LOOK_S)
        story.become(lambda state: reading(state, "a", load_percent=50, sustained=1.0))
        await anyio.sleep(HOUR_S)
        assert story.events == []
        story.become(lambda state: reading(state, "a", load_percent=50, sustained=0.3))
        await anyio.sleep(HABITS.stands_s + HABITS.quiet_wait_s + 3 * LOOK_S)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["b/cuda:0"]
        why = story.state.instances[I].moved_reason or ""
        assert why.startswith(
            "cuda:0 of host-a is held back to 30% by heat; each token is predicted to take "
        )


@in_virtual_time
async def test_memory_that_another_program_gives_back_is_looked_at() -> None:
    """Nothing else changes: no device, no load, no instance."""
    full = told(busy_on_a(card("b", gb_per_s=1200)), "b/cuda:0", used_mib=900)
    async with led(full, HABITS) as story:
        await anyio.sleep(HOUR_S)
        looks = len(story.solver.requests)
        # What comes and goes a little is not looked at again and again.
        for used_mib in (880, 900, 870, 890) * 10:
            story.become(lambda state, used=used_mib: told(state, "b/cuda:0", used_mib=used))
            await anyio.sleep(LOOK_S)
        assert story.events == [] and len(story.solver.requests) == looks
        story.become(lambda state: told(state, "b/cuda:0", used_mib=100))
        await anyio.sleep(HABITS.stands_s + HABITS.quiet_wait_s + 3 * LOOK_S)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["b/cuda:0"]


@in_virtual_time
async def test_memory_of_a_deleted_instance_is_looked_at_though_readings_show_it_later() -> None:
    both = on(busy_on_a(card("b", gb_per_s=1200)), "b/cuda:0", instance_id="j", exclude=("a",))
    async with led(told(both, "b/cuda:0", used_mib=900), HABITS) as story:
        await anyio.sleep(HOUR_S)
        assert story.events == []
        story.become(lambda state: fold(state, InstanceDeleted(instance_id=InstanceId("j"), reason="test")))
        # Its processes end slowly.
        await anyio.sleep(3 * LOOK_S)
        assert story.events == []
        story.become(lambda state: told(state, "b/cuda:0"))
        await anyio.sleep(HABITS.stands_s + HABITS.quiet_wait_s + 3 * LOOK_S)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["b/cuda:0"]


def test_more_memory_is_worth_a_look_where_it_holds_a_layer_and_is_an_eighth_more() -> None:
    before = seen_on(told(busy_on_a(), "a/cuda:0", used_mib=124))
    pool = next(key for key, free in before.free_bytes.items() if key == "a/cuda:0")
    had = before.free_bytes[pool]

    def with_more(more_bytes: int) -> Seen:
        return replace(before, free_bytes={**before.free_bytes, pool: had + more_bytes})

    assert not is_worth_another_look(before, before, 1000)
    assert not is_worth_another_look(before, with_more(-had // 2), 1000)
    assert not is_worth_another_look(before, with_more(had // 8), 1000)
    assert is_worth_another_look(before, with_more(had // 8 + 1), 1000)
    assert not is_worth_another_look(before, with_more(had // 8 + 1), had // 4)
    assert is_worth_another_look(before, with_more(had // 4 + 1), had // 4)
    came = replace(before, free_bytes={**before.free_bytes, "new": 1001})
    assert is_worth_another_look(before, came, 1000)


@in_virtual_time
async def test_fewer_nodes_than_asked_for_are_made_up_for_when_they_are_back_though_it_is_slower() -> None:
    nodes = cluster(card("a"), card("b"))
    async with led(on(nodes, "a/cuda:0", "b/cuda:0", min_nodes=2), HABITS) as story:
        await anyio.sleep(HOUR_S)
        story.become(lambda state: fold(state, NodeDisconnected(node_id=NodeId("b"), reason="cable")))
        await anyio.sleep(60)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["a/cuda:0"]
        story.become(lambda state: stage(state, 0, "ready"))
        await anyio.sleep(HOUR_S)
        assert story.events == [InstanceMoved]
        story.become(join, card("b"))
        await anyio.sleep(HABITS.stands_s - LOOK_S)
        assert story.events == [InstanceMoved], "it has to last"
        await anyio.sleep(4 * LOOK_S)
        assert story.events == [InstanceMoved] * 2
        assert sorted(devices_of(story.state)) == ["a/cuda:0", "b/cuda:0"]
        why = story.state.instances[I].moved_reason or ""
        assert why.startswith(
            "what was asked for can be had again (1 of 2 nodes take part); it now runs in 2 "
        )
        for rank in (0, 1):
            story.become(lambda state, rank=rank: stage(state, rank, "ready"))
        await anyio.sleep(24 * HOUR_S)
        assert story.events == [InstanceMoved] * 2


@in_virtual_time
async def test_a_node_that_comes_and_goes_is_made_up_for_less_and_less_often() -> None:
    nodes = cluster(card("a"), card("b"))
    async with led(on(nodes, "a/cuda:0", "b/cuda:0", min_nodes=2), HABITS) as story:
        for _ in range(6):
            story.become(lambda state: fold(state, NodeDisconnected(node_id=NodeId("b"), reason="cable")))
            await anyio.sleep(120)
            story.become(join, card("b"))
            for _ in range(13):
                for rank in range(len(story.state.instances[I].stages)):
                    story.become(lambda state, rank=rank: stage(state, rank, "ready"))
                await anyio.sleep(60)
        assert sum("can be had again" in one.reason for one in moves(story)) == 4


@in_virtual_time
async def test_what_a_former_release_placed_together_is_taken_apart() -> None:
    nodes = cluster(machine("a", "cuda:0", "cuda:1"), machine("b", "cuda:0"))
    state = on(on(nodes, "a/cuda:0"), "a/cuda:1", instance_id="j", exclude=("b",))
    instance = state.instances[I]
    asked = replace(instance.request, apart_from=("j",))
    state = replace(state, instances={**state.instances, I: replace(instance, request=asked)})
    async with led(state, HABITS) as story:
        await anyio.sleep(5 * 60)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["b/cuda:0"]
        why = story.state.instances[I].moved_reason or ""
        assert "(its node runs j (toy), which this is to be apart from)" in why


def moves(story: Story) -> list[InstanceMoved]:
    return [one for one in story.coordinator.proposed if isinstance(one, InstanceMoved)]


@in_virtual_time
async def test_nothing_is_moved_while_anything_is_loaded() -> None:
    both = on(busy_on_a(card("c")), "c/cuda:0", instance_id="j")
    async with led(both, HABITS) as story:
        await anyio.sleep(HOUR_S)
        loading = replace(both.instances[InstanceId("j")], stages=(StageState(phase="loading"),))
        story.become(
            lambda state: replace(state, instances={**state.instances, loading.instance_id: loading})
        )
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(HOUR_S)
        assert story.events == []
        story.become(lambda state: fold(state, InstanceDeleted(instance_id=InstanceId("j"), reason="test")))
        await anyio.sleep(10 * 60)
        assert story.events == [InstanceMoved]


@in_virtual_time
async def test_what_waits_for_a_lost_node_in_the_middle_of_its_load_forbids_no_move() -> None:
    nodes = cluster(card("a"), card("c"))
    state = reading(on(on(nodes, "a/cuda:0"), "c/cuda:0", instance_id="j"), "a", load_percent=50.0)
    other = replace(
        state.instances[InstanceId("j")],
        stages=(StageState(phase="loading"),),
        request=replace(state.instances[InstanceId("j")].request, node_ids=(NodeId("c"),)),
    )
    state = replace(state, instances={**state.instances, InstanceId("j"): other})
    async with led(fold(state, NodeDisconnected(node_id=NodeId("c"), reason="test")), HABITS) as story:
        await anyio.sleep(HOUR_S)
        assert other.status == "loading" and story.events == [InstanceWaits]
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(10 * 60)
        assert story.events == [InstanceWaits, InstanceMoved] and devices_of(story.state) == ["b/cuda:0"]


@in_virtual_time
async def test_a_device_that_fails_while_a_better_place_is_looked_for_leads_to_one_move() -> None:
    async with led(busy_on_a(), HABITS) as story:
        await anyio.sleep(HOUR_S)
        story.become(join, card("b", gb_per_s=1200))
        for _ in range(600):
            story.become(failed, "a/cuda:0")
            await anyio.sleep(1)
        assert story.events == [InstanceMoved]
        assert "has failed" in (story.state.instances[I].moved_reason or "")


@in_virtual_time
async def test_a_master_that_has_just_begun_to_lead_knows_no_instance_for_long_enough() -> None:
    async with led(busy_on_a(), HABITS) as story:
        await anyio.sleep(HOUR_S)
        story.become(join, card("b", gb_per_s=1200))
        await anyio.sleep(45)
        story.coordinator.has_master = False
        story.coordinator.set_state(story.state)
        await anyio.sleep(HOUR_S)
        assert story.events == []
        story.coordinator.has_master = True
        story.coordinator.set_state(story.state)
        await anyio.sleep(HABITS.stands_s)
        assert story.events == []
        await anyio.sleep(10 * 60)
        assert story.events == [InstanceMoved]


def test_a_healthy_instance_is_moved_only_where_the_newest_state_still_allows_it() -> None:
    state = busy_on_a(card("b", gb_per_s=1200), card("c"))
    instance = state.instances[I]
    plan = on(state, "b/cuda:0", instance_id="j").instances[InstanceId("j")].plan
    offer = Offer(present_ms=20.0, next_ms=10.0, is_calibrated=True, load_s=1.0)

    def decided(newest: State) -> InstanceMoved | None:
        return decide_migrate(
            newest, instance, instance.request, plan, offer, causes=["it is hot"], basis=b"b"
        )

    event = decided(state)
    assert event is not None and (event.generation, event.plan, event.basis) == (2, plan, b"b")
    assert event.reason.startswith(
        "it is hot; each token is predicted to take 10 ms instead of 20 ms elsewhere; "
    )
    assert decided(fold(state, event)) is None, "it has been moved"
    assert decided(failed(state, "a/cuda:0")) is None, "that is another one's business"
    assert decided(failed(state, "b/cuda:0")) is None
    assert decided(stage(state, 0, "failed", reason="killed")) is None
    assert decided(on(state, "b/cuda:0", instance_id="j")) is None, "the room is taken"
    assert decided(fold(state, InstanceDeleted(instance_id=I, reason="test"))) is None
    loading = replace(instance, instance_id=InstanceId("j"), stages=(StageState(phase="loading"),))
    others = {**state.instances, loading.instance_id: loading}
    assert decided(replace(state, instances=others)) is None, "something is being loaded"
    serving = replace(loading, stages=instance.stages)
    assert decided(replace(state, instances={**others, loading.instance_id: serving})) is not None


def test_how_much_an_instance_is_used_is_read_off_its_devices() -> None:
    state = busy_on_a()
    instance = state.instances[I]
    assert busy_share(state, instance) == 0.5
    told = instance.plan.prediction
    assert told is not None and told.ms_per_token is not None
    assert tokens_per_s(state, instance, 0.5) == pytest.approx(500 / told.ms_per_token)
    assert tokens_per_s(state, instance, 0.05) == 0.0
    live = state.live[NodeId("a")]
    pace = InstancePace(instance_id=I, generation=1, ms_per_token=100.0, measurement_count=50)
    measured = replace(state, live={NodeId("a"): replace(live, instance_paces={I: pace})})
    assert tokens_per_s(measured, instance, 0.5) == 5.0
    assert busy_share(replace(state, live={}), instance) == 0.0


def test_a_device_is_held_back_when_it_says_so_for_good_or_its_driver_does() -> None:
    state = busy_on_a()
    instance = state.instances[I]
    assert held_back(state, instance, 0.7) == {}
    assert held_back(reading(state, "a", sustained=0.7), instance, 0.7) == {}
    hot = held_back(reading(state, "a", sustained=0.69), instance, 0.7)
    assert hot == {"a/cuda:0": "cuda:0 of host-a is held back to 69% by heat"}
    live = state.live[NodeId("a")]
    (told,) = live.devices.values()
    throttled = replace(live, devices={told.device_id: replace(told, throttle_reasons=("thermal",))})
    driver = held_back(replace(state, live={NodeId("a"): throttled}), instance, 0.7)
    assert driver == {"a/cuda:0": "cuda:0 of host-a is held back by its driver"}
    since = since_s({}, driver, 5.0)
    assert since_s(since, driver, 9.0) == {"a/cuda:0": 5.0} and since_s(since, {}, 9.0) == {}


def test_circumstances_change_in_steps_and_not_with_every_reading() -> None:
    state = reading(busy_on_a(card("b")), "b", load_percent=41)
    before = circumstances(state)
    assert circumstances(reading(state, "b", load_percent=59)) == before
    assert circumstances(reading(state, "b", load_percent=61)) != before
    # What the instance's own work does to its device is no change.
    assert circumstances(reading(state, "a", load_percent=99)) == before
    assert circumstances(reading(state, "a", load_percent=50, sustained=0.6)) != before


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pace_that_cannot_be_is_no_circumstance(bandwidth: float) -> None:
    state = busy_on_a()
    pace = DevicePace(
        device_id=DeviceId("a/cuda:0"),
        engine="mlx",
        dtype="4-bit",
        step_overhead_s=0.0,
        layer_overhead_s=0.0,
        bandwidth_bytes_per_s=bandwidth,
        reads_min_bytes=1,
        reads_max_bytes=1,
        measurement_count=100,
        error_percent=1.0,
    )
    live = replace(state.live[NodeId("a")], paces={"a/cuda:0 mlx 4-bit": pace})
    assert circumstances(replace(state, live={**state.live, NodeId("a"): live})) == circumstances(state)


def test_plans_are_compared_by_what_was_measured_of_both_or_by_makers_figures_of_both() -> None:
    state = busy_on_a()
    instance = state.instances[I]
    told = Prediction(ms_per_token=5.0, is_calibrated=True)
    other = replace(on(cluster(card("b")), "b/cuda:0").instances[I].plan, prediction=told)
    kept = Kept(
        plan=other,
        moved_bytes=0,
        fastest_moved_bytes=0,
        present=Prediction(ms_per_token=10.0, is_calibrated=True),
        plain_present_ms=2.0,
        plain_ms=3.0,
    )
    offer = offer_of(kept, instance, 7.0)
    assert offer is not None and (offer.present_ms, offer.next_ms, offer.is_calibrated) == (10.0, 5.0, True)
    assert offer.load_s == 7.0
    unmeasured = replace(kept, plan=replace(other, prediction=replace(told, is_calibrated=False)))
    offer = offer_of(unmeasured, instance, None)
    assert offer is not None and (offer.present_ms, offer.next_ms, offer.is_calibrated) == (2.0, 3.0, False)
    assert offer_of(replace(kept, plan=instance.plan), instance, None) is None
    assert offer_of(replace(kept, present=None), instance, None) is None


def test_only_what_serves_in_this_generation_can_be_moved() -> None:
    state = busy_on_a()
    assert can_be_moved(state, I, 1) is not None
    assert can_be_moved(state, I, 2) is None and can_be_moved(state, InstanceId("x"), 1) is None
    assert can_be_moved(stage(state, 0, "loading"), I, 1) is None
    assert can_be_moved(failed(state, "a/cuda:0"), I, 1) is None
