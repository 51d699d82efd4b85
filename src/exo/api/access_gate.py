"""Lets a request in or says why not: who asks, with which key, from where, and what the route needs.

Programs on this machine need no key (unless the node was started with `--require-key`), for they are its user's own.
Everybody else needs one, and as long as there is no key at all nobody else is answered.
"""

import hmac
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from exo.api.access_callers import EVERYTHING, Caller
from exo.api.access_keys import OWNER_ID, PlainKey, credential, find_key, parse_key
from exo.api.access_limits import FailureLimit, is_loopback
from exo.api.access_scopes import Needed
from exo.api.errors import ApiError
from exo.cluster.coordinator import Coordinator

FORWARDED_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""What a proxy adds: its own address says nothing about who asks."""

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="exo"'}


class AccessRefused(ApiError):
    """Raised when a request is not let in, or its key is not for what it asks; `who` is as much as is known."""

    def __init__(
        self, status: int, code: str, message: str, *, who: Caller, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, code, message, headers=headers)
        self.who = who


class AccessGate:
    """Decides on every request from the state as folded here, so that all nodes decide alike.

    Args:
        coordinator: Whose state has the keys.
        is_key_required: Programs on this machine need a key, too.
        owner_key: What this node's user shows instead of a key of the cluster, if anything.
        now_s: The time in Unix seconds: keys run out.
        clock: Monotonic seconds: wrong keys are counted by the minute.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        is_key_required: bool = False,
        owner_key: PlainKey | None = None,
        now_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator = coordinator
        self._is_key_required = is_key_required
        self._owner_hash = owner_key.hash if owner_key is not None else None
        self._now_s = now_s
        self._clock = clock
        self._limit = FailureLimit()

    def admit(
        self, needed: Needed, address: str, headers: Mapping[str, str], *, own_address: str = ""
    ) -> Caller:
        """Return who asks, if that one may.

        Args:
            needed: What the route needs.
            address: Of the other end of the connection.
            headers: Of the request, by names in lower case.
            own_address: Of this end of the connection; whoever has the same is on this machine.

        Raises:
            AccessRefused: The request is not to be carried out.
        """
        is_here = is_loopback(address) or (address != "" and address == own_address)
        is_local = is_here and not any(name in headers for name in FORWARDED_HEADERS)
        if not is_local and not self._coordinator.state.access.keys:
            raise AccessRefused(
                403,
                "no_keys",
                "this node answers its own machine only until there is an API key; make one there: "
                "exo key create --scope infer",
                who=Caller(kind="nobody", address=address),
            )
        is_trusted = is_local and not self._is_key_required
        shown = credential(headers)
        key = parse_key(shown)
        if key is not None or (shown and not is_trusted):
            caller = self._by_key(key, address, is_here=is_here)
        elif is_trusted:
            # What is no key of exo's is passed over here: many clients insist on sending something.
            return Caller(kind="loopback", address=address, scopes=EVERYTHING)
        else:
            caller = Caller(kind="nobody", address=address)
        if needed == "open" or caller.may(needed):
            return caller
        if caller.kind == "nobody":
            raise AccessRefused(401, "key_missing", self._how_to_show(), who=caller, headers=_CHALLENGE)
        raise AccessRefused(
            403,
            "scope_missing",
            f"the key {caller.name} has the scope {', '.join(sorted(caller.scopes))}, and this needs {needed}; "
            f"use another, or make one: exo key create --scope {needed}",
            who=caller,
        )

    def _by_key(self, key: PlainKey | None, address: str, *, is_here: bool) -> Caller:
        now_s = self._clock()
        wait_s = self._limit.wait_s(address, now_s)
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise AccessRefused(
                429,
                "too_many_wrong_keys",
                f"too many wrong keys came from {address}; wait {seconds} s, then try again with the right one",
                who=Caller(kind="nobody", address=address),
                headers={"Retry-After": str(seconds)},
            )
        try:
            return self._known(key, address, is_here=is_here)
        except AccessRefused:
            self._limit.failed(address, now_s)
            raise

    def _known(self, key: PlainKey | None, address: str, *, is_here: bool) -> Caller:
        if key is None:
            raise _unauthorized(
                "key_malformed", f"this is no API key of exo; {self._how_to_show()}", address=address
            )
        if self._owner_hash is not None and key.key_id == OWNER_ID:
            if hmac.compare_digest(self._owner_hash, key.hash) and is_here:
                return Caller(kind="owner", address=address, scopes=EVERYTHING)
        else:
            found = find_key(self._coordinator.state.access, key)
            if found is not None:
                if found.expires_at_s is not None and found.expires_at_s <= self._now_s():
                    day = datetime.fromtimestamp(found.expires_at_s, UTC).date().isoformat()
                    raise _unauthorized(
                        "key_expired",
                        f"the key {key.key_id} ran out on {day}; make another: exo key create",
                        address=address,
                        name=key.key_id,
                    )
                return Caller(
                    kind="key",
                    name=key.key_id,
                    address=address,
                    scopes=frozenset(found.scopes),
                    limits=found.limits,
                )
        raise _unauthorized(
            "key_wrong",
            "this key is not known here, or was deleted; make another: exo key create",
            address=address,
        )

    def _how_to_show(self) -> str:
        return (
            "send an API key as `Authorization: Bearer KEY` or `x-api-key: KEY`; "
            "make one on a node with: exo key create"
        )


def _unauthorized(code: str, message: str, *, address: str, name: str = "") -> AccessRefused:
    who = Caller(kind="nobody", name=name, address=address)
    return AccessRefused(401, code, message, who=who, headers=_CHALLENGE)
