"""Shapes of placing a model: what is asked for, instances with their plans and stages, previews."""

from typing import Annotated

from pydantic import ConfigDict, Field

from exo.api.schemas.base import Shape, Text, Wish
from exo.api.schemas.problems import RefusalView
from exo.shared.types.instances import InstanceStatus, Objective, Sharding, StagePhase

# Limits far above what is sensible: whatever passes them can be sent to the master and kept in the log.
COUNT_MAX = 1_000_000
CONTEXT_LENGTH_MAX = 2**31 - 1
LIST_ITEMS_MAX = 1_000
NAME_CHARACTERS_MAX = 512

Name = Annotated[Text, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
Names = Annotated[list[Name], Field(max_length=LIST_ITEMS_MAX)]
Count = Annotated[int, Field(ge=1, le=COUNT_MAX)]


class InstanceWish(Wish):
    """Place a model on the cluster."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model_id": "exo-tiny"}, {"model_id": "exo-tiny", "min_nodes": 3}]}
    )

    model_id: Name
    """One of `GET /models`."""
    sharding: Sharding = "auto"
    engine: Name = "auto"
    """`auto`, or the name of an engine, such as `mlx`."""
    min_nodes: Count = 1
    """Spread the model over at least so many nodes."""
    prefer_gpu: bool = True
    """Where a node has a GPU, its memory counts rather than the host's."""
    node_ids: Names = []
    """When not empty: only these nodes may take part."""
    device_ids: Names = []
    """When not empty: only these devices may take part."""
    exclude: Names = []
    """Nodes or devices that must not take part."""
    context_length: int | None = Field(default=None, ge=1, le=CONTEXT_LENGTH_MAX)
    """Tokens per request to keep room for, prompt and answer together; null: the model's own limit, at most 4,096."""
    concurrency: Count = 1
    """Requests at the same time to keep room for."""
    objective: Objective = "auto"
    """`latency`: the least time per token with all requests in one batch; `throughput` and `auto`: the most tokens/s at
    the asked concurrency, which for one request at a time is the same."""
    layer_split: list[Count] = Field(default=[], max_length=LIST_ITEMS_MAX)
    """When not empty: layers per stage, in order, instead of the fastest split."""
    must_use: Names = []
    """Nodes or devices that must take part."""
    apart_from: Names = []
    """Instances or models: keep off the nodes that run them."""
    zones: Names = []
    """When not empty: only nodes of these zones may take part."""
    min_zones: Count = 1
    """Spread the model over at least so many zones."""


class PreviewWish(InstanceWish):
    """The same as the parameters of an address, where everything is text."""

    model_config = ConfigDict(strict=False)


class PlacementRequestView(Shape):
    """What was asked for when the instance was placed."""

    model_id: str
    sharding: Sharding
    engine: str
    min_nodes: int
    prefer_gpu: bool
    node_ids: list[str]
    device_ids: list[str]
    exclude: list[str]
    context_length: int | None
    concurrency: int
    objective: Objective
    layer_split: list[int]
    must_use: list[str]
    apart_from: list[str]
    zones: list[str]
    min_zones: int


class StageSharesView(Shape):
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


class StagePlanView(Shape):
    """Layers `start_layer` to `end_layer` (exclusive) on one node's devices."""

    rank: int
    node_id: str
    device_ids: list[str]
    start_layer: int
    end_layer: int
    memory_bytes: int
    """Weights, cache, activations and reserve that the stage may take."""
    time_ms: float | None
    """What the stage is predicted to take of each token, hops left aside."""
    shares: StageSharesView | None
    is_offloaded: bool
    """Whether it runs on a processor beside a GPU of its node, because VRAM did not hold the model."""
    score: float | None
    """Of its device, 0 to 1: compute 40 %, memory 30 %, network 15 %, thermal 10 %, bandwidth 5 %."""


class PredictionView(Shape):
    """What a plan is expected to do; null where it could not be weighed."""

    ms_per_token: float | None
    """Time until each of the asked number of sequences has its next token."""
    tokens_per_s: float | None
    """Of all sequences together."""
    is_calibrated: bool
    """Whether measured tokens/s confirmed the figures; until then they rest on what makers say and on assumptions."""


class CertificateView(Shape):
    """How far the plan can be from the best one at most."""

    lower_bound_ms: float | None
    """No plan takes less per token, as far as the prediction's figures are true."""
    gap_percent: float | None
    """How much of the plan's time a better one could save at most; 0: proven best."""


class ExcludedDeviceView(Shape):
    device_id: str
    reason: str
    forcing_ms: float | None
    """What each token would take longer with it; null where that was not asked, or it cannot take part."""
    score: float | None
    """0 to 1, as in `stages`; null where it cannot take part."""


class BindingView(Shape):
    """The memory that holds the plan back: with more of it each token would take less."""

    device_ids: list[str]
    """Those that take from this memory."""
    more_bytes: int
    saved_ms: float


class PlanView(Shape):
    """Which device runs which layers, and how the answer was found."""

    stages: list[StagePlanView]
    sharding: Sharding
    engine: str
    context_length: int
    concurrency: int
    method: str
    """The solver that found it, such as `greedy`."""
    solve_ms: float | None
    prediction: PredictionView | None
    certificate: CertificateView | None
    excluded: list[ExcludedDeviceView]
    explanation: str
    state_index: int
    """Index of the state it was solved on."""
    baseline: PredictionView | None
    """What a split by memory alone, over as few nodes as hold the model, would do."""
    is_truncated: bool
    """Whether the deadline ended the search before it was done."""
    binding: BindingView | None
    heterogeneity: list[str]
    """How the devices that could take part differ (memory, load); empty: they are alike."""


class StageView(Shape):
    """How one stage is, as last reported by its worker."""

    rank: int
    node_id: str
    phase: StagePhase
    address: str | None
    """HOST:PORT on the data plane, once the stage is loaded."""
    reason: str | None
    is_permanent: bool
    """A failure that starting again cannot mend."""
    loaded_layers: int
    total_layers: int
    detail: str
    """What the stage is doing, in words; often empty."""


class InstanceView(Shape):
    """A model on its devices."""

    instance_id: str
    model_id: str
    status: InstanceStatus
    reason: str | None
    """Why it failed, or null."""
    moved_reason: str | None
    """Why it is no longer where it was placed: a device failed or was gone. Null: it is where it was placed."""
    measured_tokens_per_s: float | None
    """What one request gets while it is the only one, as the first stage saw it lately; null: not measured yet."""
    generation: int
    """Counts the starts of all stages together."""
    failures_in_a_row: int
    loaded_layers: int
    """Of `layer_count`, over all stages."""
    layer_count: int
    request: PlacementRequestView
    plan: PlanView
    stages: list[StageView]
    created_by: str
    """Id of the command that placed it."""


class InstancePlaced(InstanceView):
    """The instance that was placed."""

    index: int
    """Of the decision: from there on every node knows the instance."""


class InstanceDeleted(Shape):
    index: int
    instance_id: str


class InstanceList(Shape):
    instances: list[InstanceView]
    """Sorted by `instance_id`."""


class RemedyView(Shape):
    """One thing to give up with which what was refused can be placed."""

    words: str
    """What to do, such as `Ask for 2 nodes, not 3`."""
    request: PlacementRequestView
    """What to ask for then."""
    without: list[str]
    """Nodes and devices that are taken to be gone then: of a what-if, what it may leave out all the same."""
    instead: list[str]
    """Instances that would have to be gone then."""


class PreviewView(Shape):
    """One way to place the model, or why that way is not open: either `plan` or `refusal` is set."""

    title: str
    request: PlacementRequestView
    plan: PlanView | None
    refusal: RefusalView | None
    remedy: RemedyView | None
    """Of a refusal, for what was asked for itself; null where no single thing helps."""


class PreviewList(Shape):
    previews: list[PreviewView]
