"""Who should vote: a pure choice from who belongs to the cluster, who is there, and who has the log. See cluster.md.

| members  | voters                                                     |
| 1        | itself                                                     |
| 2        | one, and the other as a replica while it is in sync        |
| 3 to 6   | 3                                                          |
| 7 and up | 5                                                          |
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from exo.cluster.raft.quorum import has_majority
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import Node
from exo.shared.types.voters import Voters

STOPPED = "it was stopped"
"""Why a node is disconnected that said so itself: it does not expect to be waited for."""


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader sees of the other members."""

    present: frozenset[NodeId]
    """Connected now; the leader is one of them."""
    missed: frozenset[NodeId] = frozenset()
    """Gone for so long that their place is given to somebody else, if there is anybody."""
    level: frozenset[NodeId] = frozenset()
    """Their disks have the whole log, or nearly."""
    leaving: frozenset[NodeId] = frozenset()
    """About to stop, as they said."""
    voteless: frozenset[NodeId] = frozenset()
    """They lost their log: they may not vote before they were removed and added again."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader should do next about the voters."""

    learners: frozenset[NodeId] = frozenset()
    """To be sent entries so that they can be voters later."""
    voters: Voters | None = None
    """The next change, one voter away from the present ones; None: nothing to change now."""
    reason: str = ""


def voters_wanted(member_count: int) -> int:
    """Return how many nodes of a cluster of this size should vote."""
    if member_count <= 2:
        return 1
    return 3 if member_count <= 6 else 5


def choose_voters(leader: NodeId, nodes: Mapping[NodeId, Node], voters: Voters, presence: Presence) -> Choice:
    """Return who should learn, and the next step from the present voters to those that should be.

    Voters stay as long as they can; newcomers are taken in the order in which they joined, other hosts first. A voter
    that is merely lost stays until somebody else can take its place. One that was stopped, removed or has lost its
    log goes at once, unless those who are left could not agree on that: then it waits until somebody is back.

    Args:
        leader: This node.
        nodes: All members, in the order in which they joined.
        voters: As of now.
        presence: Who is there, as the leader sees it.
    """
    unfit = {
        node_id
        for node_id in {*nodes, *voters.members}
        if node_id not in nodes
        or node_id in presence.leaving
        or node_id in presence.voteless
        or (nodes[node_id].left_reason == STOPPED and node_id not in presence.present)
    }
    kept = [node_id for node_id in voters.voters if node_id not in unfit]
    # Of more than are needed, those who are there stay.
    here = sorted(
        (node_id for node_id in kept if node_id not in presence.missed),
        key=lambda node_id: node_id not in presence.present,
    )
    fresh = [
        node_id
        for node_id in nodes
        if node_id in presence.present and node_id not in unfit and node_id not in kept
    ]
    # The lost ones come last: they keep their vote only where nobody else can have it.
    lost = [node_id for node_id in kept if node_id in presence.missed]
    ranked = _leader_first(leader, [*here, *_by_host(nodes, here, fresh), *lost])
    count = max(
        (size for size in (1, 3, 5) if size <= min(voters_wanted(len(nodes)), len(ranked))), default=1
    )
    if count == 1:
        return _designate(leader, nodes, voters, presence, ranked, unfit)
    return _towards(leader, voters, set(ranked[:count]), presence, unfit)


def _leader_first(leader: NodeId, ranked: Sequence[NodeId]) -> list[NodeId]:
    return sorted(ranked, key=lambda node_id: node_id != leader)


def _by_host(
    nodes: Mapping[NodeId, Node], kept: Collection[NodeId], candidates: Sequence[NodeId]
) -> list[NodeId]:
    """Return the candidates, those on hosts that have no voter yet first."""
    hosts = {nodes[node_id].identity.host_id for node_id in kept}
    first: list[NodeId] = []
    later: list[NodeId] = []
    for node_id in candidates:
        host = nodes[node_id].identity.host_id
        (later if host in hosts else first).append(node_id)
        hosts.add(host)
    return [*first, *later]


def _towards(
    leader: NodeId, voters: Voters, wanted: set[NodeId], presence: Presence, unfit: Collection[NodeId]
) -> Choice:
    """Take the next single step to three or five voters."""
    missing = sorted(wanted - set(voters.voters), key=lambda n: (n not in voters.replicas, n))
    surplus = set(voters.voters) - wanted
    learners = frozenset(missing)
    ready = [node_id for node_id in missing if node_id in presence.level]
    are_level = len(ready) == len(missing)
    if len(voters.voters) == 1 and not are_level:
        # Two voters are worse than one: the step from one to three is taken without a pause in between.
        return Choice(learners=learners)
    if len(voters.voters) == 1 and missing and not set(missing).intersection(voters.replicas):
        return _in_sync(voters, missing[0], learners)
    dispensable = [n for n in surplus if n != leader and (n in unfit or are_level)]
    leaver = _first_to_go(leader, voters, dispensable, presence, unfit)
    if ready and leaver in presence.missed and leaver not in unfit:
        # It may come back. Of the old voters and the new one together, any may lose its log meanwhile; of those that
        # are left without both, none may.
        after = _with(voters, ready[0])
        if has_majority(after, presence.present - presence.voteless):
            return Choice(learners=learners, voters=after, reason=f"{ready[0]} is a voter now")
    if leaver is not None:
        return Choice(
            learners=learners, voters=_without(voters, leaver), reason=f"{leaver} is no voter any more"
        )
    # An even number of voters bears no more losses than one less: it is passed through only, without a pause.
    is_between = len(voters.voters) % 2 == 0 or bool(dispensable) or leader in surplus
    if ready and (is_between or len(ready) > 1):
        return Choice(learners=learners, voters=_with(voters, ready[0]), reason=f"{ready[0]} is a voter now")
    if leader in surplus and _can_be_spared(leader, voters, presence, is_unfit=leader in unfit):
        return Choice(
            learners=learners, voters=_without(voters, leader), reason=f"{leader} hands its vote on"
        )
    return Choice(learners=learners)


def _in_sync(voters: Voters, node_id: NodeId, learners: frozenset[NodeId]) -> Choice:
    """Make a node the replica that is about to be the second voter.

    The second of two is needed for everything. It has to have on disk by then that it counts: cut off and started
    again, it would leave its copy and this cluster behind, and nothing could be decided here any more.
    """
    after = Voters(voters=voters.voters, replicas=(node_id,))
    return Choice(learners=learners, voters=after, reason=f"{node_id} is in sync")


def _first_to_go(
    leader: NodeId,
    voters: Voters,
    surplus: Collection[NodeId],
    presence: Presence,
    unfit: Collection[NodeId],
) -> NodeId | None:
    """Return whose vote ends next, or None where nobody's can be spared now.

    Those that are of no use first: with one of two voters gone or voteless, no further change could be agreed on. The
    leader last: it has to see the change through.
    """
    order = sorted(
        surplus,
        key=lambda n: (n == leader, n not in unfit, n in presence.present, n not in presence.voteless, n),
    )
    return next((n for n in order if _can_be_spared(n, voters, presence, is_unfit=n in unfit)), None)


def _can_be_spared(node_id: NodeId, voters: Voters, presence: Presence, *, is_unfit: bool) -> bool:
    """Say whether the others can agree without a voter, and elect one of them when the leader dies.

    A change counts at once: those who are left have to agree to it. Who lost its log can do so when it has it again,
    but votes for nobody. Where an election could not be won before either, only those go who will not be back.
    """
    left = _without(voters, node_id)
    voting = presence.present - presence.voteless
    agreeing = voting | (presence.present & presence.level)
    is_won = has_majority(left, voting) or (is_unfit and not has_majority(voters, voting))
    return is_won and has_majority(left, agreeing)


def _with(voters: Voters, node_id: NodeId) -> Voters:
    return Voters(voters=tuple(sorted((*voters.voters, node_id))))


def _without(voters: Voters, gone: NodeId) -> Voters:
    return Voters(voters=tuple(node_id for node_id in voters.voters if node_id != gone))


def _designate(
    leader: NodeId,
    nodes: Mapping[NodeId, Node],
    voters: Voters,
    presence: Presence,
    ranked: Sequence[NodeId],
    unfit: Collection[NodeId],
) -> Choice:
    """Take the next single step to one voter and, if there is a second node, a replica."""
    heirs = [node_id for node_id in ranked if node_id not in unfit]
    if not heirs:
        return Choice()
    heir = leader if leader in heirs else next((n for n in heirs if n in presence.level), heirs[0])
    if len(voters.voters) > 1:
        surplus = [node_id for node_id in voters.voters if node_id != heir]
        leaver = _first_to_go(leader, voters, surplus, presence, unfit)
        if heir in voters.voters:
            if leaver is None:
                return Choice()
            return Choice(voters=_without(voters, leaver), reason=f"{leaver} is no voter any more")
    if heir not in voters.voters:
        if heir not in presence.level:
            return Choice(learners=frozenset((heir,)))
        if len(voters.voters) == 1 and heir not in voters.replicas:
            return _in_sync(voters, heir, frozenset((heir,)))
        return Choice(
            learners=frozenset((heir,)), voters=_with(voters, heir), reason=f"{heir} takes over from {leader}"
        )
    seconds = [n for n in nodes if n != heir and n in presence.present and n not in unfit]
    seconds.sort(
        key=lambda n: (
            n not in voters.replicas,
            nodes[n].identity.host_id == nodes[heir].identity.host_id if heir in nodes else False,
        )
    )
    second = seconds[0] if seconds else None
    replicas = (second,) if second is not None and second in presence.level else ()
    learners = frozenset((second,)) if second is not None else frozenset[NodeId]()
    if replicas == voters.replicas:
        return Choice(learners=learners)
    reason = f"{second} is in sync" if replicas else f"{', '.join(voters.replicas)} is out of sync"
    return Choice(learners=learners, voters=Voters(voters=voters.voters, replicas=replicas), reason=reason)
