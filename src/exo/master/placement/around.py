"""The part of a state that a plan has to do with: all that a check of it on the event loop may look at. Pure."""

from collections.abc import Sequence

from msgspec.structs import replace

from exo.shared.types.instances import StagePlan
from exo.shared.types.state import State


def around(state: State, stages: Sequence[StagePlan]) -> State:
    """Leave out the hosts that stages do not touch, of a thousand nodes nearly all. Instances stay."""
    hosts = {state.nodes[one.node_id].identity.host_id for one in stages if one.node_id in state.nodes}
    nodes = {key: node for key, node in state.nodes.items() if node.identity.host_id in hosts}
    return replace(state, nodes=nodes, live={key: one for key, one in state.live.items() if key in nodes})
