"""The ladder: other GPUs, fewer GPUs, the processor. Every rung in its order, and never a device that failed."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.allocation import Candidate
from exo.gpu.errors import NotEnoughGPUsError
from exo.gpu.manager import GPUManager
from exo.gpu.recovery import Needs, RecoveryStep, recover
from exo.shared.types.devices import Health

GIB = 1024**3
CAUSE = "cuda:1 fell off the bus"


def gpu(
    index: int, free_gib: float = 24, *, kind: str = "nvidia cuda", health: Health = "healthy"
) -> Candidate:
    return Candidate(
        index=index, name=f"cuda:{index}", kind=kind, memory_free_bytes=int(free_gib * GIB), health=health
    )


def test_only_what_is_gone_is_replaced() -> None:
    six = [gpu(index) for index in range(6)]
    step = recover([[0, 1], [2, 3]], six, failed={1}, cause=CAUSE)
    assert step.rung == "moved" and step.groups == ((0, 4), (2, 3))
    assert step.describe() == (
        f"{CAUSE}: it goes on with 2 stages of 2 GPUs in tensor parallel on other GPUs (0+4, 2+3)"
    )


def test_substitutes_are_of_the_groups_kind_healthy_and_roomy() -> None:
    devices = [
        gpu(0),
        gpu(1),
        gpu(2, 80, kind="amd rocm"),
        gpu(3, 80, health="degraded"),
        gpu(4, 16),
        gpu(5, 20),
    ]
    assert recover([[0, 1]], devices, failed={1}, cause=CAUSE).groups == ((0, 5),)


def test_a_whole_group_may_move_to_another_kind() -> None:
    devices = [gpu(0), gpu(1), gpu(2, kind="amd rocm"), gpu(3, kind="amd rocm")]
    step = recover([[0, 1]], devices, failed={0}, cause=CAUSE)
    assert step.rung == "moved" and step.groups == ((2, 3),)
    # A pipeline of an engine that cannot mix goes over as a whole, or not at all.
    needs = Needs(is_mixed_allowed=False)
    devices = [gpu(0), gpu(1), gpu(2, kind="amd rocm"), gpu(3, kind="amd rocm"), gpu(4, 8)]
    assert recover([[0], [1]], devices, failed={0}, cause=CAUSE, needs=needs).groups == ((1,), (4,))
    assert recover([[0], [1]], devices[:4], failed={0}, cause=CAUSE, needs=needs).groups == ((2,), (3,))
    assert recover([[0], [1]], devices[:4], failed={0}, cause=CAUSE).groups == ((1,), (2,))


def test_less_parallelism_then_the_processor_then_nothing() -> None:
    four = [gpu(index) for index in range(4)]
    step = recover([[0, 1], [2, 3]], four, failed={1}, cause=CAUSE)
    assert step.rung == "reduced" and step.groups == ((0, 2),)
    assert step.skipped == ("no other healthy GPUs for 2 stages of 2 GPUs in tensor parallel",)
    step = recover([[0, 1]], four[:2], failed={1}, cause=CAUSE)
    assert step.rung == "reduced" and step.groups == ((0,),)
    step = recover([[0, 1]], four[:2], failed={0, 1}, cause=CAUSE)
    assert step.rung == "cpu" and step.groups == ()
    assert "much slower; not possible before that: no other healthy GPUs" in step.describe()
    step = recover([[0]], four[:1], failed={0}, cause=CAUSE, needs=Needs(is_cpu_allowed=False))
    assert step.rung == "gave_up"
    assert step.describe() == (
        f"{CAUSE}: it cannot go on here; not possible before that: no other healthy GPUs for 1 GPU in a pipeline; "
        "its engine does not run on the processor"
    )


def test_memory_decides_how_far_down() -> None:
    four = [gpu(index, 10) for index in range(4)]
    needs = Needs(memory_bytes=30 * GIB)
    held = [[0, 1, 2, 3]]
    # Three would hold it, but not in tensor parallel: what was split by four is split by two or one.
    step = recover(held, four, failed={3}, cause=CAUSE, needs=needs, host_free_bytes=64 * GIB)
    assert step.rung == "cpu"
    step = recover(held, four, failed={3}, cause=CAUSE, needs=Needs(memory_bytes=18 * GIB))
    assert step.rung == "reduced" and step.groups == ((0, 1),)
    step = recover(held, four, failed={3}, cause=CAUSE, needs=needs, host_free_bytes=29 * GIB)
    assert step.rung == "gave_up" and "the processor has 29.0 GiB free, 30.0 GiB are needed" in step.skipped


def test_a_step_travels_as_a_value() -> None:
    step = recover([[0, 1]], [gpu(0), gpu(1)], failed={1}, cause=CAUSE)
    assert msgspec.json.decode(msgspec.json.encode(step), type=RecoveryStep) == step


def test_without_gpus_there_is_nothing_to_recover() -> None:
    with pytest.raises(ValueError, match="nothing to recover"):
        recover([], [], failed=set(), cause=CAUSE)


def test_the_guard_lets_the_owner_hold_what_it_moved_to() -> None:
    free = dict.fromkeys(range(4), 24.0)
    guard = GPUManager(lambda: [gpu(index, gib) for index, gib in sorted(free.items())])
    needs = Needs(memory_bytes=40 * GIB)
    guard.allocate(tensor=2, owner="chat", needs=needs)
    guard.allocate(owner="other")
    # The model fills its devices; what it holds there is its own again once it starts anew.
    free.update({0: 2.0, 1: 2.0})
    step = guard.recover("chat", {1}, CAUSE)
    assert step.rung == "moved" and guard.get_pipeline_allocation("chat") == [[0, 3]]
    step = guard.recover("chat", {3}, CAUSE, host_free_bytes=64 * GIB)
    assert step.rung == "cpu"
    assert guard.owners() == {"other": [2]}
    with pytest.raises(ValueError, match="chat holds no GPUs"):
        guard.recover("chat", {0}, CAUSE)
    assert guard.allocate(owner="chat") == [[3]]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_step_down_is_one_that_can_be_taken(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    devices = [
        gpu(
            index,
            data.draw(st.sampled_from([4.0, 8.0, 24.0])),
            kind=data.draw(st.sampled_from(["nvidia cuda", "amd rocm"])),
            health=data.draw(st.sampled_from(["healthy", "healthy", "degraded", "failed"])),
        )
        for index in range(count)
    ]
    guard = GPUManager(lambda: devices)
    needs = Needs(memory_bytes=data.draw(st.integers(0, 40)) * GIB, is_mixed_allowed=data.draw(st.booleans()))
    try:
        held = guard.allocate(
            data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), owner="model", needs=needs
        )
    except NotEnoughGPUsError:
        return
    failed: set[int] = set()
    size = sum(len(group) for group in held)
    while True:
        failed.add(data.draw(st.sampled_from(sorted(index for group in held for index in group))))
        step = guard.recover("model", failed, CAUSE, host_free_bytes=16 * GIB)
        taken = [index for group in step.groups for index in group]
        assert len(set(taken)) == len(taken) == (step.parallelism.device_count if step.groups else 0)
        assert not failed & set(taken)
        assert all(devices[index].health != "failed" for index in taken)
        assert all(len({devices[index].kind for index in group}) == 1 for group in step.groups)
        assert guard.get_allocated_gpus() == sorted(taken)
        assert step.describe().startswith(CAUSE)
        if step.rung == "moved":
            assert len(taken) == size
        elif step.rung == "reduced":
            assert len(taken) < size and step.skipped
        else:
            assert (step.rung == "cpu") == (needs.memory_bytes <= 16 * GIB)
            break
        held, size = [list(group) for group in step.groups], len(taken)
