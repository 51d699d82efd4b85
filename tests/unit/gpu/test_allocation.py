"""Choosing GPUs: held against all ways there are on small machines, and against what must hold on large ones."""

import itertools
import threading
from collections.abc import Iterator, Sequence

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.gpu.allocation import (
    ROOM_STEP_BYTES,
    Allocation,
    Candidate,
    Needs,
    Parallelism,
    Shortage,
    candidates_of,
    choose,
)
from exo.gpu.errors import GPUTakenError, NotEnoughGPUsError
from exo.gpu.manager import GPUManager
from exo.gpu.numbering import assigned, numbered, with_numbers
from exo.shared.types.devices import Backend, DeviceGPUState, GPUDevice, Health
from exo.shared.types.ids import DeviceId, NodeId
from support.states import cpu
from support.states import gpu as a_gpu

GIB = 1024**3


def gpu(
    index: int, free_gib: float | None = 24, *, kind: str = "nvidia cuda", health: Health = "healthy"
) -> Candidate:
    return Candidate(
        index=index,
        name=f"cuda:{index}",
        kind=kind,
        memory_free_bytes=None if free_gib is None else int(free_gib * GIB),
        health=health,
    )


def groups(found: Allocation | Shortage) -> list[list[int]]:
    assert isinstance(found, Allocation), found
    return [list(group) for group in found.groups]


def test_four_alike_make_two_stages_of_two() -> None:
    four = [gpu(index) for index in range(4)]
    assert groups(choose(four, Parallelism(tensor=2, pipeline=2))) == [[0, 1], [2, 3]]
    assert groups(choose(four, Parallelism(tensor=4))) == [[0, 1, 2, 3]]
    assert groups(choose(four, Parallelism(pipeline=3))) == [[0], [1], [2]]
    assert groups(choose(list(reversed(four)), Parallelism(tensor=2, pipeline=2))) == [[0, 1], [2, 3]]


def test_neighbours_stay_together_when_they_differ_by_a_little() -> None:
    noisy = [gpu(0, 23.49), gpu(1, 23.30), gpu(2, 23.45), gpu(3, 23.26)]
    assert groups(choose(noisy, Parallelism(tensor=2, pipeline=2))) == [[0, 1], [2, 3]]


def test_the_roomiest_are_taken_and_like_goes_with_like() -> None:
    mixed = [gpu(0, 8), gpu(1, 24), gpu(2, 16), gpu(3, 24), gpu(4, 16)]
    found = choose(mixed, Parallelism(tensor=2, pipeline=2))
    assert groups(found) == [[1, 3], [2, 4]]
    assert isinstance(found, Allocation) and found.rooms_bytes == (48 * GIB, 32 * GIB)


def test_healthy_comes_before_roomy_and_degraded_before_nothing() -> None:
    devices = [gpu(0, 80, health="degraded"), gpu(1, 8), gpu(2, 8), gpu(3, 80, health="failed")]
    assert groups(choose(devices, Parallelism(tensor=2))) == [[1, 2]]
    assert groups(choose(devices, Parallelism(tensor=3))) == [[0, 1, 2]]
    assert isinstance(choose(devices, Parallelism(tensor=4)), Shortage)


def test_a_tensor_group_is_of_one_kind_and_a_pipeline_need_not_be() -> None:
    devices = [gpu(0), gpu(1, kind="amd rocm"), gpu(2), gpu(3, kind="amd rocm")]
    both = Parallelism(tensor=2, pipeline=2)
    assert groups(choose(devices, both)) == [[0, 2], [1, 3]]
    refused = choose(devices, both, is_mixed_allowed=False)
    assert isinstance(refused, Shortage)
    assert "all of one kind, and there are 2 of amd rocm, 2 of nvidia cuda" in refused.message
    refused = choose(devices, Parallelism(tensor=3))
    assert isinstance(refused, Shortage) and "each 3 in tensor parallel of one kind" in refused.message


def test_of_equal_ways_the_one_with_fewer_kinds_is_taken() -> None:
    devices = [gpu(0), gpu(1, kind="amd rocm"), gpu(2, kind="amd rocm"), gpu(3)]
    assert groups(choose(devices, Parallelism(pipeline=2))) == [[0], [3]]


def test_unknown_room_comes_last_and_is_no_room_where_some_is_needed() -> None:
    devices = [gpu(0, None), gpu(1, 1)]
    assert groups(choose(devices, Parallelism())) == [[1]]
    assert groups(choose(devices, Parallelism(pipeline=2))) == [[0], [1]]
    refused = choose(devices, Parallelism(pipeline=2), memory_bytes=GIB // 2)
    assert isinstance(refused, Shortage) and "how much memory it has free is not known" in refused.message


def test_a_refusal_says_what_there_is_and_why_not_the_rest() -> None:
    refused = choose(
        [gpu(0), gpu(1, 2), gpu(2, health="failed")], Parallelism(tensor=2, pipeline=2), memory_bytes=20 * GIB
    )
    assert isinstance(refused, Shortage)
    assert (refused.wanted_count, refused.usable_count) == (4, 1)
    assert refused.message == (
        "2 stages of 2 GPUs in tensor parallel wanted: 4 in all, and 1 of 3 can be used "
        "(cuda:1: it has 2.0 GiB free, 20.0 GiB are needed; cuda:2: it has failed); "
        "ask for less parallelism, or free GPUs first"
    )
    none = choose([], Parallelism())
    assert isinstance(none, Shortage) and "this node has no GPU" in none.message
    many = choose([gpu(index, health="failed") for index in range(500)], Parallelism())
    assert isinstance(many, Shortage) and "and 492 more" in many.message
    with pytest.raises(ValueError, match="1 or more"):
        choose([], Parallelism(tensor=0))


def test_candidates_are_the_gpus_of_a_node_with_their_telemetry() -> None:
    node = NodeId("n")

    def device(alias: str, backend: Backend) -> GPUDevice:
        return GPUDevice(
            device_id=DeviceId(f"n/{alias}"),
            local_alias=alias,
            name="x",
            vendor="nvidia",
            backend=backend,
            memory_kind="vram",
            memory_total_bytes=8,
        )

    devices = [
        device("cpu:0", "cpu"),
        device("cuda:0", "cuda"),
        device("cuda:1", "cuda"),
        device("cuda:2", "cuda"),
    ]
    states = {
        state.device_id: state
        for state in (
            DeviceGPUState(
                device_id=DeviceId("n/cuda:0"),
                node_id=node,
                memory_used_bytes=3,
                memory_total_bytes=8,
                last_update="",
            ),
            DeviceGPUState(
                device_id=DeviceId("n/cuda:1"),
                node_id=node,
                health="failed",
                health_reason="lost",
                last_update="",
            ),
        )
    }
    first, second, third = candidates_of(devices, states, {2: "kept for others"})
    assert (first.index, first.name, first.kind, first.memory_free_bytes) == (0, "cuda:0", "nvidia cuda", 5)
    assert second.obstacle == "it has failed: lost"
    assert third.obstacle == "kept for others" and third.memory_free_bytes is None


def test_numbers_follow_the_drivers_not_the_ids() -> None:
    aliases = ["cpu:0", "cuda:10", "cuda:2", "rocm:0", "cuda:0"]
    devices = [
        GPUDevice(
            device_id=DeviceId(f"n/cuda:GPU-{number}"),
            local_alias=alias,
            name="x",
            vendor="v",
            backend="cpu" if alias == "cpu:0" else "cuda",
            memory_kind="vram",
            memory_total_bytes=1,
        )
        for number, alias in enumerate(aliases)
    ]
    assert [one.local_alias for one in numbered(devices)] == [
        "cuda:0",
        "cuda:2",
        "cuda:10",
        "rocm:0",
        "cpu:0",
    ]
    assert [one.name for one in candidates_of(devices, {})] == ["cuda:0", "cuda:2", "cuda:10", "rocm:0"]


@pytest.mark.parametrize(
    ("aliases", "numbers"),
    [
        (["cuda:0", "cuda:1", "cuda:2", "cpu:0"], [0, 1, 2, 3]),
        (["cuda:0", "cuda:2", "cpu:0"], [0, 2, 3]),
        (["cuda:2", "rocm:0", "rocm:1", "cpu:0"], [2, 3, 4, 5]),
        (["cuda:0", "rocm:1", "cpu:0"], [0, 2, 3]),
        (["npu", "npu:x", "cpu:0"], [0, 1, 2]),
        (["cuda:0", "cuda:0", "cpu:0"], [0, 1, 2]),
        (["cpu:0"], [0]),
    ],
)
def test_a_gpu_keeps_its_number_while_another_is_gone(aliases: list[str], numbers: list[int]) -> None:
    devices = [
        replace(
            a_gpu("n", 1, alias),
            device_id=DeviceId(f"n/{place}"),
            backend="cpu" if alias == "cpu:0" else "cuda",
        )
        for place, alias in enumerate(aliases)
    ]
    found = with_numbers(devices)
    assert [number for number, _ in found] == numbers
    assert [device.local_alias for _, device in found] == aliases


def test_numbers_that_a_node_gave_stand_though_devices_of_another_driver_are_gone() -> None:
    devices = [replace(a_gpu("n", 1, alias), backend="cuda") for alias in ("cuda:0", "cuda:1", "rocm:0")]
    given = assigned(devices, {})
    assert list(given.values()) == [0, 1, 2]
    told = [replace(one, number=given[one.device_id]) for one in devices]
    assert [number for number, _ in with_numbers([told[2], told[0], cpu("n", 1)])] == [0, 2, 3]
    assert [number for number, _ in with_numbers(told[2:])] == [2]


def test_a_driver_that_comes_late_takes_no_number_of_the_others() -> None:
    radeon, first, second = (a_gpu("n", 1, alias) for alias in ("rocm:0", "cuda:0", "cuda:1"))
    numbers = assigned([radeon], {})
    numbers = assigned([first, radeon], numbers)
    assert numbers == {radeon.device_id: 0, first.device_id: 1}
    # It is away when the next one comes.
    later = assigned([second, radeon], numbers)
    assert numbers.items() <= later.items() and later[second.device_id] not in numbers.values()
    assert assigned([cpu("n", 1)], {}) == {}


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["cuda", "rocm", "intel"]), st.integers(0, 5)), max_size=6),
        max_size=6,
    )
)
@settings(max_examples=200)
def test_whoever_comes_and_goes_every_gpu_keeps_a_number_of_its_own(
    looks: list[list[tuple[str, int]]],
) -> None:
    known: dict[DeviceId, int] = {}
    for look in looks:
        there = [a_gpu("n", 1, f"{driver}:{index}") for driver, index in set(look)]
        numbers = assigned(there, known)
        assert known.items() <= numbers.items()
        assert {one.device_id for one in there} <= numbers.keys()
        assert len(set(numbers.values())) == len(numbers)
        known = numbers


# --- against all ways ------------------------------------------------------------------------------------------------


def ways(devices: Sequence[Candidate], tensor: int, pipeline: int) -> Iterator[list[tuple[Candidate, ...]]]:
    """Every way to form groups of one kind."""
    if pipeline == 0:
        yield []
        return
    for group in itertools.combinations(devices, tensor):
        if len({one.kind for one in group}) == 1:
            later = [one for one in devices if one not in group and one.index > group[0].index]
            for rest in ways(later, tensor, pipeline - 1):
                yield [group, *rest]


def score(way: Sequence[Sequence[Candidate]]) -> tuple[int, int, int, int]:
    """What counts, in this order; the smaller the better."""
    rooms = [[(one.memory_free_bytes or 0) // ROOM_STEP_BYTES for one in group] for group in way]
    return (
        sum(one.health != "healthy" for group in way for one in group),
        -min(min(group) for group in rooms),
        -sum(min(group) for group in rooms),
        len({one.kind for group in way for one in group}),
    )


machines = st.lists(
    st.tuples(
        st.sampled_from([None, 2.0, 4.0, 4.1, 8.0, 16.0]),
        st.sampled_from(["nvidia cuda", "amd rocm", "apple metal"]),
        st.sampled_from(["healthy", "healthy", "degraded", "failed"]),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        gpu(index, free, kind=kind, health=health) for index, (free, kind, health) in enumerate(rows)
    ]  # type: ignore[arg-type]
)
plans = st.tuples(st.integers(1, 3), st.integers(1, 4)).map(lambda pair: Parallelism(*pair))


def check(devices: Sequence[Candidate], wanted: Parallelism, is_mixed_allowed: bool) -> None:
    usable = [one for one in devices if one.health != "failed"]
    possible = [
        way
        for way in ways(usable, wanted.tensor, wanted.pipeline)
        if is_mixed_allowed or len({one.kind for group in way for one in group}) == 1
    ]
    found = choose(devices, wanted, is_mixed_allowed=is_mixed_allowed)
    if not possible:
        assert isinstance(found, Shortage) and found.message
        return
    assert isinstance(found, Allocation)
    chosen = [[devices[index] for index in group] for group in found.groups]
    taken = [index for group in found.groups for index in group]
    assert len(set(taken)) == len(taken) == wanted.device_count
    assert all(len(group) == wanted.tensor and len({one.kind for one in group}) == 1 for group in chosen)
    assert score(chosen) == min(score(way) for way in possible)


@settings(max_examples=300, deadline=None)
@given(machines, st.integers(1, 3))
def test_tensor_allocation_is_the_best_of_all(devices: list[Candidate], tensor: int) -> None:
    check(devices, Parallelism(tensor=tensor), True)


@settings(max_examples=300, deadline=None)
@given(machines, st.integers(1, 6), st.booleans())
def test_pipeline_allocation_is_the_best_of_all(
    devices: list[Candidate], pipeline: int, is_mixed: bool
) -> None:
    check(devices, Parallelism(pipeline=pipeline), is_mixed)


@settings(max_examples=500, deadline=None)
@given(machines, plans, st.booleans())
def test_hybrid_allocation_is_the_best_of_all(
    devices: list[Candidate], wanted: Parallelism, is_mixed: bool
) -> None:
    check(devices, wanted, is_mixed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([8.0, 16.0, 24.0, 80.0]), min_size=1, max_size=300), plans)
def test_balance_no_device_left_out_is_roomier_than_one_taken(
    rooms: list[float], wanted: Parallelism
) -> None:
    devices = [gpu(index, free) for index, free in enumerate(rooms)]
    found = choose(devices, wanted)
    if len(devices) < wanted.device_count:
        assert isinstance(found, Shortage)
        return
    taken = {index for group in groups(found) for index in group}
    assert min(rooms[index] for index in taken) >= max(
        (room for index, room in enumerate(rooms) if index not in taken), default=0.0
    )
    assert isinstance(found, Allocation)
    # Within a group only what its neighbours have can be used: at most one kind of step lies in each.
    ordered = sorted((rooms[index] for index in taken), reverse=True)
    best = sum(ordered[start + wanted.tensor - 1] for start in range(0, len(ordered), wanted.tensor))
    assert sum(found.rooms_bytes) == int(best * GIB) * wanted.tensor


# --- the guard -------------------------------------------------------------------------------------------------------


def manager(*devices: Candidate) -> GPUManager:
    return GPUManager(lambda: devices)


def test_allocate_hold_and_release() -> None:
    guard = manager(*[gpu(index) for index in range(6)])
    assert guard.allocate(tensor=2, pipeline=2) == [[0, 1], [2, 3]]
    assert guard.get_allocated_gpus() == [0, 1, 2, 3]
    assert guard.allocate(tensor=2, owner="chat") == [[4, 5]]
    assert guard.get_pipeline_allocation() == [[0, 1], [2, 3], [4, 5]]
    assert guard.get_pipeline_allocation("chat") == [[4, 5]]
    assert guard.get_pipeline_allocation("nobody") == []
    with pytest.raises(NotEnoughGPUsError, match=r"0 of 6 can be used .*cuda:4: chat uses it"):
        guard.allocate()
    with pytest.raises(ValueError, match="chat holds GPUs already"):
        guard.allocate(owner="chat")
    assert guard.release([1, 99]) == [1]
    assert guard.get_pipeline_allocation() == [[0], [2, 3], [4, 5]]
    assert guard.release(owner="chat") == [4, 5]
    assert guard.release(owner="chat") == []
    assert guard.release() == [0, 2, 3]
    assert guard.get_allocated_gpus() == [] and guard.owners() == {}


def test_certain_gpus_are_taken_in_parts_by_several_who_name_them() -> None:
    devices = [replace(gpu(index, 8), memory_total_bytes=8 * GIB) for index in range(3)]
    guard = manager(*devices)
    guard.take([0, 2], owner="i/0", memory_bytes=5 * GIB)
    guard.take([2], owner="j/0", memory_bytes=3 * GIB)
    assert guard.owners() == {"i/0": [0, 2], "j/0": [2]}
    assert guard.allocate(owner="chat") == [[1]]
    for gpus, reason in (
        ([0, 1], "cuda:1: chat has it for itself"),
        ([0, 2], "i/0, j/0 may take"),
        ([7], "GPU 7"),
    ):
        with pytest.raises(GPUTakenError, match=reason):
            guard.take(gpus, owner="k/0", memory_bytes=GIB)
    with pytest.raises(ValueError, match="i/0 holds GPUs already"):
        guard.take([1], owner="i/0", memory_bytes=0)
    assert guard.release_all_but({"j/0", "chat"}) == [0, 2]
    assert guard.owners() == {"j/0": [2], "chat": [1]}


def test_memory_is_shared_out_over_the_devices() -> None:
    guard = manager(gpu(0, 8), gpu(1, 8), gpu(2, 4))
    needs = Needs(memory_bytes=15 * GIB)
    with pytest.raises(NotEnoughGPUsError, match=r"15\.0 GiB are needed"):
        guard.allocate(needs=needs)
    assert guard.allocate(tensor=2, needs=needs) == [[0, 1]]


def test_owners_that_are_gone_hold_nothing() -> None:
    guard = manager(*[gpu(index) for index in range(3)])
    for owner in ("a", "b", "c"):
        guard.allocate(owner=owner)
    assert guard.release_all_but({"b"}) == [0, 2]
    assert guard.owners() == {"b": [1]}


async def test_a_lease_ends_with_its_owner_also_when_that_crashes_or_is_cancelled() -> None:
    guard = manager(gpu(0), gpu(1))
    with pytest.raises(RuntimeError, match="crash"), guard.lease(tensor=2) as held:
        assert held == [[0, 1]] and guard.get_allocated_gpus() == [0, 1]
        raise RuntimeError("crash")
    assert guard.get_allocated_gpus() == []

    async def hold(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with guard.lease():
            task_status.started()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        await tasks.start(hold)
        assert guard.get_allocated_gpus() == [0]
        tasks.cancel_scope.cancel()
    assert guard.get_allocated_gpus() == []
    with pytest.raises(NotEnoughGPUsError), guard.lease(tensor=3):
        pass
    assert guard.owners() == {}


def test_concurrent_callers_never_get_the_same_device() -> None:
    guard = manager(*[gpu(index) for index in range(32)])
    start = threading.Barrier(16)
    got: list[list[int]] = []

    def take() -> None:
        start.wait()
        for _ in range(2):
            (group,) = guard.allocate()
            got.append(group)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for group in got for index in group) == list(range(32)) == guard.get_allocated_gpus()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(plans, st.integers(0, 5)), max_size=20))
def test_whatever_is_taken_and_released_nobody_shares(steps: list[Parallelism | int]) -> None:
    guard = manager(*[gpu(index, 8 + index % 3) for index in range(8)])
    held: dict[str, set[int]] = {}
    for number, step in enumerate(steps):
        if isinstance(step, Parallelism):
            free = 8 - sum(len(indices) for indices in held.values())
            try:
                got = guard.allocate(step.tensor, step.pipeline, owner=str(number))
            except NotEnoughGPUsError:
                assert step.device_count > free
                continue
            held[str(number)] = {index for group in got for index in group}
            assert len(held[str(number)]) == step.device_count
        elif held:
            owner = sorted(held)[step % len(held)]
            assert set(guard.release(owner=owner)) == held.pop(owner)
        taken = [index for indices in held.values() for index in indices]
        assert len(set(taken)) == len(taken)
        assert guard.get_allocated_gpus() == sorted(taken)
