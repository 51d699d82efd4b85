"""How the story of a simulated cluster puts things."""

from exo.cluster.raft.steps import RoleChanged
from exo.shared.types.voters import Voters


def describe(voters: Voters) -> str:
    """Return who has to agree, for people."""
    text = " ".join(voters.voters)
    return f"{text} with replica {' '.join(voters.replicas)}" if voters.replicas else text


def describe_role(effect: RoleChanged, *, is_new_term: bool) -> str:
    """Return what a node does from here on."""
    if effect.role == "leader":
        return f"leads term {effect.term}"
    if effect.role == "candidate":
        if is_new_term:
            return f"stands in term {effect.term}"
        return f"asks whether it would win term {effect.term + 1}"
    if effect.leader is None:
        return f"is in term {effect.term} and knows no leader"
    return f"follows {effect.leader} in term {effect.term}"
