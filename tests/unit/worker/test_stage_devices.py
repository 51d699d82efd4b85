"""Stages hold the GPUs that their plan names, share them as promised, and what ends a stage is told of its devices."""

import pytest
from msgspec.structs import replace

from exo.gpu.errors import GPUTakenError, NotEnoughGPUsError
from exo.gpu.failures import Failure
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import StagePlan
from exo.worker.runner.messages import ProcessEnding, RunnerFailed
from exo.worker.stage_devices import StageDevices, failure_of
from support.states import GIB, cpu, gpu

CPU, FIRST, SECOND = cpu("a", 32 * GIB), gpu("a", 8 * GIB, "cuda:0"), gpu("a", 8 * GIB, "cuda:1")


def on(*devices: GPUDevice, gib: int = 4) -> StagePlan:
    return StagePlan(
        rank=0,
        node_id=NodeId("a"),
        device_ids=tuple(one.device_id for one in devices),
        start_layer=0,
        end_layer=6,
        memory_bytes=gib * GIB,
    )


class Node:
    """A node's devices as a test sets them, and what was observed of them."""

    def __init__(self, *devices: GPUDevice) -> None:
        self.devices = list(devices)
        self.states: dict[DeviceId, DeviceGPUState] = {}
        self.observed: list[tuple[DeviceId, Failure]] = []
        self.guard = StageDevices(
            devices=lambda: self.devices,
            states=lambda: self.states,
            observe_failure=lambda device_id, failure: self.observed.append((device_id, failure)),
        )


def test_a_stage_holds_its_gpus_until_it_ends() -> None:
    node = Node(CPU, FIRST, SECOND)
    node.guard.take("i/0", on(SECOND))
    assert node.guard.manager.owners() == {"i/0": [1]}
    assert node.guard.manager.allocate() == [[0]], "who chooses for itself passes over it"
    with pytest.raises(NotEnoughGPUsError, match="i/0 uses it"):
        node.guard.manager.allocate()
    node.guard.release("i/0")
    node.guard.release("i/0")
    assert node.guard.manager.allocate() == [[1]]


def test_the_processor_is_held_by_nobody() -> None:
    node = Node(CPU)
    for owner in ("i/0", "j/0"):
        node.guard.take(owner, on(CPU, gib=32))
    assert node.guard.manager.owners() == {}


def test_stages_share_a_gpu_as_far_as_it_goes() -> None:
    node = Node(CPU, FIRST)
    node.guard.take("i/0", on(FIRST, gib=5))
    node.guard.take("j/0", on(FIRST, gib=3))
    with pytest.raises(
        GPUTakenError,
        match=r"k/0 cannot use cuda:0: it has 8\.0 GiB, of which i/0, j/0 may take 8\.0 GiB, and 1\.0 GiB are",
    ):
        node.guard.take("k/0", on(FIRST, gib=1))
    assert sorted(node.guard.manager.owners()) == ["i/0", "j/0"], "a refusal takes nothing"
    node.guard.release("j/0")
    node.guard.take("k/0", on(FIRST, gib=3))


def test_what_is_promised_of_a_stage_on_two_gpus_is_half_of_it_each() -> None:
    node = Node(FIRST, SECOND)
    node.guard.take("i/0", on(FIRST, SECOND, gib=16))
    with pytest.raises(GPUTakenError, match="i/0 may take"):
        node.guard.take("j/0", on(SECOND, gib=1))


def test_a_gpu_that_somebody_has_for_itself_a_failed_one_and_one_that_is_gone_are_refused() -> None:
    node = Node(CPU, FIRST, SECOND)
    node.guard.manager.allocate(owner="an engine")
    with pytest.raises(GPUTakenError, match="cuda:0: an engine has it for itself"):
        node.guard.take("i/0", on(FIRST, SECOND))
    assert "i/0" not in node.guard.manager.owners()
    node.states[SECOND.device_id] = DeviceGPUState(
        device_id=SECOND.device_id,
        node_id=NodeId("a"),
        health="failed",
        health_reason="Xid 79",
        last_update="2026-01-01T00:00:00Z",
    )
    with pytest.raises(GPUTakenError, match="cuda:1: it has failed: Xid 79"):
        node.guard.take("i/0", on(SECOND))
    node.devices.remove(SECOND)
    with pytest.raises(GPUTakenError, match="i/0 cannot use a/cuda:1: this node has no such device"):
        node.guard.take("i/0", on(SECOND))


def test_a_gpu_keeps_its_number_when_another_one_goes() -> None:
    node = Node(FIRST, SECOND)
    node.guard.take("i/0", on(SECOND, gib=8))
    node.devices.remove(FIRST)
    with pytest.raises(GPUTakenError, match="i/0 may take"):
        node.guard.take("j/0", on(SECOND, gib=1))
    third = replace(FIRST, device_id=DeviceId("a/cuda:2"), local_alias="cuda:2")
    node.devices.append(third)
    node.guard.take("j/0", on(third))
    assert node.guard.manager.owners() == {"i/0": [1], "j/0": [2]}


def test_the_end_of_a_stage_is_told_of_all_its_devices() -> None:
    node = Node(CPU, FIRST, SECOND)
    ending = ProcessEnding(
        exit_code=1, is_hung=False, last_words="RuntimeError: uncorrectable ECC error encountered"
    )
    node.guard.stage_failed(on(FIRST, SECOND), RunnerFailed(reason="it died", ending=ending))
    assert [(device_id, failure.kind, failure.weight) for device_id, failure in node.observed] == [
        (FIRST.device_id, "ecc", "bad"),
        (SECOND.device_id, "ecc", "bad"),
    ]


@pytest.mark.parametrize(
    ("message", "kind", "weight"),
    [
        (RunnerFailed(reason="the model's file is truncated", is_permanent=True), None, None),
        (RunnerFailed(reason="CUDA error: out of memory"), "out_of_memory", "none"),
        (
            RunnerFailed(reason="r", ending=ProcessEnding(exit_code=-9, is_hung=True, last_words="step 7")),
            "hang",
            "suspicious",
        ),
        (
            RunnerFailed(reason="r", ending=ProcessEnding(exit_code=-11, is_hung=False, last_words="")),
            "unknown",
            "suspicious",
        ),
    ],
)
def test_what_a_stages_end_is_taken_for(message: RunnerFailed, kind: str | None, weight: str | None) -> None:
    failure = failure_of(message)
    assert (failure and failure.kind, failure and failure.weight) == (kind, weight)
