"""Shapes of placing a model: what is asked for, instances with their plans and stages, previews."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from exo.api.schemas.base import Shape, Text, Wish
from exo.api.schemas.problems import RefusalView
from exo.shared.types.instances import InstanceStatus, Sharding, StagePhase

Objective = Literal["auto", "latency", "throughput"]

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
    """Only `auto` so far."""
    layer_split: list[Count] = Field(default=[], max_length=LIST_ITEMS_MAX)
    """When not empty: layers per stage, in order, instead of a split by memory."""

    @field_validator("objective")
    @classmethod
    def require_objective_that_is_read(cls, objective: Objective) -> Objective:
        """Refuse an aim that placement would not go by."""
        if objective != "auto":
            raise PydanticCustomError(
                "objective_unsupported",
                "placing for {objective} comes with the cost model; ask for auto",
                {"objective": objective},
            )
        return objective


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


class StagePlanView(Shape):
    """Layers `start_layer` to `end_layer` (exclusive) on one node's devices."""

    rank: int
    node_id: str
    device_ids: list[str]
    start_layer: int
    end_layer: int
    memory_bytes: int
    """Weights, cache, activations and reserve that the stage may take."""


class PredictionView(Shape):
    ms_per_token: float | None
    tokens_per_s: float | None


class CertificateView(Shape):
    """How far the plan can be from the best one at most."""

    lower_bound_ms: float | None
    gap_percent: float | None


class ExcludedDeviceView(Shape):
    device_id: str
    reason: str


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


class PreviewView(Shape):
    """One way to place the model, or why that way is not open: either `plan` or `refusal` is set."""

    title: str
    request: PlacementRequestView
    plan: PlanView | None
    refusal: RefusalView | None


class PreviewList(Shape):
    previews: list[PreviewView]
