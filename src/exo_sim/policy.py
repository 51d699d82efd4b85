"""Who should vote: the seam for the rule that a leader follows, and a plain rule for simulations."""

from abc import ABC, abstractmethod

import msgspec

from exo.cluster.membership import Presence, choose_voters
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort, Node, NodeIdentity
from exo.shared.types.voters import Voters


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader knows when it thinks about who should vote."""

    node_id: NodeId
    voters: Voters
    """As of the newest change, which is committed."""
    members: frozenset[NodeId]
    """Whom people want in the cluster."""
    heard: frozenset[NodeId]
    """Who said something lately; the leader is among them."""
    missed: frozenset[NodeId]
    """Who was silent for so long that somebody else may take its place."""
    in_step: frozenset[NodeId]
    """Whose disk has nearly everything; the leader is among them."""
    forgetful: frozenset[NodeId]
    """Who says that it lost its log, and votes again only when it was removed and added since."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the leader should do; at most one change of the voters at a time."""

    voters: Voters | None = None
    reason: str = ""
    hand_over_to: NodeId | None = None


class Policy(ABC):
    """Pure: the same view always leads to the same wishes."""

    @abstractmethod
    def wishes(self, view: View) -> Wishes:
        """Return what should change, if anything."""


class PlainPolicy(Policy):
    """Three voters of three members or more, five where that is allowed; of two, one votes and one is its replica.

    Args:
        voters_max: The most voters there should be, 3 or 5.
    """

    def __init__(self, voters_max: int = 5) -> None:
        self._voters_max = voters_max

    def _wanted_count(self, member_count: int) -> int:
        if member_count < 3:
            return 1
        return self._voters_max if member_count >= self._voters_max else 3

    def wishes(self, view: View) -> Wishes:
        voters = view.voters
        change, reason = self._change(view)
        if change is not None and change == voters:
            change = None
        hand_over_to = None
        if view.node_id not in view.members and change is None:
            able = [one for one in voters.voters if one in view.members & view.heard & view.in_step]
            hand_over_to = able[0] if able else None
        return Wishes(voters=change, reason=reason, hand_over_to=hand_over_to)

    def _change(self, view: View) -> tuple[Voters | None, str]:
        voters = view.voters
        useless = view.forgetful | (voters.members - view.members)
        able = view.heard & view.in_step & view.members - view.forgetful
        for replica in voters.replicas:
            if replica in useless or replica not in view.heard:
                rest = tuple(one for one in voters.replicas if one != replica)
                return Voters(voters=voters.voters, replicas=rest), f"{replica} is not in sync any more"
        wanted_count = self._wanted_count(len(view.members))
        removable = [one for one in voters.voters if one in useless and one != view.node_id]
        spare = sorted(able - set(voters.voters))
        if len(voters.voters) == 1:
            return self._change_single(view, wanted_count, spare)
        for one in removable:
            if self._has_majority(_without(voters, one), view.heard - view.forgetful):
                return _without(voters, one), f"{one} does not count any more"
        present = [one for one in voters.voters if one in able]
        if len(voters.voters) < wanted_count and spare:
            return _with(voters, spare[0]), f"{spare[0]} is to vote"
        # A leader that is to leave hands over first, and its heir goes on from there.
        if len(voters.voters) > wanted_count and view.node_id in view.members:
            absent_first = sorted(
                (one for one in voters.voters if one != view.node_id), key=lambda one: (one in able, one)
            )
            for one in absent_first:
                if self._has_majority(_without(voters, one), view.heard - view.forgetful):
                    return self._shrunk(view, _without(voters, one)), f"{one} is not needed to vote"
        absent = [one for one in voters.voters if one in view.missed]
        if absent and spare and len(present) * 2 > len(voters.voters) + 1:
            return _with(voters, spare[0]), f"{spare[0]} is to vote instead of {absent[0]}"
        return None, ""

    def _change_single(self, view: View, wanted_count: int, spare: list[NodeId]) -> tuple[Voters | None, str]:
        voters = view.voters
        if not spare:
            return None, ""
        if view.node_id not in view.members or wanted_count > 1:
            return _with(voters, spare[0]), f"{spare[0]} is to vote"
        missing = [one for one in spare if one not in voters.replicas]
        if missing:
            return Voters(
                voters=voters.voters, replicas=(*voters.replicas, missing[0])
            ), f"{missing[0]} is in sync"
        return None, ""

    def _shrunk(self, view: View, voters: Voters) -> Voters:
        """The second of two nodes stays a copy when it stops to vote."""
        if len(voters.voters) > 1:
            return voters
        copies = view.heard & view.in_step & view.members - view.forgetful - set(voters.voters)
        return Voters(voters=voters.voters, replicas=tuple(sorted(copies)))

    def _has_majority(self, voters: Voters, present: frozenset[NodeId]) -> bool:
        return len(present.intersection(voters.voters)) >= voters.majority


def _with(voters: Voters, node_id: NodeId) -> Voters:
    return Voters(voters=tuple(sorted((*voters.voters, node_id))))


def _without(voters: Voters, node_id: NodeId) -> Voters:
    return Voters(voters=tuple(one for one in voters.voters if one != node_id))


class RealPolicy(Policy):
    """What a real leader follows: `exo.cluster.membership`."""

    def wishes(self, view: View) -> Wishes:
        choice = choose_voters(
            view.node_id,
            {node_id: Node(identity=identity(node_id)) for node_id in sorted(view.members)},
            view.voters,
            Presence(
                present=view.heard,
                missed=view.missed,
                level=view.in_step,
                voteless=view.forgetful,
            ),
        )
        return Wishes(voters=choice.voters, reason=choice.reason)


def identity(node_id: NodeId) -> NodeIdentity:
    """A member about which nothing matters but its name."""
    address = HostPort(node_id, 1)
    return NodeIdentity(
        node_id=node_id,
        boot_id=node_id,
        name=node_id,
        host_id=node_id,
        platform="simulated",
        exo_version="0",
        cluster_address=address,
        data_address=address,
        api_address=address,
    )
