"""Commands: what someone wants of the master. Each gets one reply: what was decided, or a refusal that says why."""

import msgspec

from exo.shared.types.ids import CommandId, InstanceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan


class PlaceInstance(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Place a model."""

    command_id: CommandId
    request: PlacementRequest
    reuse_existing: bool = False
    """Answer with an instance of the model that is there already (first use in a chat)."""


class CommitPlan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A solved plan, to be checked against the newest state and committed. Only the master itself sends it."""

    command_id: CommandId
    instance_id: InstanceId
    request: PlacementRequest
    plan: Plan


class DeleteInstance(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop an instance and forget it."""

    command_id: CommandId
    instance_id: InstanceId


class PreviewPlacements(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Solve without deciding: several plans side by side."""

    command_id: CommandId
    request: PlacementRequest


Command = PlaceInstance | DeleteInstance | PreviewPlacements


class NodeMemory(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a refusal for want of memory."""

    node_id: NodeId
    name: str
    free_bytes: int | None
    needed_bytes: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Why a command was not carried out. `status` is the HTTP status that says so."""

    status: int
    code: str
    """Constant, for programs: `model_not_found`, `not_enough_memory`, ..."""
    message: str
    """One sentence for people, with the next step in it."""
    near_matches: tuple[str, ...] = ()
    needed_bytes: int | None = None
    missing_bytes: int | None = None
    nodes: tuple[NodeMemory, ...] = ()


class Placed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The instance that was committed, at this index."""

    instance: Instance
    index: int
    is_new: bool = True


class Deleted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    instance_id: InstanceId
    index: int


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """One way to place the model, or why that way is not open."""

    title: str
    request: PlacementRequest
    plan: Plan | None = None
    refusal: Refusal | None = None


class Previews(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    previews: tuple[Preview, ...]


Reply = Placed | Deleted | Previews | Refusal
