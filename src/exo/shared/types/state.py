"""The one `State` that every node folds. Decided part: equal on every node at equal index. Live part: telemetry."""

import msgspec

from exo.shared.types.access import Access, KeyId, KeyUsage
from exo.shared.types.devices import DeviceGPUState, NodePerformanceProfile
from exo.shared.types.ids import ClusterId, DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Instance, StageProgress
from exo.shared.types.nodes import DeviceLink, Link, Node
from exo.shared.types.pace import DevicePace, InstancePace
from exo.shared.types.voters import Voters


class NodeTelemetry(msgspec.Struct, frozen=True, kw_only=True):
    """The latest of one node; grouped by node so that an update copies little."""

    boot_id: str = ""
    seq: int = -1
    profile: NodePerformanceProfile | None = None
    devices: dict[DeviceId, DeviceGPUState] = {}
    links: dict[NodeId, Link] = {}
    stages: dict[str, StageProgress] = {}
    """By `<instance_id>/<generation>/<rank>`."""
    device_links: dict[str, DeviceLink] = {}
    """Within the node, by `<source device id> <destination device id>`."""
    key_usage: dict[KeyId, KeyUsage] = {}
    """What was done through the node with keys that have a quota."""
    paces: dict[str, DevicePace] = {}
    """How fast stages on its devices were measured to work, by `pace_key`."""
    instance_paces: dict[InstanceId, InstancePace] = {}
    """Of instances whose first stage is on the node."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the cluster knows. Never changed in place: `apply` returns a new one."""

    cluster_id: ClusterId | None = None
    namespace: str = ""
    index: int = 0
    """Of the last decision folded in."""
    incarnation: int = 1
    """How often an operator has begun the history anew, without voters that were lost, plus 1."""
    term: int = 0
    master_node_id: NodeId | None = None
    voters: Voters = Voters()
    access: Access = Access()
    """Who may come in. Never presented as it is: it has what guesses of tokens and keys are checked against."""
    dissolved_into: ClusterId | None = None
    """This cluster is no more; its members join that one."""
    nodes: dict[NodeId, Node] = {}
    instances: dict[InstanceId, Instance] = {}
    last_seq: dict[NodeId, int] = {}
    """Per origin, the last proposal admitted: what makes admission exactly-once across a restart."""
    live: dict[NodeId, NodeTelemetry] = {}
    """Telemetry by node; compare states without it."""

    def decided(self) -> "State":
        """The part that is equal on every node at equal index."""
        return msgspec.structs.replace(self, live={})
