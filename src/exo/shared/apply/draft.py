"""A state while a batch is folded in: each of its dictionaries is copied at most once, when it first changes."""

from collections.abc import Mapping

from msgspec.structs import replace

from exo.shared.types.access import Access
from exo.shared.types.ids import ClusterId, InstanceId, NodeId
from exo.shared.types.instances import Instance
from exo.shared.types.nodes import Node
from exo.shared.types.state import NodeTelemetry, State
from exo.shared.types.voters import Voters


class Draft:
    """Used by one call of `apply_entries` and then dropped, so that nobody sees what it changes in place.

    What is read here is as of the last event that was folded in. The state it began with stays as it was, and
    whatever no event touched is the very same object in the state it ends with.
    """

    def __init__(self, state: State) -> None:
        self._before = state
        self.cluster_id: ClusterId | None = state.cluster_id
        self.namespace: str = state.namespace
        self.index: int = state.index
        self.term: int = state.term
        self.incarnation: int = state.incarnation
        self.master_node_id: NodeId | None = state.master_node_id
        self.voters: Voters = state.voters
        self.access: Access = state.access
        self.dissolved_into: ClusterId | None = state.dissolved_into
        self._nodes = state.nodes
        self._instances = state.instances
        self._live = state.live
        self._last_seq = state.last_seq

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        """The members."""
        return self._nodes

    @property
    def instances(self) -> Mapping[InstanceId, Instance]:
        """What is placed."""
        return self._instances

    @property
    def live(self) -> Mapping[NodeId, NodeTelemetry]:
        """Telemetry by node."""
        return self._live

    def put_node(self, node: Node) -> None:
        """Add a member, or replace the one of this id."""
        if self._nodes is self._before.nodes:
            self._nodes = dict(self._nodes)
        self._nodes[node.identity.node_id] = node

    def drop_node(self, node_id: NodeId) -> None:
        """Forget a member that is there."""
        if self._nodes is self._before.nodes:
            self._nodes = dict(self._nodes)
        del self._nodes[node_id]

    def put_instance(self, instance: Instance) -> None:
        """Add an instance, or replace the one of this id."""
        if self._instances is self._before.instances:
            self._instances = dict(self._instances)
        self._instances[instance.instance_id] = instance

    def drop_instance(self, instance_id: InstanceId) -> None:
        """Forget an instance, if it is there."""
        if instance_id in self._instances:
            if self._instances is self._before.instances:
                self._instances = dict(self._instances)
            del self._instances[instance_id]

    def drop_live(self, node_id: NodeId) -> None:
        """Forget a node's telemetry, if there is any."""
        if node_id in self._live:
            if self._live is self._before.live:
                self._live = dict(self._live)
            del self._live[node_id]

    def put_last_seq(self, origin: NodeId, seq: int) -> None:
        """Note the last proposal of an origin that was admitted."""
        if self._last_seq is self._before.last_seq:
            self._last_seq = dict(self._last_seq)
        self._last_seq[origin] = seq

    def finish(self) -> State:
        """Return the state that the batch led to. The draft is of no use afterwards."""
        return replace(
            self._before,
            cluster_id=self.cluster_id,
            namespace=self.namespace,
            index=self.index,
            incarnation=self.incarnation,
            term=self.term,
            master_node_id=self.master_node_id,
            voters=self.voters,
            access=self.access,
            dissolved_into=self.dissolved_into,
            nodes=self._nodes,
            instances=self._instances,
            last_seq=self._last_seq,
            live=self._live,
        )
