"""Counts what is done with keys that have a quota, and lets nothing begin once one is used up.

Each node counts what goes through it, in memory, and tells the others; each adds up what all of them count, so that
spreading requests over nodes gains nothing. What others counted arrives about a second late: for as long several nodes
together may let through more than a quota has. A node that starts again has forgotten what it counted before.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from exo.api.access_callers import Caller
from exo.api.access_gate import AccessRefused
from exo.api.access_quotas import REQUESTS_CODE, UsedUp, add_usage, present_usage, sum_usages, used_up
from exo.cluster.coordinator import Coordinator
from exo.shared.types.access import KeyId, KeyUsage

TELL_INTERVAL_S = 1.0
"""How often tokens are told while they come."""

TellUsage = Callable[[Mapping[KeyId, KeyUsage]], None]


class Spending:
    """What one generation takes of its key's quotas.

    Args:
        meter: Counts it; None: nobody does.
        key_id: Whose it is.
    """

    def __init__(self, meter: "KeyMeter | None" = None, key_id: KeyId | None = None) -> None:
        self._meter = meter
        self._key_id = key_id

    def tokens(self, count: int) -> None:
        """Count tokens of the prompt or of the answer."""
        if self._meter is not None and self._key_id is not None:
            self._meter.spend(self._key_id, count)

    def end(self) -> None:
        """Tell the other nodes what they were not told yet."""
        if self._meter is not None:
            self._meter.tell_rest()


class KeyMeter:
    """One node's share, and the sum of all.

    Args:
        coordinator: Whose state has what the other nodes told.
        tell: Tells the other nodes; None: nobody is told.
        now_s: Unix seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        tell: TellUsage | None = None,
        *,
        now_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator = coordinator
        self._tell_others = tell
        self._now_s = now_s
        self._clock = clock
        self._own: dict[KeyId, KeyUsage] = {}
        self._told_at_s = 0.0
        self._has_untold = False

    def admit(self, caller: Caller) -> Spending:
        """Let a generation begin, and count it.

        Raises:
            AccessRefused: A quota of the caller's key is used up.
        """
        if not caller.limits.has_quota:
            return Spending()
        key_id, now_s = KeyId(caller.name), self._now_s()
        found = used_up(caller.limits, self.used(key_id), now_s)
        if found is not None:
            raise AccessRefused(
                429,
                found.code,
                _sentence(caller.name, found),
                who=caller,
                headers={"Retry-After": str(found.wait_s)},
            )
        self._own[key_id] = add_usage(self._own.get(key_id), now_s, requests=1)
        self._tell()
        return Spending(self, key_id)

    def used(self, key_id: KeyId) -> KeyUsage:
        """Return what all nodes together count of a key in this minute and on this day."""
        state, own_node = self._coordinator.state, self._coordinator.node_id
        others = [
            live.key_usage[key_id]
            for node_id, live in state.live.items()
            if node_id != own_node and key_id in live.key_usage
        ]
        own = self._own.get(key_id)
        return sum_usages(others if own is None else [own, *others], self._now_s())

    def spend(self, key_id: KeyId, tokens: int) -> None:
        """Count tokens; the others are told once a second."""
        self._own[key_id] = add_usage(self._own.get(key_id), self._now_s(), tokens=tokens)
        self._has_untold = True
        if self._clock() - self._told_at_s >= TELL_INTERVAL_S:
            self._tell()

    def tell_rest(self) -> None:
        """Tell the others what they were not told yet."""
        if self._has_untold:
            self._tell()

    def _tell(self) -> None:
        """Tell everything that still counts: what is over, or of keys that are gone, is forgotten here."""
        now_s, keys = self._now_s(), self._coordinator.state.access.keys
        present = {key_id: present_usage(usage, now_s) for key_id, usage in self._own.items()}
        self._own = {
            key_id: usage
            for key_id, usage in present.items()
            if key_id in keys and (usage.requests or usage.tokens)
        }
        self._told_at_s, self._has_untold = self._clock(), False
        if self._tell_others is not None:
            self._tell_others(self._own)


def _sentence(key_id: str, found: UsedUp) -> str:
    free_at = (
        datetime.fromtimestamp(found.free_at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
    what = "requests a minute" if found.code == REQUESTS_CODE else "tokens a day"
    return (
        f"the key {key_id} may have {found.limit} {what}, and {found.used} are used; it is free again at "
        f"{free_at}, in {found.wait_s} s: wait, or use another key"
    )
