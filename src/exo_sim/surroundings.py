"""What a simulated machine needs of the cluster that it is in."""

from random import Random
from typing import Protocol

from exo.cluster.raft.options import CoreOptions
from exo.shared.types.ids import NodeId
from exo_sim.ledger import Ledger
from exo_sim.network import Network
from exo_sim.policy import Policy
from exo_sim.timeline import Timeline


class Hearing(Protocol):
    """A machine as others see it."""

    def hear(self, source: NodeId, message: object) -> None: ...


class Surroundings(Protocol):
    """Seen from a machine."""

    timeline: Timeline
    network: Network
    ledger: Ledger
    random: Random
    options: CoreOptions
    policy: Policy
    members: frozenset[NodeId]
    is_telling: bool
    is_telling_facts: bool
    snapshot_entries: int

    def tell(self, who: str, what: str) -> None: ...

    def tell_fact(self, who: str, fact: str, what: str) -> None: ...

    def machine(self, node_id: NodeId) -> Hearing: ...

    def new_id(self) -> str: ...
