"""Makes the core of a node: from what was on disk, or with an empty log."""

from collections.abc import Callable

import msgspec

from exo.cluster.boot import Boot
from exo.cluster.raft.core import Core
from exo.cluster.raft.options import CoreOptions, SnapshotPoint
from exo.cluster.raft.steps import HardState
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


class Cores:
    """One core follows another whenever the node leaves a cluster, forms one, or is taken in by one."""

    def __init__(self, node_id: NodeId, options: CoreOptions, random: Callable[[], float]) -> None:
        self._node_id = node_id
        self._options = options
        self._random = random

    def from_disk(self, boot: Boot, *, may_vote: bool) -> Core:
        return Core(
            self._node_id,
            hard_state=boot.hard_state,
            incarnation=boot.incarnation,
            snapshot=boot.point if may_vote else msgspec.structs.replace(boot.point, voters=Voters()),
            entries=boot.entries,
            options=self._options,
            random=self._random,
            may_vote=may_vote,
        )

    def blank(self, voters: Voters, *, incarnation: int = 1, may_vote: bool = True) -> Core:
        return Core(
            self._node_id,
            hard_state=HardState(),
            incarnation=incarnation,
            snapshot=SnapshotPoint(voters=voters),
            entries=(),
            options=self._options,
            random=self._random,
            may_vote=may_vote,
        )
