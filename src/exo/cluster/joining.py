"""Proposes this node as a member, before everything else of its own, wherever the state does not know it as one."""

from exo.cluster.dispatch import Dispatch
from exo.cluster.proposals import Proposals
from exo.cluster.situation import Situation
from exo.cluster.uplink import Uplink
from exo.shared.types.events import NodeJoined


class Joining:
    """Facts about a node that is not there are ignored, and its identity replaces what was said of an earlier boot."""

    def __init__(
        self, situation: Situation, uplink: Uplink, proposals: Proposals, dispatch: Dispatch
    ) -> None:
        self._situation = situation
        self._uplink = uplink
        self._proposals = proposals
        self._dispatch = dispatch
        self._ticket: int | None = None

    def ensure_member(self) -> None:
        """Propose this node, unless it is a member, is about to be one, or is about to go."""
        situation = self._situation
        if situation.is_leaving or situation.farewell or situation.is_member:
            return
        if self._proposals.is_pending(self._ticket):
            return
        if situation.core.leading is not None or self._uplink.is_level:
            self._ticket, _ = self._dispatch.submit(
                [NodeJoined(identity=situation.identity)], f"boot-{situation.boot_id}", is_first=True
            )

    def forget(self) -> None:
        """This node has left its cluster: what it proposed there counts no more."""
        self._ticket = None
