"""Shapes of what is asked of placement without anything being decided: a plan, what-if, why."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from exo.api.schemas.base import Shape, Text, Wish
from exo.api.schemas.instances import (
    InstanceWish,
    Name,
    PlacementRequestView,
    PlanView,
    PreviewView,
)
from exo.shared.types.devices import MemoryKind
from exo.shared.types.what_if import WISHED_DEVICES_MAX

MACHINES_MAX = 32
_BYTES_MAX = 2**50

Rate = Annotated[float, Field(gt=0, le=1e19, allow_inf_nan=False)]
DeviceName = Annotated[Text, Field(min_length=1, max_length=200)]


class WishedDeviceWish(Wish):
    """A device that is not there. What is null comes from the catalogue of devices, by its name."""

    name: DeviceName
    """As it is sold, such as `RTX 3090` or `Apple M2 Max`."""
    kind: Literal["gpu", "processor"] = "gpu"
    vendor: DeviceName | None = None
    memory_kind: MemoryKind | None = None
    memory_total_bytes: int | None = Field(default=None, gt=0, le=_BYTES_MAX)
    """Of a processor, the memory of its machine. Needed where the name is sold with several sizes."""
    memory_bandwidth_bytes_per_s: Rate | None = None
    flops_per_s: Rate | None = None
    compute_units: int | None = Field(default=None, gt=0, le=1_000_000)


class WishedMachineWish(Wish):
    """A machine that is not there. It is reckoned with as if it had the model and an engine for its devices."""

    name: DeviceName
    devices: Annotated[list[WishedDeviceWish], Field(min_length=1, max_length=WISHED_DEVICES_MAX)]
    zone: Annotated[Text, Field(max_length=200)] = ""
    link_mbps: Rate | None = None
    """10^6 bits per second to and from every other machine; null: assumed as between hosts that were not measured."""
    link_latency_ms: Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)] | None = None


class KnownDeviceView(Shape):
    """A device of the catalogue: its name is all that `machines` needs, and a size where it is sold with several."""

    name: str
    vendor: str
    kind: Literal["gpu", "processor"]
    memory_kind: MemoryKind
    memory_gib: list[float]
    """Every size that it is sold with; empty: it has its machine's memory, so say how much that is."""
    memory_bandwidth_bytes_per_s: float | None
    """Null where its maker does not tell: then it is estimated."""


class KnownDeviceList(Shape):
    devices: list[KnownDeviceView]
    """GPUs first, by name."""


class PlanWish(InstanceWish):
    """What a placement would be, on the cluster as it is or as it would be. Decides nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model_id": "exo-tiny"},
                {
                    "model_id": "exo-tiny",
                    "machines": [{"name": "PC with a used 3090", "devices": [{"name": "RTX 3090"}]}],
                },
            ]
        }
    )

    without: Annotated[list[Name], Field(max_length=1_000)] = []
    """Nodes and devices that would not be there."""
    machines: Annotated[list[WishedMachineWish], Field(max_length=MACHINES_MAX)] = []
    """Machines that would be there, too."""
    instead: Annotated[list[Name], Field(max_length=1_000)] = []
    """Instances that would be gone: what they take would be free."""


class AddedDeviceView(Shape):
    """A device of a machine that is not there, as it was reckoned with."""

    device_id: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    """Less than all: what a system takes is assumed."""
    memory_bandwidth_bytes_per_s: float
    source: str
    """Where the bandwidth is from."""
    is_estimated: bool


class AddedNodeView(Shape):
    """A machine that is not there, as it was reckoned with."""

    node_id: str
    name: str
    devices: list[AddedDeviceView]


class PlannedView(Shape):
    """What a placement would be; nothing was decided."""

    answer: PreviewView
    before: PreviewView | None
    """The same on the cluster as it is; null where nothing else was asked for."""
    added: list[AddedNodeView]
    """Whatever runs on these in `answer` is hypothetical: the machines are not there."""
    verdict: str | None
    """What the change would bring, in one sentence; null without a change."""


class DecisionView(Shape):
    """A decision about where an instance is, as it was recorded."""

    kind: Literal["placed", "moved"]
    index: int | None
    """Its place in the log; null where the log no longer reaches back to it."""
    at: str | None
    """ISO 8601, UTC."""
    reason: str | None
    """Of a move."""
    plan: PlanView


class ExplainedView(Shape):
    """A decision made again on the state that it was made on."""

    decision: DecisionView
    request: PlacementRequestView
    """What was solved: of a move, something else than the person asked for."""
    omitted: str | None
    """Why it cannot be made again; null where it can."""
    again: PreviewView | None
    """The answer of this release to the same question."""
    is_identical: bool | None
    """Whether that is what was recorded, to the last figure; null where it cannot be made again."""
    differences: list[str]
    alternatives: list[PreviewView]
    """Other ways on the same state, each with its prediction or its refusal."""


class WhyView(Shape):
    """Why an instance is where it is."""

    instance_id: str
    model_id: str
    request: PlacementRequestView
    """What the person asked for."""
    decisions: list[DecisionView]
    """All that are known, oldest first."""
    explained: ExplainedView
    changes: list[str]
    """What is different in the cluster since then."""
    today: PreviewView | None
    """Where it would be placed now, if its own memory were free; null: it is gone, or this is an earlier decision."""
    deleted_at: str | None
    notes: list[str]
    """What the log no longer tells."""
