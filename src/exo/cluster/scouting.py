"""Who is out there: takes what discoveries notice, looks at strangers, and says whom to try next."""

from collections.abc import Callable

import anyio
import msgspec

from exo.cluster.attempts import Attempts
from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.facts import ClusterFacts, PeerSeen, PeerStatus, Sighting
from exo.cluster.options import CoordinatorOptions
from exo.cluster.prospects import Prospects
from exo.cluster.sightings import Sightings
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.cluster.transport.base import Transport
from exo.cluster.wire import Hello, NotNow, decode_from_listener, encode
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

LOOK_AGAIN_S = 5.0
"""How often a cluster that ought to join this one is told of it."""
TO_LOOK_AT_MAX = 256
OWN_ADDRESSES_MAX = 64
"""Announcements come from anybody: what they make this node keep or pass over is bounded."""

REMOVED = (
    "this node was removed from the cluster there: {}; to join it again: exo token create on one of its nodes, then "
    "here: exo join TOKEN"
)


class Scout:
    """Keeps what was noticed and answers whom to dial next.

    Args:
        situation: This node.
        options: Times and bounds.
        transport: How to reach others.
        clock: Monotonic seconds.
        changed: Fired when there may be somebody else to join.
    """

    def __init__(
        self,
        situation: Situation,
        options: CoordinatorOptions,
        transport: Transport,
        clock: Callable[[], float],
        changed: Signal,
    ) -> None:
        self.changed = changed
        self._situation = situation
        self._options = options
        self._transport = transport
        self._clock = clock
        self._sightings = Sightings(clock, kept_max=options.sightings_max)
        self._prospects = Prospects(situation, self._sightings, clock, patience_s=options.orphan_patience_s)
        self._attempts = Attempts(options, clock)
        self._to_look_at: dict[HostPort, str] = {}
        self._own_addresses: set[HostPort] = {situation.identity.cluster_address}

    # --- what comes in ------------------------------------------------------------------------------------------

    def report(self, item: Sighting | PeerSeen) -> None:
        """Take what a discovery, or whoever dialled, has to say."""
        if isinstance(item, PeerSeen):
            # By host: a flood from ever new ports must not push out what is useful.
            host = item.address.host if item.address is not None else "unknown"
            known = self._sightings.get(item.node_id) if item.node_id is not None else None
            # Else it has proved who it is, and this is old or a lie.
            if known is None or known.facts is None:
                self._sightings.note(f"{item.status} {item.node_id or host}", None, item)
        elif item.facts is not None:
            self._facts_seen(item.facts, item.via)
        elif item.expected_node_id is not None and self._is_connected(item.expected_node_id):
            # It is here, wherever it listens now: where it was is nothing that anybody has to mend.
            if not self._is_connected_member(item.address):
                self._sightings.forget(str(item.address))
        elif item.address not in self._own_addresses and not self._is_connected_member(item.address):
            self._look_at(item.address, item.via)
            self.changed.fire()

    def _facts_seen(self, facts: ClusterFacts, via: str) -> None:
        own = self._situation.facts()
        if facts.node_id == own.node_id and facts.boot_id == own.boot_id:
            if len(self._own_addresses) < OWN_ADDRESSES_MAX:
                self._own_addresses.add(facts.cluster_address)
            return
        judgement = self._prospects.judge(own, facts)
        now = self._clock()
        before = self._sightings.get(facts.node_id)
        told_s = before.told_s if before is not None else now
        if judgement.tell is not None and now - told_s >= LOOK_AGAIN_S:
            self._look_at(judgement.tell, via)
            told_s = now
        seen = PeerSeen(
            address=facts.cluster_address,
            node_id=facts.node_id,
            name=facts.name,
            namespace=facts.namespace,
            cluster_id=facts.cluster_id,
            via=via,
            status=judgement.status,
            detail=judgement.detail,
            age_s=0.0,
        )
        for status in ("other_secret", "other_version", "other_namespace"):
            self._sightings.forget(f"{status} {facts.node_id}")
        self._sightings.note(facts.node_id, facts, seen)
        self._sightings.told(facts.node_id, told_s)
        if judgement.join is not None or judgement.tell is not None:
            self.changed.fire()

    def _look_at(self, address: HostPort, via: str) -> None:
        if address in self._to_look_at or len(self._to_look_at) < TO_LOOK_AT_MAX:
            self._to_look_at.setdefault(address, via)

    def _is_connected(self, node_id: NodeId) -> bool:
        """Say whether a member is here now; without a master nobody knows."""
        if self._situation.standing == "orphan":
            return False
        node = self._situation.state.nodes.get(node_id)
        return node is not None and node.is_connected

    def _is_connected_member(self, address: HostPort) -> bool:
        return any(
            node.is_connected and node.identity.cluster_address == address
            for node in self._situation.state.nodes.values()
        )

    # --- what became of dialling --------------------------------------------------------------------------------

    def attempted(self, address: HostPort, *, succeeded: bool) -> None:
        """An attempt to join is over; the next one at this address waits, longer each time that it fails."""
        self._attempts.over(address, succeeded=succeeded)
        if succeeded:
            self._sightings.forget(str(address))
            self._sightings.forget(f"removed {address}")

    def removed(self, address: HostPort) -> None:
        """The master there says that this node was removed."""
        self._note_removal(address, "its master does not let it in")
        self._attempts.unwelcome(address)

    def _note_removal(self, address: HostPort, reason: str) -> None:
        seen = PeerSeen(
            address=address, via="dial", status="removed", detail=REMOVED.format(reason), age_s=0.0
        )
        self._sightings.note(f"removed {address}", None, seen)

    def unusable(self, address: HostPort, via: str, error: DialError) -> None:
        """Dialling failed."""
        status: PeerStatus = "unreachable"
        if isinstance(error, HandshakeError) and error.is_told and error.code == "revoked_certificate":
            self._note_removal(address, "its certificate was revoked")
            return
        if isinstance(error, HandshakeError):
            status = "other_secret" if error.is_secret_wrong else "other_version"
        self._sightings.note(
            str(address),
            None,
            PeerSeen(address=address, via=via, status=status, detail=error.message, age_s=0.0),
            is_final=error.is_final,
        )

    def master_found(self) -> None:
        """A master takes this node in."""
        self._prospects.orphan_since_s = None

    def master_silent(self, node_id: NodeId | None) -> None:
        """The master's connection broke: it fell silent, or it is known to have ended (None)."""
        self._prospects.silent_master = node_id

    def master_lost(self) -> None:
        """The master is not followed any more."""
        self._prospects.orphan_since_s = self._clock()

    # --- what is asked ------------------------------------------------------------------------------------------

    @property
    def peers_seen(self) -> tuple[PeerSeen, ...]:
        """Everybody noticed, newest last, with what became of it as of now."""
        own, now = self._situation.facts(), self._clock()
        all_seen = tuple(
            msgspec.structs.replace(
                noticed.seen, age_s=round(now - noticed.last_s, 3), **self._judged(own, noticed.facts)
            )
            for noticed in self._sightings
            if noticed.seen.status != "removed" or self._situation.standing != "follower"
        )
        removal = self._situation.removed_from
        if removal is None:
            return all_seen
        own_end = PeerSeen(
            address=None,
            cluster_id=removal.cluster_id,
            via="decision",
            status="removed",
            detail=REMOVED.format(removal.reason),
            age_s=0.0,
        )
        return (*all_seen, own_end)

    def _judged(self, own: ClusterFacts, facts: ClusterFacts | None) -> dict[str, str]:
        if facts is None:
            return {}
        judgement = self._prospects.judge(own, facts)
        return {"status": judgement.status, "detail": judgement.detail}

    def noticed_at(self, node_id: NodeId) -> HostPort | None:
        """Return the address that a node gave when it was noticed last."""
        return self._sightings.address_of(node_id)

    def pick(self) -> HostPort | None:
        """Return the address to join next, or None when there is none now."""
        now = self._clock()
        return next((address for address in self._wanted() if self._attempts.due_s(address) <= now), None)

    def next_due_s(self) -> float | None:
        """Return how long until `pick` has something that it holds back now; None: nothing is held back."""
        now = self._clock()
        return min(
            (max(0.0, self._attempts.due_s(address) - now) for address in self._wanted()), default=None
        )

    def timeout_s(self, address: HostPort) -> float:
        """Return how long to wait for an answer."""
        return self._attempts.timeout_s(address)

    def _wanted(self) -> list[HostPort]:
        return self._prospects.wanted(self._own_addresses)

    # --- looking ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Exchange facts with addresses of which nothing is known yet, until cancelled."""
        while True:
            while self._to_look_at:
                address = next(iter(self._to_look_at))
                await self._look(address, self._to_look_at.pop(address))
            await self.changed.wait()

    async def _look(self, address: HostPort, via: str) -> None:
        options = self._options
        try:
            connection = await self._transport.dial(address, timeout_s=options.dial_timeout_s)
        except DialError as error:
            self.unusable(address, via, error)
            return
        try:
            with anyio.fail_after(options.answer_timeout_s):
                await connection.send(encode(Hello(facts=self._situation.facts(), intent="look")))
                answer = decode_from_listener(await connection.receive())
            if isinstance(answer, NotNow):
                self._sightings.forget(str(address))
                self._facts_seen(answer.facts, via)
        except (TimeoutError, ConnectionLostError, msgspec.DecodeError) as error:
            self.unusable(address, via, DialError(f"the node at {address} gave no answer: {error}"))
        finally:
            connection.close("looked")
