"""What is made of the datagrams that arrive: somebody to try, or something to tell people. Pure, of bounded memory."""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from exo.cluster.discovery.addresses import address_at, facts_at
from exo.cluster.discovery.beacon import (
    TEST_MAGIC,
    BeaconFault,
    BeaconHead,
    Heard,
    Stranger,
    decode_beacon,
)
from exo.cluster.facts import ClusterFacts, PeerSeen, PeerStatus, Sighting
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort

SOURCES_MAX = 1024
"""Nodes that share a key with this one and are remembered."""
STRANGERS_MAX = 64
"""Strangers that are told of at a time. More have to wait until some of these are silent: a flood of made-up ones does
not push out those that are real."""
STRANGERS_PER_HOST_MAX = 8
SILENT_S = 10.0
"""Who has not been heard for this long is forgotten."""
COUNTED = ("heard", "malformed", "other_secret", "other_version")
"""The keys of `Hearing.counts`, all there from the start."""
STRANGER_PAUSE_S = 0.9
"""Least time between two reports of one stranger."""

_MALFORMED = "something that is no beacon of exo was sent to the discovery port"
_OTHER_VERSION = "it runs another release of exo, with another beacon; run the same release on both"


class News(msgspec.Struct, frozen=True):
    """What a datagram says."""

    item: Sighting | PeerSeen
    is_new: bool = False
    """It is the first word from this start of a node."""


class _Source(msgspec.Struct):
    host: str
    heard_s: float


class Hearing:
    """Remembers just enough of who was heard.

    Args:
        keys: Returns the keys that this node has now.
        via: How it hears, for the reports.
    """

    def __init__(self, keys: Callable[[], Sequence[bytes]], *, via: str) -> None:
        self._keys = keys
        self._via = via
        self._sources: dict[str, _Source] = {}
        self._strangers: dict[tuple[str, str], float] = {}
        self._last: tuple[bytes, tuple[bytes, ...], Heard | Stranger | BeaconFault] | None = None
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        """Datagrams, by what became of them."""

    @property
    def node_count(self) -> int:
        """How many nodes that share a key with this one are within hearing, itself among them."""
        return len(self._sources)

    def hear(self, data: bytes, source: HostPort, own: ClusterFacts, now_s: float) -> News | None:
        """Take a datagram; None: there is nothing to say.

        Args:
            source: Where it came from, with the interface where the address is valid on that one only.
            own: This node's facts.
            now_s: Monotonic time.
        """
        if data.startswith(TEST_MAGIC):
            return None
        host = source.host
        found = self._decode(data)
        if isinstance(found, Heard):
            self.counts["heard"] += 1
            return self._known(found.facts, host, own, now_s)
        fault = found.fault if isinstance(found, Stranger) else found
        self.counts[fault] += 1
        head = found.head if isinstance(found, Stranger) else None
        if not self._admits(host, f"{fault} {head.node_id if head is not None else ''}", now_s):
            return None
        if head is None:
            detail = _OTHER_VERSION if fault == "other_version" else _MALFORMED
            return News(PeerSeen(address=source, via=self._via, status=fault, detail=detail, age_s=0.0))
        return News(_stranger(head, fault, host, own, self._via))

    def forget(self, now_s: float) -> None:
        """Drop whoever has been silent for a while."""
        for key in [key for key, at_s in self._strangers.items() if now_s - at_s >= SILENT_S]:
            del self._strangers[key]
        for boot_id in [key for key, source in self._sources.items() if now_s - source.heard_s >= SILENT_S]:
            del self._sources[boot_id]

    def _decode(self, data: bytes) -> Heard | Stranger | BeaconFault:
        # The same beacon comes over several interfaces at once.
        keys = tuple(self._keys())
        if self._last is not None and self._last[:2] == (data, keys):
            return self._last[2]
        found = decode_beacon(keys, data)
        self._last = (data, keys, found)
        return found

    def _known(self, facts: ClusterFacts, host: str, own: ClusterFacts, now_s: float) -> News | None:
        source = self._sources.get(facts.boot_id)
        is_own = facts.boot_id == own.boot_id and facts.node_id == own.node_id
        if source is None:
            if len(self._sources) >= SOURCES_MAX:
                del self._sources[next(iter(self._sources))]
            self._sources[facts.boot_id] = _Source(host, now_s)
        elif source.host == host or is_own:
            source.heard_s = now_s
        elif now_s - source.heard_s < SILENT_S and _preference(source.host) <= _preference(host):
            # One address for each node, though it is heard on several networks: else it seems to move.
            host = source.host
        else:
            source.host, source.heard_s = host, now_s
        facts = facts_at(facts, host)
        return News(
            Sighting(address=facts.cluster_address, facts=facts, via=self._via), is_new=source is None
        )

    def _admits(self, host: str, what: str, now_s: float) -> bool:
        key = (host, what)
        last_s = self._strangers.get(key)
        if last_s is not None:
            if now_s - last_s < STRANGER_PAUSE_S:
                return False
            self._strangers[key] = now_s
            return True
        if len(self._strangers) >= STRANGERS_MAX:
            self.forget(now_s)
        of_host = sum(other == host for other, _ in self._strangers)
        if len(self._strangers) >= STRANGERS_MAX or of_host >= STRANGERS_PER_HOST_MAX:
            return False
        self._strangers[key] = now_s
        return True


def _preference(host: str) -> int:
    """The lower, the better: this host, then IPv4, then IPv6, then IPv6 that is valid on one interface only."""
    if host.startswith("127.") or host == "::1":
        return 0
    return 1 if ":" not in host else 3 if "%" in host else 2


def _stranger(head: BeaconHead, fault: PeerStatus, host: str, own: ClusterFacts, via: str) -> PeerSeen:
    """Say who somebody claims to be, and what to do if that is true. Pure."""
    address = address_at(head.cluster_address, host)
    status: PeerStatus = fault
    if fault == "other_version":
        detail = (
            f"it runs exo {head.exo_version}, whose beacons are of another kind; run the same release on both"
        )
    elif head.namespace != own.namespace:
        status = "other_namespace"
        detail = f"it belongs to the namespace {head.namespace!r}; start both with the same --namespace to join them"
    elif head.cluster_id == own.cluster_id:
        detail = (
            "it says that it is of this cluster, but has none of its keys: it was not let in, or no longer is; "
            f"let it in with `exo join TOKEN` on it, or with `exo join` on it and `exo node approve {head.node_id}`"
        )
    else:
        detail = (
            f"it has another key, of another user, host or cluster ({head.cluster_id or 'none yet'}); "
            f"if it is yours, let it in with `exo join TOKEN` on it, or with `exo join` on it and "
            f"`exo node approve {head.node_id}` here"
        )
    return PeerSeen(
        address=address,
        node_id=NodeId(head.node_id),
        name=head.name,
        namespace=head.namespace,
        cluster_id=ClusterId(head.cluster_id) if head.cluster_id is not None else None,
        via=via,
        status=status,
        detail=detail,
        age_s=0.0,
    )
