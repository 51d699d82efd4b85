"""State x voters to give up -> whether that may be. Pure; decided where it is asked, for there is no master then."""

from exo.shared.refusals import refusal, unknown_node
from exo.shared.types.commands import ForgetNode, Refusal
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State


def decide_forgetting(
    state: State, command: ForgetNode, *, own_node_id: NodeId, has_master: bool
) -> tuple[NodeId, ...] | Refusal:
    """Return the voters to give up, so that this node's history is the cluster's; decided where it is asked.

    All other voters are given up together: without any one of them their majority may go on elsewhere, and
    two histories would be the end.

    Args:
        state: As folded here.
        command: Whom the operator names.
        own_node_id: This node, which goes on.
        has_master: A master can be reached, so that nothing has to be given up.
    """
    voters = state.voters
    others = tuple(one for one in (*voters.voters, *voters.replicas) if one != own_node_id)
    named = sorted(set(command.node_ids))
    if not named:
        return refusal(
            422, "nobody_named", "name the nodes that are lost for good: exo node forget NODE --yes"
        )
    for node_id in named:
        if node_id == own_node_id:
            return refusal(
                409, "node_is_self", "a node cannot forget itself; ask on a node that is to go on alone"
            )
        if node_id not in state.nodes and node_id not in others:
            return unknown_node(node_id, state.nodes)
    if has_master:
        return refusal(
            409,
            "has_master",
            "the cluster has a master, so nothing has to be given up; take the nodes out with: "
            + " && ".join(f"exo node remove {node_id}" for node_id in named),
        )
    if own_node_id not in voters.members:
        return refusal(
            409,
            "not_a_voter",
            "this node has no complete copy of the decisions; ask on one that has: "
            f"{', '.join(voters.voters) or 'a voter'}",
        )
    strangers = [node_id for node_id in named if node_id not in others]
    if strangers:
        return refusal(
            409,
            "not_needed",
            f"{', '.join(strangers)} has no vote, so it is not what the cluster waits for; "
            f"those that have one are {', '.join(others) or 'none but this node'}",
        )
    unnamed = [node_id for node_id in others if node_id not in named]
    if unnamed:
        everybody = " ".join(sorted(others))
        return refusal(
            409,
            "others_may_go_on",
            f"{', '.join(unnamed)} may go on without this node; start them, or give all of them up together: "
            f"exo node forget {everybody} --yes",
        )
    return tuple(sorted(others))
