"""The book of everybody who was noticed: what they said of themselves, when, and what was made of it."""

from collections.abc import Callable, Iterator

import msgspec
from loguru import logger

from exo.cluster.facts import ClusterFacts, PeerSeen
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

FRESH_S = 5.0
"""A sighting older than this is no reason to dial any more."""
WARNINGS_MAX = 256
"""Announcements come from anybody: how many are warned of is bounded."""

_REFUSALS = ("other_namespace", "other_secret", "other_version")
_MISTAKES = ("both_have_instances", "same_node_id", "two_masters")


class Noticed(msgspec.Struct):
    """The newest about somebody, by node id or, where that is not known, by address or host."""

    facts: ClusterFacts | None
    seen: PeerSeen
    last_s: float
    told_s: float
    """When its master was last told of this cluster."""


class Sightings:
    """Keeps the newest ones; warns once of each that somebody has to mend.

    Args:
        clock: Monotonic seconds.
        kept_max: How many are kept.
    """

    def __init__(self, clock: Callable[[], float], *, kept_max: int) -> None:
        self._clock = clock
        self._kept_max = kept_max
        self._noticed: dict[str, Noticed] = {}
        self._warned: set[str] = set()

    def __iter__(self) -> Iterator[Noticed]:
        """Oldest first."""
        return iter(self._noticed.values())

    def get(self, key: str) -> Noticed | None:
        return self._noticed.get(key)

    def fresh_facts(self) -> list[ClusterFacts]:
        """Return what was said of themselves by those who were noticed not long ago."""
        now_s = self._clock()
        return [
            noticed.facts
            for noticed in self._noticed.values()
            if noticed.facts is not None and now_s - noticed.last_s <= FRESH_S
        ]

    def address_of(self, node_id: NodeId) -> HostPort | None:
        """Return the address that a node gave when it was noticed last."""
        noticed = self._noticed.get(node_id)
        return None if noticed is None or noticed.facts is None else noticed.facts.cluster_address

    def note(self, key: str, facts: ClusterFacts | None, seen: PeerSeen, *, is_final: bool = False) -> None:
        """Write down what was noticed. `is_final`: trying again is of no use."""
        now_s = self._clock()
        before = self._noticed.pop(key, None)
        count = before.seen.count + 1 if before is not None else 1
        told_s = before.told_s if before is not None else now_s
        self._noticed[key] = Noticed(facts, msgspec.structs.replace(seen, count=count), now_s, told_s)
        while len(self._noticed) > self._kept_max:
            del self._noticed[next(iter(self._noticed))]
        # Strangers' beacons are no news; who was named, or should not be there, is.
        is_named = seen.via in ("static", "dial") and (seen.status in _REFUSALS or is_final)
        if is_named or seen.status in _MISTAKES:
            self._warn(seen)

    def told(self, key: str, at_s: float) -> None:
        """Somebody's master was told of this cluster then."""
        self._noticed[key].told_s = at_s

    def forget(self, key: str) -> None:
        self._noticed.pop(key, None)

    def _warn(self, seen: PeerSeen) -> None:
        warning = f"{seen.status} {seen.node_id or seen.address} {seen.cluster_id}"
        if warning not in self._warned and len(self._warned) < WARNINGS_MAX:
            self._warned.add(warning)
            logger.warning("not joining the node at {}: {}", seen.address, seen.detail)
