"""Who makes a request, for as long as it lasts."""

from contextvars import ContextVar
from typing import Literal

import msgspec

from exo.shared.types.access import INCLUDED_SCOPES, SCOPES, KeyLimits, Scope

CallerKind = Literal["loopback", "owner", "key", "node", "nobody"]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and what they may."""

    kind: CallerKind
    """A program on this machine, this node's own user, an API key, another node, or somebody without a key."""
    name: str = ""
    """The key's or node's id."""
    address: str = ""
    """Where the request came from."""
    scopes: frozenset[Scope] = frozenset()
    limits: KeyLimits = KeyLimits()

    @property
    def label(self) -> str:
        """Return who it is on one line: `loopback`, `key abcd1234`, `node 0123`."""
        return f"{self.kind} {self.name}" if self.name else self.kind

    def may(self, scope: Scope) -> bool:
        """Say whether one of the caller's scopes includes this one."""
        return any(scope in INCLUDED_SCOPES[one] for one in self.scopes)


EVERYTHING = frozenset(SCOPES)

_NOBODY = Caller(kind="nobody")
_caller: ContextVar[Caller | None] = ContextVar("exo_caller", default=None)


def set_caller(caller: Caller) -> None:
    """Note who makes the request that this task, and those it starts, work on."""
    _caller.set(caller)


def present_caller() -> Caller:
    """Return who makes the present request; nobody outside of one."""
    return _caller.get() or _NOBODY
