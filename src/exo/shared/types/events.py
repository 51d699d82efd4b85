"""Events: everything that can happen to the cluster. Decisions are indexed and durable; telemetry rides beside.

Each is one frozen struct with a `type` tag. A released event is never changed: a new field needs a default,
a new meaning needs a new event, because old logs replay for ever.
"""

import msgspec

from exo.shared.types.access import KeyId, KeyUsage, Scope, TokenId
from exo.shared.types.devices import DeviceGPUState, GPUDevice, NodePerformanceProfile
from exo.shared.types.ids import ClusterId, DeviceId, EventId, InstanceId, NodeId
from exo.shared.types.instances import Instance, Plan, StagePhase, StageProgress
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import HostPort, LinkType, NodeIdentity
from exo.shared.types.pace import DevicePace, InstancePace
from exo.shared.types.voters import Voters


class _Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag=True):
    pass


# --- decisions -------------------------------------------------------------------------------------------------


class ClusterFormed(_Event, frozen=True, kw_only=True):
    """The first event of every log."""

    cluster_id: ClusterId
    namespace: str
    voters: Voters = Voters()
    """Of the first term. Empty in logs of the release that kept a single log: whoever has that log is the voter."""


class ClusterDissolved(_Event, frozen=True, kw_only=True):
    """The last event of a cluster that had nothing to lose: its members join another one."""

    into_cluster_id: ClusterId
    address: HostPort


class VotersChanged(_Event, frozen=True, kw_only=True):
    """Who has to agree from here on: one voter more or fewer, or one replica. Counts as soon as it is in a log."""

    voters: Voters
    reason: str


class HistoryForced(_Event, frozen=True, kw_only=True):
    """An operator gave up the voters that are gone: this node's log is the history from here on.

    What only the others had is lost. They rejoin as newcomers: their incarnation is a lower one.
    """

    incarnation: int
    forgotten: tuple[NodeId, ...]
    voters: Voters


class TermOpened(_Event, frozen=True, kw_only=True):
    """A master begins to lead; its first event of a term."""

    master_node_id: NodeId


class NodeJoined(_Event, frozen=True, kw_only=True):
    """A node is a member from here on, or is back; a new boot id voids the stages of its earlier boot."""

    identity: NodeIdentity


class NodeDisconnected(_Event, frozen=True, kw_only=True):
    """A member is not reachable. It stays a member, and what is placed on it stays placed."""

    node_id: NodeId
    reason: str


class NodeRemoved(_Event, frozen=True, kw_only=True):
    """A node is no member any more, its certificates are revoked, and it may not come back unasked.

    What is placed on it fails.
    """

    node_id: NodeId
    reason: str


class NodeModelsChanged(_Event, frozen=True, kw_only=True):
    """A node's local models are now these."""

    node_id: NodeId
    models: tuple[ModelCard, ...]


class DeviceAppeared(_Event, frozen=True, kw_only=True):
    node_id: NodeId
    device: GPUDevice


class DeviceLost(_Event, frozen=True, kw_only=True):
    node_id: NodeId
    device_id: DeviceId
    reason: str


class InstanceCreated(_Event, frozen=True, kw_only=True):
    """A placement was committed."""

    instance: Instance


class InstanceDeleted(_Event, frozen=True, kw_only=True):
    instance_id: InstanceId
    reason: str


class InstanceRestarted(_Event, frozen=True, kw_only=True):
    """All stages of an instance start again under a new generation."""

    instance_id: InstanceId
    generation: int
    reason: str


class InstanceMoved(_Event, frozen=True, kw_only=True):
    """An instance goes on elsewhere under a new generation: a device or node of it is lost, or others are faster."""

    instance_id: InstanceId
    generation: int
    plan: Plan
    reason: str
    basis: bytes = b""
    """What the plan was decided on; see `Instance.basis`."""


class InstanceStranded(_Event, frozen=True, kw_only=True):
    """A device of an instance failed or is gone, and nothing can take its place. Ends with a move or a restart."""

    instance_id: InstanceId
    generation: int
    reason: str


class InstanceWaits(_Event, frozen=True, kw_only=True):
    """A node of an instance is away, and nothing else can take its place: it goes on when the node is back."""

    instance_id: InstanceId
    generation: int
    reason: str


class StageChanged(_Event, frozen=True, kw_only=True):
    """A worker reports a stage's phase. Ignored when the generation is not the present one."""

    instance_id: InstanceId
    generation: int
    rank: int
    phase: StagePhase
    address: HostPort | None = None
    reason: str | None = None
    is_permanent: bool = False


class AuthorityCreated(_Event, frozen=True, kw_only=True):
    """The cluster has an authority, which signs its nodes' certificates."""

    certificate_pem: str


class TokenCreated(_Event, frozen=True, kw_only=True):
    token_id: TokenId
    verifier: str
    created_at_s: float
    expires_at_s: float
    uses: int
    created_by: str


class TokenUsed(_Event, frozen=True, kw_only=True):
    """A node proved that it has the token."""

    token_id: TokenId
    node_id: NodeId
    fingerprint: str


class TokenGuessed(_Event, frozen=True, kw_only=True):
    """A node named the token and could not prove that it has it. Five of these lock the token."""

    token_id: TokenId
    node_id: NodeId
    address: str


class TokenDeleted(_Event, frozen=True, kw_only=True):
    token_id: TokenId


class KeyCreated(_Event, frozen=True, kw_only=True):
    key_id: KeyId
    hash: str
    name: str
    scopes: tuple[Scope, ...]
    created_at_s: float
    expires_at_s: float | None
    created_by: str


class KeyLimited(_Event, frozen=True, kw_only=True):
    """From here on a key may do no more than this; what it was limited to before counts no longer."""

    key_id: KeyId
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    device_ids: tuple[DeviceId, ...] = ()
    """Empty: all."""


class KeyDeleted(_Event, frozen=True, kw_only=True):
    key_id: KeyId


class JoinWished(_Event, frozen=True, kw_only=True):
    """A node asks to join, and waits until somebody approves or declines."""

    node_id: NodeId
    name: str
    address: str
    fingerprint: str
    asked_at_s: float


class JoinDeclined(_Event, frozen=True, kw_only=True):
    node_id: NodeId
    fingerprint: str
    declined_at_s: float
    reason: str


class NodeApproved(_Event, frozen=True, kw_only=True):
    """The node with this key may join; it collects its certificate when it asks again."""

    node_id: NodeId
    fingerprint: str
    approved_at_s: float
    approved_by: str


class CertificateIssued(_Event, frozen=True, kw_only=True):
    """The authority signed a certificate: the node may come in with it until it runs out or is revoked."""

    node_id: NodeId
    serial: str
    fingerprint: str
    issued_at_s: float
    not_after_s: float
    certificate_pem: str


class CertificateRevoked(_Event, frozen=True, kw_only=True):
    node_id: NodeId
    serial: str
    reason: str


Decision = (
    ClusterFormed
    | ClusterDissolved
    | VotersChanged
    | HistoryForced
    | TermOpened
    | NodeJoined
    | NodeDisconnected
    | NodeRemoved
    | NodeModelsChanged
    | DeviceAppeared
    | DeviceLost
    | InstanceCreated
    | InstanceDeleted
    | InstanceRestarted
    | InstanceMoved
    | InstanceStranded
    | InstanceWaits
    | StageChanged
    | AuthorityCreated
    | TokenCreated
    | TokenUsed
    | TokenGuessed
    | TokenDeleted
    | KeyCreated
    | KeyLimited
    | KeyDeleted
    | JoinWished
    | JoinDeclined
    | NodeApproved
    | CertificateIssued
    | CertificateRevoked
)


# --- telemetry: only the last value counts -----------------------------------------------------------------------


class DeviceGPUStateUpdated(_Event, frozen=True, kw_only=True):
    state: DeviceGPUState


class NodeProfileUpdated(_Event, frozen=True, kw_only=True):
    node_id: NodeId
    profile: NodePerformanceProfile
    key_usage: dict[KeyId, KeyUsage] = {}
    """What was done through this node with the keys that have a quota: all of them, each time."""


class GPUBandwidthMeasured(_Event, frozen=True, kw_only=True):
    """A measured transfer between two devices; `bandwidth_mbps` is 10^6 bits per second.

    Between two nodes it is their link that was measured, from one host's memory to the other's.
    """

    source_device_id: DeviceId
    dest_device_id: DeviceId
    bandwidth_mbps: float
    latency_ms: float
    measurement_count: int
    link_type: LinkType = "unknown"


class LinkMeasured(_Event, frozen=True, kw_only=True):
    source_node_id: NodeId
    dest_node_id: NodeId
    link_type: LinkType
    latency_ms: float | None = None
    bandwidth_mbps: float | None = None
    measurement_count: int = 1


class StageProgressed(_Event, frozen=True, kw_only=True):
    instance_id: InstanceId
    generation: int
    rank: int
    progress: StageProgress


class DevicePaceMeasured(_Event, frozen=True, kw_only=True):
    pace: DevicePace


class InstancePaceMeasured(_Event, frozen=True, kw_only=True):
    pace: InstancePace


Telemetry = (
    DeviceGPUStateUpdated
    | NodeProfileUpdated
    | GPUBandwidthMeasured
    | LinkMeasured
    | StageProgressed
    | DevicePaceMeasured
    | InstancePaceMeasured
)

Event = Decision | Telemetry


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A decision with its place in the one order that all nodes share."""

    index: int
    term: int
    event_id: EventId
    cause_id: str
    """Id of the command or event that led to it."""
    origin: NodeId
    """The node that proposed it."""
    seq: int
    """Counts the origin's proposals: (origin, seq) is admitted once."""
    at: str
    """ISO 8601, UTC: for people to read, never for decisions."""
    event: Decision
    more: int = 0
    """How many entries of the same proposal follow. They are never sent or written apart, so all are kept or none."""


class TelemetryFrame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node's latest telemetry; (boot_id, seq) orders the frames of a node."""

    node_id: NodeId
    boot_id: str
    seq: int
    events: tuple[Telemetry, ...]
