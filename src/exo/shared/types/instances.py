"""Instances: a model placed on devices as a pipeline of stages."""

from collections.abc import Collection
from typing import Literal

import msgspec

from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import HostPort

Sharding = Literal["auto", "pipeline", "tensor", "hybrid"]
Objective = Literal["auto", "latency", "throughput"]
StagePhase = Literal["pending", "starting", "loading", "loaded", "ready", "failed"]
InstanceStatus = Literal["pending", "loading", "ready", "failed"]


class PlacementRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: the values of `POST /instance`."""

    model_id: ModelId
    sharding: Sharding = "auto"
    engine: str = "auto"
    min_nodes: int = 1
    prefer_gpu: bool = True
    node_ids: tuple[NodeId, ...] = ()
    """When not empty: only these nodes may take part."""
    device_ids: tuple[DeviceId, ...] = ()
    """When not empty: only these devices may take part."""
    exclude: tuple[str, ...] = ()
    """Node or device ids that must not take part."""
    context_length: int | None = None
    """Tokens per sequence to keep room for; None: the model's own limit, at most 4,096."""
    concurrency: int = 1
    objective: Objective = "auto"
    layer_split: tuple[int, ...] = ()
    """When not empty: layers per stage, in order, instead of the fastest split."""
    must_use: tuple[str, ...] = ()
    """Node or device ids that must take part."""
    apart_from: tuple[str, ...] = ()
    """Instance or model ids: no node that runs one of these instances, or an instance of one of these models."""
    zones: tuple[str, ...] = ()
    """When not empty: only nodes of these zones may take part."""
    min_zones: int = 1
    """Spread over at least so many zones."""


class StageShares(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stage's predicted milliseconds come from. They add up to its `time_ms` plus its hop."""

    memory_ms: float
    """Reading weights and KV cache, or computing where that takes longer, on an idle, cool device."""
    utilization_ms: float
    """What it takes longer since others use the device."""
    thermal_ms: float
    """What it takes longer since the device is hot."""
    overhead_ms: float
    """Launches, framing, waking up: once a step."""
    network_ms: float
    """The hop to the next stage; of the last one back to the first."""


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a plan: layers `start_layer` to `end_layer` (exclusive) on one node's devices."""

    rank: int
    node_id: NodeId
    device_ids: tuple[DeviceId, ...]
    start_layer: int
    end_layer: int
    memory_bytes: int
    """Weights, KV cache, activations and reserve that this stage may take."""
    time_ms: float | None = None
    """What this stage is predicted to take of each token, hops left aside."""
    shares: StageShares | None = None
    is_offloaded: bool = False
    """Whether it runs on a processor beside a GPU of its node, because VRAM did not hold the model."""
    score: float | None = None
    """Of its device, 0 to 1: compute 40 %, memory 30 %, network 15 %, thermal 10 %, bandwidth 5 %.
    It is for people to compare devices by; the predicted time decides."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is expected to do; None where it could not be weighed."""

    ms_per_token: float | None = None
    """Time until each of the asked number of sequences has its next token."""
    tokens_per_s: float | None = None
    """Of all sequences together."""
    is_calibrated: bool = False
    """Whether measured tokens/s confirmed the figures; until then they rest on what makers say and on assumptions."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """How far the plan can be from the best one at most."""

    lower_bound_ms: float | None = None
    """No plan takes less per token, as far as the prediction's figures are true."""
    gap_percent: float | None = None
    """How much of the plan's time a better one could save at most; 0: proven best."""


class ExcludedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that takes no part in a plan, and why."""

    device_id: DeviceId
    reason: str
    forcing_ms: float | None = None
    """What each token would take longer with it; None where that was not asked, or it cannot take part."""
    score: float | None = None
    """As in `StagePlan`; None where it cannot take part."""


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that holds the plan back: with more of it each token would take less."""

    device_ids: tuple[DeviceId, ...]
    """Those that take from this memory."""
    more_bytes: int
    saved_ms: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which device runs which layers, and how the answer was found."""

    stages: tuple[StagePlan, ...]
    sharding: Sharding
    engine: str
    context_length: int
    concurrency: int
    method: str
    """The solver that found it, such as `greedy`."""
    solve_ms: float | None = None
    prediction: Prediction | None = None
    certificate: Certificate | None = None
    excluded: tuple[ExcludedDevice, ...] = ()
    explanation: str = ""
    state_index: int = 0
    """Index of the state it was solved on."""
    baseline: Prediction | None = None
    """What the memory-weighted ring over as few nodes as hold the model would do; None where it holds none."""
    is_truncated: bool = False
    """Whether the deadline ended the search before it was done."""
    binding: Binding | None = None
    heterogeneity: tuple[str, ...] = ()
    """How the devices that could take part differ (memory, load); empty: they are alike."""

    def is_within(self, device_ids: Collection[DeviceId]) -> bool:
        """Say whether it needs no other devices than these."""
        return all(one in device_ids for stage in self.stages for one in stage.device_ids)


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """How one stage of an instance is, as last reported by its worker."""

    phase: StagePhase = "pending"
    address: HostPort | None = None
    """Where the stage listens on the data plane, once it is loaded."""
    reason: str | None = None
    is_permanent: bool = False
    """A failure that starting again cannot mend, such as a truncated file."""


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A model on its devices. A new generation replaces all stages after any of them failed."""

    instance_id: InstanceId
    model: ModelCard
    plan: Plan
    request: PlacementRequest
    generation: int = 1
    failures_in_a_row: int = 0
    """Generations that failed since the instance was last ready."""
    stages: tuple[StageState, ...]
    created_by: CommandId
    moved_reason: str | None = None
    """Why it is no longer where it was placed: a device or node was lost, others are faster; of several the last."""
    stranded_reason: str | None = None
    """Why it cannot go on, where a device of it failed or is gone and nothing can take its place."""
    waiting_reason: str | None = None
    """Why it waits for a node that is away, where nothing else can take its place; until that node is back."""
    basis: bytes = b""
    """What its plan was decided on, packed (see `exo.master.placement.basis`). Only `why` reads it."""

    @property
    def status(self) -> InstanceStatus:
        """The instance as a whole: as far as its least advanced stage, failed if any stage failed."""
        phases = {stage.phase for stage in self.stages}
        if "failed" in phases:
            return "failed"
        if phases == {"ready"}:
            return "ready"
        return "pending" if phases == {"pending"} else "loading"

    @property
    def reason(self) -> str | None:
        """Why it failed: the first failed stage's reason."""
        return next((stage.reason for stage in self.stages if stage.phase == "failed"), None)


class StageProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stage's loading is (telemetry)."""

    loaded_layers: int
    total_layers: int
    detail: str = ""
