"""Commands: what someone wants of the master. Each gets one reply: what was decided, or a refusal that says why."""

from typing import Literal

import msgspec

from exo.shared.types.access import KeyId, KeyLimits, Scope, TokenId
from exo.shared.types.ids import CommandId, InstanceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan
from exo.shared.types.what_if import AddedNode, Change


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
    basis: bytes = b""
    """What the plan was solved on; see `Instance.basis`."""


class DeleteInstance(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop an instance and forget it."""

    command_id: CommandId
    instance_id: InstanceId


class PreviewPlacements(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Solve without deciding: several plans side by side."""

    command_id: CommandId
    request: PlacementRequest


class PlanPlacement(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Solve without deciding: one plan, on the cluster as it is or as it would be."""

    command_id: CommandId
    request: PlacementRequest
    change: Change = Change()


class ExplainInstance(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Say why an instance is where it is, or was, from what the log kept of the decision."""

    command_id: CommandId
    instance_id: InstanceId
    decision_index: int | None = None
    """Which of its decisions; None: the last."""


class CreateToken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let nodes join with a token. Its secret stays where it was made: only the verifier travels."""

    command_id: CommandId
    token_id: TokenId
    verifier: str
    """Hexadecimal; see `exo.cluster.trust.token.token_verifier`."""
    lifetime_s: float
    uses: int
    created_by: str


class DeleteToken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    command_id: CommandId
    token_id: TokenId


class CreateKey(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let programs use the API with a key. Its secret stays where it was made: only the hash travels."""

    command_id: CommandId
    key_id: KeyId
    hash: str
    """SHA-256 of the secret, hexadecimal."""
    name: str
    scopes: tuple[Scope, ...]
    lifetime_s: float | None
    """None: until it is deleted."""
    created_by: str
    limits: KeyLimits = KeyLimits()


class DeleteKey(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    command_id: CommandId
    key_id: KeyId


EnrolmentProof = Literal["none", "token", "host_secret", "certificate"]
"""What the node offers: nothing, a join token, its user's secret of a host they share, or its present certificate."""


class EnrolNode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A node asks for a certificate. Sent by the member that it reached, which has checked the proof."""

    command_id: CommandId
    node_id: NodeId
    name: str
    request_der: bytes
    """The request for a certificate (CSR)."""
    fingerprint: str
    """SHA-256 of the public key in the request (its SubjectPublicKeyInfo in DER), hexadecimal."""
    address: str
    """Where it asks from."""
    proof: EnrolmentProof = "none"
    is_proven: bool = False
    """The proof that it offers is right."""
    token_id: TokenId | None = None


class ApproveNode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let a node join that wishes to."""

    command_id: CommandId
    node_id: NodeId
    fingerprint: str | None = None
    """The key that was looked at; None: whichever asks under this id."""
    approved_by: str


class DeclineNode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    command_id: CommandId
    node_id: NodeId
    reason: str


class RemoveNode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End a node's membership and revoke its certificates."""

    command_id: CommandId
    node_id: NodeId
    reason: str


class ForgetNode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give up voters that are lost for good, and with them what only they had.

    Carried out by the node that is asked: there is no master to send it to.
    """

    command_id: CommandId
    node_ids: tuple[NodeId, ...]


AccessCommand = (
    CreateToken
    | DeleteToken
    | CreateKey
    | DeleteKey
    | EnrolNode
    | ApproveNode
    | DeclineNode
    | RemoveNode
    | ForgetNode
)

Question = PreviewPlacements | PlanPlacement | ExplainInstance
"""What is answered without anything being decided."""

Command = PlaceInstance | DeleteInstance | Question | AccessCommand


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


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to give up with which what was refused can be placed."""

    words: str
    """What to do, such as `Ask for 2 nodes, not 3`."""
    request: PlacementRequest
    without: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    """As in `Change`: how the cluster would be another one, so that the request can be placed there."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """One way to place the model, or why that way is not open."""

    title: str
    request: PlacementRequest
    plan: Plan | None = None
    refusal: Refusal | None = None
    remedy: Remedy | None = None
    """Of a refusal; None also where no single thing helps, or nobody looked for it."""


class Previews(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    previews: tuple[Preview, ...]


class Planned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a placement would be; nothing is decided."""

    answer: Preview
    before: Preview | None = None
    """The same on the cluster as it is; None where it was asked for nothing else."""
    added: tuple[AddedNode, ...] = ()
    """The machines that are not there, as they were reckoned with."""
    verdict: str | None = None
    """What the change would bring, in one sentence."""


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """A decision about where an instance is, as it was recorded."""

    kind: Literal["placed", "moved"]
    index: int | None = None
    """Its place in the log; None where the log no longer reaches back to it."""
    at: str | None = None
    """ISO 8601, UTC."""
    reason: str | None = None
    """Of a move."""
    plan: Plan
    basis: bytes = b""


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """A decision made again on what it was made on."""

    decision: Decided
    request: PlacementRequest
    """What was solved: of a move, something else than the person asked for."""
    omitted: str | None = None
    """Why it cannot be made again, in words; None where it can."""
    again: Preview | None = None
    """The answer of this release to the same question."""
    differences: tuple[str, ...] = ()
    """How that answer differs from what was recorded: the release may be another one. Empty: in nothing."""
    alternatives: tuple[Preview, ...] = ()
    """Other ways on the same state."""


class Why(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Why an instance is where it is."""

    instance_id: InstanceId
    request: PlacementRequest
    """What the person asked for."""
    decisions: tuple[Decided, ...]
    """All that are known, oldest first, without what they were made on."""
    explained: Explained
    changes: tuple[str, ...] = ()
    """What is different in the cluster since then, in words."""
    today: Preview | None = None
    """Where it would be placed now, if its own memory were free; None: it is gone, or this is an earlier decision."""
    deleted_at: str | None = None
    notes: tuple[str, ...] = ()
    """What the log no longer tells."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is decided, at this index; what came of it is in the state."""

    index: int


class Enrolled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The node is let in with this certificate."""

    certificate_pem: str
    authority_pem: str
    index: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The node's wish is noted; it asks again until somebody has approved or declined it."""

    message: str
    index: int


Reply = Placed | Deleted | Previews | Planned | Why | Done | Enrolled | Waiting | Refusal
