"""`<home>/cluster.json`: who belonged to this node's cluster when it last looked. A hint for finding it again."""

import os
from pathlib import Path

import msgspec

from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State

FILE_NAME = "cluster.json"


class LastSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a cluster, with the addresses of their cluster ports."""

    cluster_id: ClusterId | None = None
    members: dict[NodeId, HostPort] = {}

    @staticmethod
    def of(state: State) -> "LastSeen":
        return LastSeen(
            cluster_id=state.cluster_id,
            members={node_id: node.identity.cluster_address for node_id, node in state.nodes.items()},
        )

    def others(self, node_id: NodeId) -> dict[NodeId, HostPort]:
        return {key: address for key, address in self.members.items() if key != node_id}


def read_last_seen(home: Path) -> LastSeen:
    """Return what was noted; nothing where there is no such file, or none that can be read: it is a hint."""
    try:
        return msgspec.json.decode((home / FILE_NAME).read_bytes(), type=LastSeen)
    except (OSError, msgspec.MsgspecError):
        return LastSeen()


def write_last_seen(home: Path, seen: LastSeen) -> None:
    """Note it, whole or not at all. Raises OSError."""
    draft = home / f".{FILE_NAME}.{os.getpid()}"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(seen)))
    draft.replace(home / FILE_NAME)
