"""Who was noticed, what became of it, and whom to try next."""

from collections.abc import Callable

import anyio
import msgspec
from loguru import logger

from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.facts import ClusterFacts, PeerSeen, PeerStatus, Sighting, is_senior
from exo.cluster.judging import judge
from exo.cluster.options import CoordinatorOptions
from exo.cluster.raft.quorum import has_majority
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.cluster.transport.base import Transport
from exo.cluster.wire import Hello, NotNow, decode_from_listener, encode
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

FIRST_TIMEOUT_S = 0.5
"""How long a master is waited for that is dialled for the first time."""
FRESH_S = 5.0
"""A sighting older than this is no reason to dial any more."""
LOOK_AGAIN_S = 5.0
"""How often a cluster that ought to join this one is told of it."""
TO_LOOK_AT_MAX = 256
WARNINGS_MAX = 256
OWN_ADDRESSES_MAX = 64
"""Announcements come from anybody: what they make this node keep, log or pass over is bounded."""

_REFUSALS = ("other_namespace", "other_secret", "other_version")
_MISTAKES = ("both_have_instances", "same_node_id", "two_masters")


class _Noticed(msgspec.Struct):
    facts: ClusterFacts | None
    seen: PeerSeen
    last_s: float
    told_s: float


REMOVED = (
    "this node was removed from the cluster there: {}; to join it again: exo token create on one of its nodes, then "
    "here: exo join TOKEN"
)
UNWELCOME_S = 5.0
"""After how long a node that was removed asks again whether it is let in."""


class _Attempts(msgspec.Struct):
    pause_s: float = 0.0
    due_s: float = 0.0
    unwelcome_until_s: float = 0.0
    failed_count: int = 0


class Scout:
    """Keeps what was noticed and answers whom to dial next."""

    def __init__(
        self,
        situation: Situation,
        options: CoordinatorOptions,
        transport: Transport,
        clock: Callable[[], float],
        changed: Signal,
    ) -> None:
        self._situation = situation
        self._options = options
        self._transport = transport
        self._clock = clock
        self._noticed: dict[str, _Noticed] = {}
        self._attempts: dict[HostPort, _Attempts] = {}
        self._to_look_at: dict[HostPort, str] = {}
        self._own_addresses: set[HostPort] = {situation.identity.cluster_address}
        self._warned: set[str] = set()
        self.changed = changed
        self.orphan_since_s: float | None = None
        self.silent_master: NodeId | None = None
        """The last one, if it fell silent: others may know more by now, and dialling it takes long."""

    # --- what comes in ------------------------------------------------------------------------------------------

    def report(self, item: Sighting | PeerSeen) -> None:
        """Take what a discovery, or whoever dialled, has to say."""
        if isinstance(item, PeerSeen):
            # By host: a flood from ever new ports must not push out what is useful.
            host = item.address.host if item.address is not None else "unknown"
            known = self._noticed.get(item.node_id) if item.node_id is not None else None
            if (
                known is None or known.facts is None
            ):  # Else it has proved who it is, and this is old or a lie.
                self._note(f"{item.status} {item.node_id or host}", None, item)
        elif item.facts is not None:
            self._facts_seen(item.facts, item.via)
        elif item.address not in self._own_addresses and not self._is_connected_member(item.address):
            self._look_at(item.address, item.via)
            self.changed.fire()

    def _facts_seen(self, facts: ClusterFacts, via: str) -> None:
        own = self._situation.facts()
        if facts.node_id == own.node_id and facts.boot_id == own.boot_id:
            if len(self._own_addresses) < OWN_ADDRESSES_MAX:
                self._own_addresses.add(facts.cluster_address)
            return
        judgement = judge(own, facts, is_waiting=self._is_waiting(facts))
        now = self._clock()
        before = self._noticed.get(facts.node_id)
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
            self._noticed.pop(f"{status} {facts.node_id}", None)
        self._note(facts.node_id, facts, seen)
        self._noticed[facts.node_id].told_s = told_s
        if judgement.join is not None or judgement.tell is not None:
            self.changed.fire()

    def _look_at(self, address: HostPort, via: str) -> None:
        if address in self._to_look_at or len(self._to_look_at) < TO_LOOK_AT_MAX:
            self._to_look_at.setdefault(address, via)

    def _note(self, key: str, facts: ClusterFacts | None, seen: PeerSeen, *, is_final: bool = False) -> None:
        now = self._clock()
        before = self._noticed.pop(key, None)
        count = before.seen.count + 1 if before is not None else 1
        told_s = before.told_s if before is not None else now
        self._noticed[key] = _Noticed(facts, msgspec.structs.replace(seen, count=count), now, told_s)
        while len(self._noticed) > self._options.sightings_max:
            del self._noticed[next(iter(self._noticed))]
        # Strangers' beacons are no news; who was named, or should not be there, is.
        is_named = seen.via in ("static", "dial") and (seen.status in _REFUSALS or is_final)
        if is_named or seen.status in _MISTAKES:
            warning = f"{seen.status} {seen.node_id or seen.address} {seen.cluster_id}"
            if warning not in self._warned and len(self._warned) < WARNINGS_MAX:
                self._warned.add(warning)
                logger.warning("not joining the node at {}: {}", seen.address, seen.detail)

    def removed(self, address: HostPort) -> None:
        """The master there says that this node was removed."""
        self._note_removal(address, "its master does not let it in")
        attempts = self._attempts.setdefault(address, _Attempts())
        attempts.unwelcome_until_s = self._clock() + UNWELCOME_S

    def _note_removal(self, address: HostPort | None, reason: str) -> None:
        seen = PeerSeen(
            address=address, via="dial", status="removed", detail=REMOVED.format(reason), age_s=0.0
        )
        self._note(f"removed {address}", None, seen)

    def unusable(self, address: HostPort, via: str, error: DialError) -> None:
        """Dialling failed."""
        status: PeerStatus = "unreachable"
        if isinstance(error, HandshakeError) and error.is_told and error.code == "revoked_certificate":
            self._note_removal(address, "its certificate was revoked")
            return
        if isinstance(error, HandshakeError):
            status = "other_secret" if error.is_secret_wrong else "other_version"
        self._note(
            str(address),
            None,
            PeerSeen(address=address, via=via, status=status, detail=error.message, age_s=0.0),
            is_final=error.is_final,
        )

    # --- what goes out ------------------------------------------------------------------------------------------

    @property
    def peers_seen(self) -> tuple[PeerSeen, ...]:
        """Everybody noticed, newest last, with what became of it as of now."""
        own, now = self._situation.facts(), self._clock()
        removal = self._situation.removed_from
        if removal is not None:
            detail = REMOVED.format(removal.reason)
            own_end = PeerSeen(
                address=None,
                cluster_id=removal.cluster_id,
                via="decision",
                status="removed",
                detail=detail,
                age_s=0.0,
            )
            return (*self._all_seen(own, now), own_end)
        return self._all_seen(own, now)

    def _all_seen(self, own: ClusterFacts, now: float) -> tuple[PeerSeen, ...]:
        return tuple(
            msgspec.structs.replace(
                noticed.seen, age_s=round(now - noticed.last_s, 3), **self._judged(own, noticed.facts)
            )
            for noticed in self._noticed.values()
            if noticed.seen.status != "removed" or self._situation.standing != "follower"
        )

    def _judged(self, own: ClusterFacts, facts: ClusterFacts | None) -> dict[str, str]:
        if facts is None:
            return {}
        judgement = judge(own, facts, is_waiting=self._is_waiting(facts))
        return {"status": judgement.status, "detail": judgement.detail}

    def noticed_at(self, node_id: NodeId) -> HostPort | None:
        """Return the address that a node gave when it was noticed last."""
        noticed = self._noticed.get(node_id)
        return None if noticed is None or noticed.facts is None else noticed.facts.cluster_address

    def pick(self) -> HostPort | None:
        """Return the address to join next, or None when there is none now."""
        now = self._clock()
        return next((address for address in self._wanted(now) if self._due_s(address) <= now), None)

    def next_due_s(self) -> float | None:
        """Return how long until `pick` has something that it holds back now; None: nothing is held back."""
        now = self._clock()
        return min((max(0.0, self._due_s(address) - now) for address in self._wanted(now)), default=None)

    def timeout_s(self, address: HostPort) -> float:
        """Return how long to wait for an answer: at first not long, for of several addresses one may be dead."""
        attempts = self._attempts.get(address)
        failed_count = 0 if attempts is None else attempts.failed_count
        return min(self._options.dial_timeout_s, FIRST_TIMEOUT_S * (1 + failed_count))

    def attempted(self, address: HostPort, *, succeeded: bool) -> None:
        """An attempt to join is over; the next one at this address waits, longer each time that it fails."""
        options = self._options
        attempts = self._attempts.setdefault(address, _Attempts())
        attempts.failed_count = 0 if succeeded else attempts.failed_count + 1
        if succeeded:
            attempts.pause_s = 0.0
            self._noticed.pop(str(address), None)
            self._noticed.pop(f"removed {address}", None)
        attempts.pause_s = min(max(options.redial_s, 2 * attempts.pause_s), options.redial_max_s)
        attempts.due_s = self._clock() + attempts.pause_s
        if len(self._attempts) > self._options.sightings_max:
            self._attempts = {
                key: value for key, value in self._attempts.items() if value.due_s > self._clock()
            }

    def _due_s(self, address: HostPort) -> float:
        attempts = self._attempts.get(address)
        return max(attempts.due_s, attempts.unwelcome_until_s) if attempts is not None else 0.0

    def _wanted(self, now: float) -> list[HostPort]:
        """Return the addresses worth joining, best first."""
        situation = self._situation
        if situation.standing == "follower":
            return []
        own_address = situation.identity.cluster_address
        certain: list[HostPort] = []
        if situation.standing == "orphan":
            if situation.redirected_to is not None:
                certain.append(situation.redirected_to)
            # The leader that this node's peers know, else the last master, and those who may have elected another.
            known = [situation.core.leader_id]
            if situation.core.leader_id is None:
                known.append(situation.last_known.master_node_id)
            if not situation.is_agreeing:
                known += situation.last_known.voters.voters
            if self.silent_master in known:
                known.remove(self.silent_master)
                known.append(self.silent_master)
            addresses = (
                situation.address_of(node_id) for node_id in known if node_id not in (None, situation.node_id)
            )
            certain += [address for address in addresses if address not in (None, own_address)]
        own = self._situation.facts()
        seniors: list[ClusterFacts] = []
        for noticed in self._noticed.values():
            facts = noticed.facts
            if facts is None or now - noticed.last_s > FRESH_S:
                continue
            judgement = judge(own, facts, is_waiting=self._is_waiting(facts))
            if judgement.join is not None:
                position = sum(is_senior(other, facts) for other in seniors)
                seniors.insert(position, facts)
        heard = (facts.master_address for facts in seniors)
        hinted = [one for one in heard if one is not None and one not in self._own_addresses]
        # Where a member is, the log says; what this node has heard of itself does not count against that.
        return list(dict.fromkeys([*certain, *hinted]))

    def _is_waiting(self, facts: ClusterFacts) -> bool:
        """Say whether an orphan goes on waiting for its master in spite of these facts."""
        situation = self._situation
        if situation.cluster_id is None:
            return False
        if situation.has_something_to_lose:
            return True
        if facts.node_id in situation.last_known.nodes and facts.cluster_id != situation.cluster_id:
            return self._may_elect()
        if situation.is_agreeing:
            return True
        since_s = self.orphan_since_s
        return since_s is None or self._clock() - since_s < self._options.orphan_patience_s

    def _may_elect(self) -> bool:
        """Say whether so many of this node's cluster may be left that they can agree on a master."""
        situation = self._situation
        voters = situation.voters if situation.voters.voters else situation.last_known.voters
        now = self._clock()
        elsewhere = {
            noticed.facts.node_id
            for noticed in self._noticed.values()
            if noticed.facts is not None
            and noticed.facts.cluster_id not in (None, situation.cluster_id)
            and now - noticed.last_s <= FRESH_S
        }
        return has_majority(voters, {*voters.voters} - elsewhere)

    def _is_connected_member(self, address: HostPort) -> bool:
        return any(
            node.is_connected and node.identity.cluster_address == address
            for node in self._situation.state.nodes.values()
        )

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
                self._noticed.pop(str(address), None)
                self._facts_seen(answer.facts, via)
        except (TimeoutError, ConnectionLostError, msgspec.DecodeError) as error:
            self.unusable(address, via, DialError(f"the node at {address} gave no answer: {error}"))
        finally:
            connection.close("looked")
